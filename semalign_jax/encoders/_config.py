"""Strict reading of ``config.json``: what is not understood is refused by name, never ignored."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

_T = TypeVar("_T")
_REQUIRED = object()

#: Keys (shell patterns) that do not change what an encoder computes at inference.
_NEUTRAL = (
    # Of files and of the software that wrote or runs them.
    "_name_or_path _attn_implementation* _commit_hash architectures auto_map model_type adapters "
    "transformers_version sentence_transformers torch_dtype dtype torchscript use_bfloat16 "
    "xla_device use_cache chunk_size_feed_forward output_hidden_states output_attentions "
    "output_scores output_past return_dict* tokenizer_class prefix *_token_id eos_token_ids "
    # Of training and of the heads of tasks.
    "*dropout* *drop_path* *drop_rate* initializer_* gradient_checkpointing id2label label2id "
    "num_labels _num_labels problem_type task_specific_params finetuning_task tf_legacy_loss "
    "tie_word_embeddings tie_encoder_decoder tie_weights_ cross_attention_hidden_size "
    "sbert_ce_default_activation_function directionality pooler_fc_size "
    "pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "
    # Of text generation, which old files of every model carry.
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    # Of backbones inside of detectors.
    "stage_names out_features out_indices apply_layernorm reshape_hidden_states"
).split()

#: Keys that no encoder may have with another value: it would be a decoder, or lack heads.
_OFF = {
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
}


_REMEDY = "(keys that do not change the embeddings can be named in ignore_config_keys)"


class ConfigError(ValueError):
    """A configuration file has values that are missing, malformed or not supported."""


class ConfigReader:
    """Reads the values of one configuration, notes each problem and reports all of them at once.

    A family's ``parse`` asks for every key that changes the computation (`read`, `get`, `only`) and
    names those that do not (`neutral`). `finish` then raises if a value is missing, of the wrong
    type or not supported, if a key is left that nobody asked for, or if it is no encoder.

    Args:
        values: the decoded JSON object.
        where: the file (and section) as named in messages.
        ignore: further keys that the user declares harmless.
        neutral: the first of those that `neutral` declares.
        remedy: what a user can do about problems.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        ignore: Sequence[str] = (),
        *,
        neutral: Sequence[str] = _NEUTRAL,
        remedy: str = _REMEDY,
    ):
        self._values = values
        self._where = where
        self._ignore = tuple(ignore)
        self._seen: set[str] = set()
        self._neutral: list[str] = list(neutral)
        self._remedy = remedy
        self._problems: list[str] = []
        self._sections: list[ConfigReader] = []

    def read(self, config: type[_T], **own: Any) -> _T:
        """Return a configuration whose fields are the values of the keys of their names.

        The annotation of a field says what its value must be: a type, as for `get`;
        ``Annotated[type, choices]``; ``tuple[int, int]``, see `pair`; ``tuple[int, ...]``, see
        `sizes`. Its default is that of an absent key.

        Args:
            config: a dataclass.
            **own: the fields that are not keys, or read in another way.
        """
        for name, kind in get_type_hints(config, include_extras=True).items():
            default = getattr(config, name, _REQUIRED)
            if name in own:
                continue
            if kind == tuple[int, int]:
                own[name] = self.pair(name, default)
            elif kind == tuple[int, ...]:
                own[name] = self.sizes(name, default)
            elif get_origin(kind) is Annotated:
                own[name] = self.get(name, default, kind.__origin__, *kind.__metadata__)
            else:
                own[name] = self.get(name, default, kind)
        return config(**own)

    def get(
        self,
        name: str,
        default: Any = _REQUIRED,
        kind: type | tuple[type, ...] = int,
        choices: Sequence[Any] | None = None,
    ) -> Any:
        """Return the value of a key.

        Args:
            name: the key.
            default: value of an absent key; without it the key is required.
            kind: type of the value; an int passes for a float; None passes if it is the default.
            choices: the supported values, if not all are.
        """
        self._seen.add(name)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # A problem ends in `finish`; until then a value of the right type is read on with.
        instead = (choices or [kinds[0]()])[0] if default is _REQUIRED else default
        if name not in self._values:
            if default is _REQUIRED:
                self._problems.append(f"{name} is missing")
            return instead
        value = self._values[name]
        if value is None and default is None:
            return None
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(k.__name__ for k in kinds)
            self._problems.append(f"{name} must be {expected}; it is {value!r}")
            return instead
        if choices is not None and value not in choices:
            supported = ", ".join(repr(choice) for choice in choices)
            self._problems.append(f"{name} = {value!r} is not supported (supported: {supported})")
        return value

    def only(self, name: str, *supported: Any) -> None:
        """Note a problem if a key is present with another value than those supported."""
        self._seen.add(name)
        if name in self._values and self._values[name] not in supported:
            values = ", ".join(repr(value) for value in supported)
            problem = f"{name} = {self._values[name]!r} is not supported (supported: {values})"
            self._problems.append(problem)

    def pair(self, name: str, default: Any = _REQUIRED) -> tuple[int, int]:
        """Return a size that is written as one number or as ``[height, width]``."""
        noted = len(self._problems)
        value = self.get(name, default, kind=(int, list, tuple))
        if len(self._problems) > noted:
            return (1, 1)
        values = (value, value) if isinstance(value, int) else tuple(value)
        if len(values) != 2 or not all(isinstance(v, int) and v > 0 for v in values):
            self._problems.append(f"{name} must be a size or [height, width]; it is {value!r}")
            return (1, 1)
        return values

    def sizes(self, name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """Return a list of whole numbers, none negative."""
        values = self.get(name, default, kind=(list, tuple))
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            self._problems.append(f"{name} must be a list of whole numbers; it is {values!r}")
            return () if default is _REQUIRED else tuple(default)
        return tuple(values)

    def section(self, name: str) -> "ConfigReader":
        """Return the reader of a nested object; its problems are reported with ours."""
        self._seen.add(name)
        value = self._values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self._problems.append(f"{name} must be an object; it is {value!r}")
            value = {}
        reader = ConfigReader(value, f"{name}.", self._ignore)
        self._sections.append(reader)
        return reader

    def has(self, name: str) -> bool:
        """Whether a key is there."""
        return name in self._values

    def neutral(self, *patterns: str) -> None:
        """Declare keys (shell patterns) of this family that do not change the computation."""
        self._neutral.extend(patterns)

    def problem(self, text: str) -> None:
        """Note a problem that spans several keys."""
        self._problems.append(text)

    def _all_problems(self) -> list[str]:
        for name, usual in _OFF.items():
            if name not in self._seen:
                self.only(name, *usual)
        harmless = (*self._neutral, *self._ignore)
        unknown = [
            f"{name} = {value!r} is not known"
            for name, value in self._values.items()
            if name not in self._seen
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in harmless)
        ]
        nested = [
            reader._where + text for reader in self._sections for text in reader._all_problems()
        ]
        return self._problems + unknown + nested

    def finish(self) -> None:
        """Raise `ConfigError` with every problem found, if there is one."""
        problems = self._all_problems()
        if problems:
            listing = "\n  ".join(problems)
            raise ConfigError(f"{self._where} cannot be used:\n  {listing}\n{self._remedy}")
