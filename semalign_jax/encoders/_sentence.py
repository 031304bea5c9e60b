"""The settings of sentence-transformers that a folder may have: pooling, normalisation, text."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .._core.documents import read_json
from ._config import ConfigReader

MODULES_FILE = "modules.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
#: Of the first releases, e.g. of RoBERTa; a shell pattern that matches the usual name as well.
TRANSFORMER_FILES = "sentence_*_config.json"
PROMPT_FILE = "config_sentence_transformers.json"

#: The modes of pooling that are supported, and their names in `EncoderConfig`.
_POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "eos"}
#: Flags of older files of the pooling, and the modes that newer files name instead.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: What can always be asked for, as ``encode_query`` and ``encode_document`` do.
_USUAL_PROMPTS = ("query", "document")
#: Of Dense modules: the name in `ACTIVATIONS` by the class of PyTorch; None for none.
_DENSE_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_REMEDY = (
    "To embed without it, copy the model's and the tokenizer's files to another folder, without "
    f"{MODULES_FILE}, and load that with pooling= and normalize="
)


class Dense(NamedTuple):
    """A linear layer behind the pooling.

    Attributes:
        folder: where its weights are.
        inputs, outputs: dimensions.
        bias: whether it has a bias.
        activation: behind it, by its name in configurations; None for none.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str | None


class SentenceSettings(NamedTuple):
    """Of ``modules.json`` and the files that it names; without it, these defaults.

    Attributes:
        pooling: as in `EncoderConfig`; None if nothing is said.
        normalize: whether embeddings are scaled to length 1.
        max_tokens: longest text, special tokens included; None if nothing is said.
        lower_case: whether texts are put in lower case, whatever the tokenizer does.
        prompt_name: of the prompt that is put before every text, unless another is asked for.
        prompts: all by name.
        pools_prompt: whether the pooling sees the tokens of the prompt.
        dense: linear layers behind the pooling, in their order.
    """

    pooling: str | None = None
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompt_name: str | None = None
    prompts: Mapping[str, str] = MappingProxyType({})
    pools_prompt: bool = True
    dense: tuple[Dense, ...] = ()

    def chosen_prompt(self, name: str | None, folder: Path) -> tuple[str | None, str]:
        """Return the name and the text of the prompt that is used if this one is asked for.

        "query" and "document" are what sentence-transformers' ``encode_query`` and
        ``encode_document`` ask for: in a folder without that name they use none.

        Args:
            name: of the prompt; None for the default.
            folder: for messages.

        Raises:
            ValueError: if there is no such prompt (lists those that there are), or if the pooling
                must not see it.
        """
        used = self.prompt_name if name is None else name if name in self.prompts else None
        if name is not None and name not in (*_USUAL_PROMPTS, *self.prompts):
            known = ", ".join(map(repr, {**dict.fromkeys(_USUAL_PROMPTS), **self.prompts}))
            raise ValueError(f"{folder} has no prompt {name!r}; there are {known}")
        text = "" if used is None else self.prompts[used]
        if text and not self.pools_prompt:
            raise ValueError(
                f"{folder}: include_prompt is false in the pooling's file, so the prompt {used!r} "
                f"would not be pooled, which is not supported. {_REMEDY}"
            )
        return used, text


