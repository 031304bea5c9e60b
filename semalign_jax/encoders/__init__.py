"""Encoders of texts and images: Flax ports that read Hugging Face checkpoints."""

from ._config import ConfigError as ConfigError
from ._config import ConfigReader as ConfigReader
from ._convert import convert_checkpoint as convert_checkpoint
from ._embed import Embedded as Embedded
from ._embed import ImageReader as ImageReader
from ._embed import embed as embed
from ._encoder import Encoder as Encoder
from ._encoder import EncoderConfig as EncoderConfig
from ._encoder import encode as encode
from ._encoder import load_encoder as load_encoder
from ._family import Family as Family
from ._family import model_types as model_types
from ._family import register_encoder as register_encoder
from ._images import ImagePreprocessor as ImagePreprocessor
from ._images import image_preprocessor as image_preprocessor
from ._layers import Outputs as Outputs
from ._store import read_embeddings as read_embeddings
from ._texts import TextPreprocessor as TextPreprocessor
from ._texts import text_preprocessor as text_preprocessor
from ._weights import CheckpointError as CheckpointError
from ._weights import Rule as Rule

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
