"""From texts to the token ids that an encoder takes, as the checkpoint's own tokenizer says.

Tokenizers are those of transformers, read from the folder alone: no network, no code of the
checkpoint.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._core.checks import counted
from .._core.documents import read_json
from ._encoder import Encoder
from ._hub import SENTENCEPIECE_FILES, TOKENIZER_FILES
from ._preprocess import auto_class, fingerprint, unreadable
from ._sentence import sentence_settings

# And from there on three in each doubling: few programs, little padding.
_SHORT_LENGTHS = (16, 32, 48, 64, 96, 128)
# Tokenizers without a limit report an enormous one.
_NO_LIMIT = 10**6
#: Where a checkpoint names a tokenizer class of its own that adds nothing to a known one.
_TOKENIZER_TYPES = {"cxr-bert": "bert"}
#: What open_clip may do to texts before the tokenizer, by its names; each makes one space of many.
_CLEANINGS = ("whitespace", "lower", "canonicalize")
_WITHOUT_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


class Tokenized(NamedTuple):
    """Texts as token ids.

    Attributes:
        rows: token ids of each text, special tokens included, cut to ``max_tokens``.
        types: segment of each token; None for a model without segments.
        truncated: number of texts that were cut.
    """

    rows: list[list[int]]
    types: list[list[int]] | None
    truncated: int


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenizes and pads texts for one encoder; safe to share between threads.

    Attributes:
        max_tokens: longest row.
        buckets: padded lengths, increasing; the last is `max_tokens`. Few, because each is compiled
            once; only `max_tokens` for a model that always sees its full length.
        fingerprint: SHA-256 over all that determines the rows: files and settings.
        prompt: name and text of what is put before every text; None and "" for nothing.
    """

    max_tokens: int
    buckets: tuple[int, ...]
    fingerprint: str
    prompt: tuple[str | None, str]
    _tokenizer: Any = field(repr=False)
    _segments: bool = field(repr=False)
    _sees_padding: bool = field(repr=False)
    _vocab_size: int | None = field(repr=False)
    _lower_case: bool = field(repr=False)
    _cleaning: str | None = field(repr=False)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Return the token ids of some texts; an empty text has special tokens only, or none.

        Args:
            texts: one string each.

        Raises:
            TypeError: if `texts` is one string, or an item is not a string; names its index.
            ValueError: if an item holds half of a surrogate pair; names its index.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings; got one string")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] must be a string; got {type(text).__name__}")
            try:
                text.encode()
            except UnicodeEncodeError as error:  # of which tokenizers say something else
                raise ValueError(f"texts[{index}] is no Unicode text: {error}") from None
        if not len(texts):
            return Tokenized([], [] if self._segments else None, 0)
        given = [self.prompt[1] + text for text in texts]
        if self._cleaning is not None:
            given = [_cleaned(text, self._cleaning) for text in given]
        if self._lower_case:
            given = [text.lower() for text in given]
        batch = self._tokenizer(
            given,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=self._segments,
        )
        if batch.encodings is None:  # written in Python: it does not say what it cut
            whole = self._tokenizer(given, return_attention_mask=False, verbose=False)
            truncated = sum(len(row) > self.max_tokens for row in whole["input_ids"])
        else:
            truncated = sum(bool(encoding.overflowing) for encoding in batch.encodings)
        types = batch["token_type_ids"] if self._segments else None
        return Tokenized(batch["input_ids"], types, truncated)

    def bucket(self, length: int) -> int:
        """Return the shortest padded length that holds a row of `length` tokens."""
        for size in self.buckets:
            if length <= size:
                return size
        raise ValueError(f"length must be at most max_tokens = {self.max_tokens}; got {length}")

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        length: int,
        types: Sequence[Sequence[int]] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return a batch for `encode`.

        Args:
            rows: token ids, `Tokenized.rows` or some of them.
            length: length to pad to, at the end of the rows: positions count from their beginning.
                On the side that the tokenizer pads, where the model attends to padding.
            types: their segments, `Tokenized.types`; None for a model without segments.

        Returns:
            ``input_ids`` and ``attention_mask``, int32 ``[rows, length]``, and ``token_type_ids``
            if `types` is given. The mask is 1 on tokens, and on padding too where the model attends
            to it (SigLIP).

        Raises:
            ValueError: if a row is longer than `length`, or has an id that the model lacks.
        """
        tokenizer = self._tokenizer
        longest = max(map(len, rows), default=0)
        if longest > length:
            raise ValueError(
                f"a row has {counted(longest, 'token')}, which do not fit in length = {length}"
            )
        right = not self._sees_padding or tokenizer.padding_side == "right"

        def filled(values: Sequence[Sequence[int]], filling: int) -> np.ndarray:
            table = np.full((len(values), length), filling, np.int32)
            for line, value in zip(table, values, strict=True):
                place = slice(0, len(value)) if right else slice(length - len(value), length)
                line[place] = value
            return table

        ids = filled(rows, tokenizer.pad_token_id)
        if self._vocab_size is not None and ids.size and ids.max() >= self._vocab_size:
            raise ValueError(
                f"the tokenizer gives the id {ids.max()}, but the model has a vocabulary of "
                f"{self._vocab_size}: the folder's tokenizer is not this model's"
            )
        ones = [[1] * len(row) for row in rows]
        batch = {"input_ids": ids, "attention_mask": filled(ones, int(self._sees_padding))}
        if types is not None:
            batch["token_type_ids"] = filled(types, tokenizer.pad_token_type_id)
        return batch


def text_preprocessor(encoder: Encoder, *, prompt_name: str | None = None) -> TextPreprocessor:
    """Return the preprocessor of texts that an encoder's folder describes.

    Texts are cut at the model's own limit, or before at the one of sentence-transformers, or where
    the folder has none at the tokenizer's. Of what open_clip does to texts first (``clean``), its
    repair of broken Unicode and of HTML entities is left to the caller.

    Args:
        encoder: one with texts.
        prompt_name: of the prompt that is put before every text, see `embed`.

    Raises:
        FileNotFoundError: if the folder has no tokenizer; says which files are expected.
        ValueError: if the encoder has no texts or no such prompt, or the tokenizer cannot be used.
    """
    config, folder = encoder.config, encoder.folder
    family = config.family
    if family.max_tokens is None:
        raise ValueError(f"an encoder of the family {family.name} takes no texts")
    settings = sentence_settings(folder)
    prompt = settings.chosen_prompt(prompt_name, folder)
    tokenizer = _tokenizer(folder, config.model_type)
    limits = [family.max_tokens(config.model), settings.max_tokens or tokenizer.model_max_length]
    max_tokens = int(min(limit for limit in limits if limit < _NO_LIMIT))
    if max_tokens <= tokenizer.num_special_tokens_to_add():
        raise ValueError(f"{folder}: max_tokens = {max_tokens} leaves no room for a text")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no padding token (pad_token)")
    segments = getattr(config.model, "type_vocab_size", 0) > 0
    segments = segments and "token_type_ids" in tokenizer.model_input_names
    fixed_length = family.fixed_length is not None and family.fixed_length(config.model)
    tower = getattr(config.model, "text", config.model)
    tower = getattr(tower, "bert", tower)  # of open_clip
    cleaning = _open_clip_cleaning(folder) if config.model_type == "open_clip" else None
    rules = {
        "model_type": config.model_type,
        "max_tokens": max_tokens,
        "fixed_length": fixed_length,
        "segments": segments,
        "lower_case": settings.lower_case,
        "prompt": prompt[1],
        **({} if cleaning is None else {"cleaning": cleaning}),
    }
    preprocessor = TextPreprocessor(
        max_tokens=max_tokens,
        buckets=(max_tokens,) if fixed_length else _buckets(max_tokens),
        fingerprint=fingerprint(rules, folder, TOKENIZER_FILES),
        prompt=prompt,
        _tokenizer=tokenizer,
        _segments=segments,
        _sees_padding=fixed_length,
        _vocab_size=getattr(tower, "vocab_size", None),
        _lower_case=settings.lower_case,
        _cleaning=cleaning,
    )
    # The first call sets how texts are cut, which threads must not do at the same time.
    preprocessor.tokenize([""])
    return preprocessor


def _buckets(max_tokens: int) -> tuple[int, ...]:
    sizes = [*_SHORT_LENGTHS]
    while sizes[-1] < max_tokens:
        sizes += [sizes[-1] * 5 // 4, sizes[-1] * 3 // 2, sizes[-1] * 2]
    return (*(size for size in sizes if size < max_tokens), max_tokens)


def _tokenizer(folder: Path, model_type: str) -> Any:
    has = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not has & {"tokenizer.json", "vocab.txt", *SENTENCEPIECE_FILES} and not (
        {"vocab.json", "merges.txt"} <= has
    ):
        message = (
            f"{folder} has no tokenizer. It needs tokenizer.json, or vocab.txt, or vocab.json with "
            f"merges.txt, or one of {', '.join(SENTENCEPIECE_FILES)}"
        )
        if model_type == "open_clip":
            message += (
                "; open_clip does not store its own: put tokenizer.json and tokenizer_config.json "
                f"of {_open_clip_tokenizer(folder)} there"
            )
        raise FileNotFoundError(message)

    options: dict[str, Any] = {}
    if model_type in _TOKENIZER_TYPES:
        options["tokenizer_type"] = _TOKENIZER_TYPES[model_type]
    elif not (folder / "config.json").is_file():
        options["config"] = auto_class("PreTrainedConfig")()
    try:
        return auto_class("AutoTokenizer").from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except ImportError:  # names the package to install
        raise
    except Exception as error:  # of many kinds: JSON, missing keys, the Rust library's own
        raise unreadable("tokenizer", folder, error) from error


def _cleaned(text: str, cleaning: str) -> str:
    if cleaning == "canonicalize":
        text = text.translate(_WITHOUT_PUNCTUATION)
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()


def _open_clip_cleaning(folder: Path) -> str:
    options = _open_clip_text(folder).get("tokenizer_kwargs") or {}
    cleaning, *others = options.get("clean", "whitespace"), *(options.keys() - {"clean"})
    if cleaning not in _CLEANINGS or others:
        raise ValueError(
            f"{folder / 'open_clip_config.json'}: tokenizer_kwargs = {options} is not supported "
            f"(supported: clean, one of {', '.join(_CLEANINGS)})"
        )
    return cleaning


def _open_clip_tokenizer(folder: Path) -> str:
    return _open_clip_text(folder).get("hf_tokenizer_name") or "openai/clip-vit-base-patch32"


def _open_clip_text(folder: Path) -> dict[str, Any]:
    values = read_json(folder / "open_clip_config.json", dict)
    text = values.get("model_cfg", values).get("text_cfg")
    return text if isinstance(text, dict) else {}