def sentence_settings(folder: Path) -> SentenceSettings:
    """Read the settings of a folder.

    Args:
        folder: a checkpoint, from sentence-transformers or not.

    Returns:
        Its settings; the defaults if it has no ``modules.json``.

    Raises:
        ValueError: if a file is malformed, or a module, a pooling or an option is not supported.
        FileNotFoundError: if a file of the pooling is missing.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return SentenceSettings()
    kinds, folders = _modules(path)
    normalize = kinds[-1:] == ["Normalize"]
    behind = kinds[2 : len(kinds) - normalize]
    if kinds[:2] != ["Transformer", "Pooling"] or set(behind) - {"Dense"}:
        raise ValueError(
            f"{path} lists the modules {', '.join(kinds) or 'none'}; supported are Transformer, "
            f"Pooling and, after them, any Dense and then Normalize. {_REMEDY}"
        )
    if folders[0] not in ("", "."):
        raise ValueError(
            f"{path} keeps the transformer in {folders[0]}: load that folder with pooling= and "
            "normalize="
        )
    max_tokens, lower_case = _text_options(folder)
    pooling, pools_prompt = _pooling(folder / folders[1] / "config.json")
    prompts, prompt_name = _prompts(folder / PROMPT_FILE)
    return SentenceSettings(
        pooling=pooling,
        normalize=normalize,
        max_tokens=max_tokens,
        lower_case=lower_case,
        prompt_name=prompt_name,
        prompts=prompts,
        pools_prompt=pools_prompt,
        dense=tuple(_dense(folder / place) for place in folders[2 : 2 + len(behind)]),
    )


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {MODULES_FILE} says that it has a Dense layer")
    reader = _reader(path, read_json(path, dict))
    inputs, outputs = (reader.get(name, 0) for name in ("in_features", "out_features"))
    if min(inputs, outputs) < 1:
        reader.problem("in_features and out_features must be positive numbers")
    bias = reader.get("bias", True, bool)
    usual = "torch.nn.modules.activation.Tanh"
    kind = reader.get("activation_function", usual, str, tuple(_DENSE_ACTIVATIONS))
    for name in ("module_input_name", "module_output_name"):
        reader.only(name, None, "sentence_embedding")
    reader.finish()
    return Dense(folder, inputs, outputs, bias, _DENSE_ACTIVATIONS[kind])


def _reader(path: Path, values: dict[str, Any], *neutral: str) -> ConfigReader:
    return ConfigReader(values, str(path), neutral=neutral, remedy=_REMEDY)


def _modules(path: Path) -> tuple[list[str], list[str]]:
    """Return the modules' class names and sub-folders, in their order."""
    kinds, folders = [], []
    for entry in read_json(path, list):
        kind = place = None
        if isinstance(entry, dict):
            kind, place = entry.get("type"), entry.get("path", "")
        if not isinstance(kind, str) or not isinstance(place, str):
            raise ValueError(f"{path} must list objects with type and path; it has {entry!r}")
        # The package has moved within sentence-transformers; other packages bring their own code.
        package, _, name = kind.rpartition(".")
        kinds.append(name if package.split(".")[0] == "sentence_transformers" else kind)
        if ".." in Path(place).parts or Path(place).is_absolute():
            raise ValueError(f"{path} names a folder outside of its own: {place!r}")
        folders.append(place)
    return kinds, folders


def _pooling(path: Path) -> tuple[str, bool]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {MODULES_FILE} says that it has the pooling")
    values = read_json(path, dict)
    reader = _reader(path, values, "word_embedding_dimension", "embedding_dimension")
    pools_prompt = reader.get("include_prompt", True, bool)
    flags = [mode for flag, mode in _POOLING_FLAGS.items() if reader.get(flag, None, bool)]
    modes = reader.get("pooling_mode", None, (str, list)) or flags or "mean"
    modes = [modes] if isinstance(modes, str) else modes
    poolings = [pooling for mode, pooling in _POOLINGS.items() if modes == [mode]]
    if not poolings:
        supported = ", ".join(_POOLINGS)
        reader.problem(f"the pooling {modes} is not supported; it must be one of {supported}")
    reader.finish()
    return poolings[0], pools_prompt


def _text_options(folder: Path) -> tuple[int | None, bool]:
    paths = sorted(
        folder.glob(TRANSFORMER_FILES), key=lambda path: (path.name != TRANSFORMER_FILE, path)
    )
    if not paths:
        return None, False
    path = paths[0]
    values = {k: v for k, v in read_json(path, dict).items() if v not in (None, {})}
    reader = _reader(path, values, "unpad_inputs")
    length = reader.get("max_seq_length", None)
    if length is not None and length < 1:
        reader.problem(f"max_seq_length must be a positive number or null; it is {length!r}")
    lower_case = reader.get("do_lower_case", False, bool)
    reader.only("transformer_task", "feature-extraction")
    reader.only("module_output_name", "token_embeddings")
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    reader.only("modality_config", {"text": text})
    reader.finish()
    return length, lower_case


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """Return the prompts by name, and the name of the default."""
    if not path.is_file():
        return {}, None
    values = read_json(path, dict)
    if values.get("truncate_dim") is not None:
        raise ValueError(f"{path}: truncate_dim is not supported: cut the embeddings yourself")
    prompts, name = values.get("prompts") or {}, values.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise ValueError(f"{path}: prompts must be texts by name; it is {prompts!r}")
    if name is not None and name not in list(prompts):
        raise ValueError(f"{path}: default_prompt_name is {name!r}, but prompts has no such text")
    return prompts, name
