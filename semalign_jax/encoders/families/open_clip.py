"""Checkpoints of OpenCLIP (Cherti et al. 2022, arXiv 2212.07143), named by open_clip_config.json.

Vision transformers of OpenCLIP or of timm; texts by OpenCLIP's transformer or a BERT, as in
BiomedCLIP (Zhang et al. 2023, arXiv 2303.00915).
"""

from dataclasses import dataclass, replace

import flax.linen as nn

from .._config import ConfigReader
from .._family import Family
from .._layers import ACTIVATIONS, Array, Outputs, masked_mean
from .._towers import (
    TextTower,
    TextTowerConfig,
    TwoTowers,
    TwoTowersConfig,
    VisionTransformer,
    VisionTransformerConfig,
    reads_padding,
)
from .._weights import Rule, embedding, linear, norm, packed, patch_embedding, prefixed, scalar
from . import bert, timm

#: PubMedBERT under the names that it has had, and its configuration, which is that of BERT base.
_PUBMEDBERT_NAMES = tuple(
    f"microsoft/BiomedNLP-{name}-base-uncased-abstract{texts}"
    for name in ("BiomedBERT", "PubMedBERT")
    for texts in ("", "-fulltext")
)
_PUBMEDBERT = bert.BertConfig(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    has_pooler=False,
)
_BERT_PREFIX = "text.transformer."
_POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
_TOKENS = {"argmax": "highest", "eos": "eos", "first": "first", "last": "last"}


@dataclass(frozen=True)
class BertTowerConfig:
    """A BERT as text tower.

    Attributes:
        bert: its own configuration.
        max_tokens: longest text.
        pad_token_id: what is not attended to without ``attention_mask``.
        pooler: one of OpenCLIP's names.
        hidden: width inside a projection of two layers; None if it has one.
        projection: dimension of the shared space.
    """

    bert: bert.BertConfig
    max_tokens: int
    pad_token_id: int
    pooler: str
    hidden: int | None
    projection: int


