"""Encoders of texts and images: Flax ports that read Hugging Face checkpoints."""

from ._config import ConfigError, ConfigReader
from ._convert import convert_checkpoint
from ._embed import Embedded, ImageReader, embed
from ._encoder import Encoder, EncoderConfig, encode, load_encoder
from ._family import Family, model_types, register_encoder
from ._images import ImagePreprocessor, image_preprocessor
from ._layers import Outputs
from ._store import read_embeddings
from ._texts import TextPreprocessor, text_preprocessor
from ._weights import CheckpointError, Rule

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConfigReader",
    "Embedded",
    "Encoder",
    "EncoderConfig",
    "Family",
    "ImagePreprocessor",
    "ImageReader",
    "Outputs",
    "Rule",
    "TextPreprocessor",
    "convert_checkpoint",
    "embed",
    "encode",
    "image_preprocessor",
    "load_encoder",
    "model_types",
    "read_embeddings",
    "register_encoder",
    "text_preprocessor",
]