class BertTower(nn.Module):
    """BERT, a pooler and a projection without biases."""

    config: BertTowerConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids`` and optional ``attention_mask``."""
        c = self.config
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", ids != c.pad_token_id)
        outputs = bert.Bert(c.bert, name="bert")({"input_ids": ids, "attention_mask": mask})
        if c.pooler == "mean_pooler":
            pooled = masked_mean(outputs.last, mask)
        else:
            pooled = outputs.pooled if c.pooler == "cls_pooler" else outputs.last[:, 0]
        x = pooled
        if c.hidden is not None:
            x = ACTIVATIONS["gelu"](nn.Dense(c.hidden, use_bias=False, name="hidden")(x))
        projected = nn.Dense(c.projection, use_bias=False, name="projection")(x)
        return outputs._replace(pooled=pooled, projected=projected)


def _standard_layers(reader: ConfigReader) -> None:
    """Refuse attention and MLP of other kinds than in CLIP."""
    for name in (
        "qk_norm",
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
    ):
        reader.only(name, False)
    reader.only("block_type", None, "default", "custom")


def _activation(reader: ConfigReader, quick_gelu: bool) -> str:
    approximate = reader.section("act_kwargs").get("approximate", "none", str, ("none", "tanh"))
    if quick_gelu:
        return "quick_gelu"
    return "gelu_pytorch_tanh" if approximate == "tanh" else "gelu"


def parse_vision(reader: ConfigReader, dimension: int, quick_gelu: bool) -> VisionTransformerConfig:
    """Read ``vision_cfg`` of a vision transformer that is OpenCLIP's own."""
    _standard_layers(reader)
    reader.only("attentional_pool", False)
    reader.only("pos_embed_type", "learnable", "sin_cos_2d")  # both are stored
    reader.neutral("attn_pooler_*", "output_tokens", "timm_*")
    width, hidden = reader.get("width", 768), reader.get("mlp_ratio", 4.0, float)
    return VisionTransformerConfig(
        num_channels=3,
        image_size=reader.pair("image_size", 224),
        patch_size=reader.pair("patch_size", 16),
        width=width,
        layers=reader.get("layers", 12),
        heads=max(1, width // (reader.get("head_width", 64) or 1)),
        hidden=int(width * hidden),
        activation=_activation(reader, quick_gelu),
        eps=reader.section("norm_kwargs").get("eps", 1e-5, float),
        pooling="cls" if reader.get("pool_type", "tok", str, ("tok", "avg")) == "tok" else "mean",
        projection=dimension,
        interpolate=False,
        patch_bias=False,
        pre_norm=not reader.get("no_ln_pre", False, bool),
        norm_tokens=not reader.get("final_ln_after_pool", False, bool),
        layer_scale=reader.get("ls_init_value", None, float) is not None,
    )


def parse_timm(reader: ConfigReader, dimension: int) -> VisionTransformerConfig:
    """Read ``vision_cfg`` of a vision transformer of timm."""
    # The name overrides these.
    reader.neutral("layers", "width", "head_width", "mlp_ratio", "patch_size", "output_tokens")
    reader.neutral("timm_model_pretrained", "timm_drop", "timm_drop_path")
    name = reader.get("timm_model_name", kind=str)
    usual = timm.vit_arguments(name) if isinstance(name, str) else None
    if usual is None:
        reader.problem(
            f"timm_model_name = {name!r} is not supported (supported are vision transformers: "
            f"{timm.SUPPORTED_VITS})"
        )
        usual = timm.vit_arguments("vit_base_patch16_224") or {}
    size = reader.pair("image_size", usual.get("img_size", 224))
    if "img_size" in usual and size != (usual["img_size"],) * 2:
        reader.problem(f"image_size must be {usual['img_size']}, as timm_model_name says")
    linear = reader.get("timm_proj", "linear", str, ("linear", "none")) == "linear"
    pooling = reader.get("timm_pool", "avg", str, ("", "token", "avg", "map"))
    # Without a projection the pooling is an argument of timm's model. With one the model is made as
    # it usually is and then pools in another way, by attention only if it did so before.
    args = {} if linear or not pooling else {"global_pool": pooling}
    arguments = ConfigReader(args, "")
    config = timm.parse_vit(arguments, usual, 3, size)
    if linear and pooling:
        if (pooling == "map") != (config.pooling == "attention"):
            reader.problem(f"timm_pool = {pooling!r} is not supported with {name}")
        config = replace(config, pooling=timm.VIT_POOLINGS.get(pooling))
    if config.pooling == "cls" and not config.class_token:
        reader.problem(f"timm_pool = 'token' needs a class token, and {name} has none")
    if not linear and (config.width != dimension or not pooling):
        reader.problem(f"timm_proj = 'none' needs timm_pool and embed_dim = {config.width}")
    bias = reader.get("timm_proj_bias", False, bool)
    return replace(
        config, projection=dimension if linear else None, projection_bias=bias and linear
    )


def parse_text(reader: ConfigReader, dimension: int, quick_gelu: bool) -> TextTowerConfig:
    """Read ``text_cfg`` of OpenCLIP's own transformer."""
    _standard_layers(reader)
    reader.only("embed_cls", False)
    # One token is pooled, so that the order of norm and pooling does not matter.
    reader.neutral("final_ln_after_pool", "pad_id", "output_tokens", "hf_*", "tokenizer_kwargs")
    reader.only("tokenizer_mode", None, "")
    width, hidden = reader.get("width", 512), reader.get("mlp_ratio", 4.0, float)
    projected = reader.get("proj_type", "linear", str, ("linear", "none")) == "linear"
    token = reader.get("pool_type", "argmax", str, tuple(_TOKENS))
    return TextTowerConfig(
        vocab_size=reader.get("vocab_size", 49408),
        max_tokens=reader.get("context_length", 77),
        width=width,
        layers=reader.get("layers", 12),
        heads=reader.get("heads", 8),
        hidden=int(width * hidden),
        activation=_activation(reader, quick_gelu),
        eps=reader.section("norm_kwargs").get("eps", 1e-5, float),
        causal=not reader.get("no_causal_mask", False, bool),
        padding=False,
        token=_TOKENS.get(token, "highest"),
        eos_token_id=reader.get("eos_id", 2),
        projection=dimension if projected else None,
        projection_bias=reader.get("proj_bias", False, bool),
        layer_scale=reader.get("ls_init_value", None, float) is not None,
    )


def parse_bert(reader: ConfigReader, dimension: int, tensors: frozenset[str]) -> BertTowerConfig:
    """Read ``text_cfg`` of a BERT.

    OpenCLIP downloads the configuration of ``hf_model_name``. Here it is that of PubMedBERT, whose
    names are known, or it must stand in the file, as ``hf_model_config``.
    """
    reader.neutral("hf_tokenizer_name", "hf_model_pretrained", "tokenizer_kwargs", "output_tokens")
    reader.only("tokenizer_mode", None, "")
    # The model overrides these.
    reader.neutral("width", "heads", "layers", "mlp_ratio", "vocab_size", "proj", "pooler_type")
    name = reader.get("hf_model_name", kind=str)
    model, pad_token_id = _PUBMEDBERT, 0
    if reader.has("hf_model_config"):
        section = reader.section("hf_model_config")
        section.only("model_type", "bert")
        pad_token_id = section.get("pad_token_id", 0)
        model = bert.parse(section, frozenset())
    elif name not in _PUBMEDBERT_NAMES:
        reader.problem(
            f"hf_model_name = {name!r} is not known (known: {', '.join(_PUBMEDBERT_NAMES)}); put "
            "the config.json of that model, if it is a BERT, into text_cfg as hf_model_config"
        )
    has_pooler = f"{_BERT_PREFIX}pooler.dense.weight" in tensors
    pooler = reader.get("hf_pooler_type", "mean_pooler", str, _POOLERS)
    if pooler == "cls_pooler" and not has_pooler:
        reader.problem(f"hf_pooler_type = 'cls_pooler' needs {_BERT_PREFIX}pooler, not there")
    two_layers = reader.get("hf_proj_type", "mlp", str, ("mlp", "linear")) == "mlp"
    return BertTowerConfig(
        bert=replace(model, has_pooler=has_pooler),
        max_tokens=min(reader.get("context_length", 77), model.max_position_embeddings),
        pad_token_id=pad_token_id,
        pooler=pooler,
        hidden=(model.hidden_size + dimension) // 2 if two_layers else None,
        projection=dimension,
    )


def parse(reader: ConfigReader, tensors: frozenset[str]) -> TwoTowersConfig:
    """Read the configuration, which may also stand without its ``model_cfg`` around it."""
    reader.neutral("preprocess_cfg")
    model = reader.section("model_cfg") if reader.has("model_cfg") else reader
    dimension = model.get("embed_dim")
    quick_gelu = model.get("quick_gelu", False, bool)
    # Values at the start of training, and where the text tower's tensors are.
    model.neutral("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "custom_text")
    for name in ("vision_cfg", "text_cfg"):
        if not model.has(name):
            model.problem(f"{name} is missing")
    image, text = model.section("vision_cfg"), model.section("text_cfg")
    return TwoTowersConfig(
        parse_bert(text, dimension, tensors)
        if text.get("hf_model_name", None, str)
        else parse_text(text, dimension, quick_gelu),
        parse_timm(image, dimension)
        if image.get("timm_model_name", None, str)
        else parse_vision(image, dimension, quick_gelu),
        "logit_bias" in tensors,
    )


def build(config: TwoTowersConfig) -> TwoTowers:
    """Return the module."""
    text = config.text
    tower = BertTower(text) if isinstance(text, BertTowerConfig) else TextTower(text)
    return TwoTowers(tower, VisionTransformer(config.vision), config.logit_bias)


_LAYER = "transformer.resblocks.*"
#: Of one layer of OpenCLIP's transformer, in either tower.
LAYER_RULES = (
    *norm(f"{_LAYER}.ln_1", "layer_*/attention_norm"),
    *packed(f"{_LAYER}.attn.in_proj_", "layer_*/attention"),
    *linear(f"{_LAYER}.attn.out_proj", "layer_*/attention/out"),
    Rule(f"{_LAYER}.ls_1.gamma", "layer_*/attention_scale/gamma"),
    *norm(f"{_LAYER}.ln_2", "layer_*/mlp_norm"),
    *linear(f"{_LAYER}.mlp.c_fc", "layer_*/mlp/up"),
    *linear(f"{_LAYER}.mlp.c_proj", "layer_*/mlp/down"),
    Rule(f"{_LAYER}.ls_2.gamma", "layer_*/mlp_scale/gamma"),
)
TEXT_RULES = (
    *embedding("token_embedding", "token_embedding"),
    Rule("positional_embedding", "position_embedding/embedding"),
    *LAYER_RULES,
    *norm("ln_final", "norm"),
    Rule("text_projection", "projection/kernel"),
    *linear("text_projection", "projection"),
)
VISION_RULES = (
    Rule("class_embedding", "class_token"),
    Rule("positional_embedding", "position_embedding"),
    *patch_embedding("conv1", "patches/projection"),
    *norm("ln_pre", "pre_norm"),
    *LAYER_RULES,
    *norm("ln_post", "norm"),
    Rule("proj", "projection/kernel"),
)
BERT_RULES = (
    *prefixed(bert.RULES, _BERT_PREFIX, "text/bert/"),
    *linear("text.proj", "text/projection"),
    *linear("text.proj.0", "text/hidden"),
    *linear("text.proj.2", "text/projection"),
)


def rules(config: TwoTowersConfig) -> tuple[Rule, ...]:
    """Rules of both towers; the names of the vision tower's tensors are OpenCLIP's or timm's."""
    return (
        # The text tower is a part of the model, or lies flat in it.
        *prefixed(TEXT_RULES, "", "text/"),
        *prefixed(TEXT_RULES, "text.", "text/"),
        *prefixed(VISION_RULES, "visual.", "vision/"),
        *prefixed(timm.vit_rules(config.vision), "visual.trunk.", "vision/"),
        *prefixed(linear("head.proj", "projection"), "visual.", "vision/"),
        *BERT_RULES,
        Rule("logit_scale", "logit_scale", scalar),
        Rule("logit_bias", "logit_bias", scalar),
    )


OPEN_CLIP = Family(
    name="open_clip",
    parse=parse,
    build=build,
    rules=rules,
    poolings=lambda config: ("projection", "pooler", "mean"),
    image_size=lambda config: (config.vision.num_channels, *config.vision.image_size),
    max_tokens=lambda config: config.text.max_tokens,
    fixed_length=lambda config: reads_padding(config.text),
    prefixes=("module.",),
    ignored=(
        f"{_BERT_PREFIX}embeddings.position_ids",
        "attn_mask",
        "text.attn_mask",
        # Of the files that OpenAI published.
        "input_resolution",
        "context_length",
        "vocab_size",
    ),
)
FAMILIES = {"open_clip": OPEN_CLIP}
