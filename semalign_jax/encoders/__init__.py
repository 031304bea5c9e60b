"""Encoders: Flax ports with Hugging Face weights."""

from ._config import ConfigError as ConfigError
from ._embed import Embedded as Embedded
from ._embed import embed as embed
from ._encoder import Encoder as Encoder
from ._encoder import EncoderConfig as EncoderConfig
from ._encoder import encode as encode
from ._encoder import load_encoder as load_encoder
from ._family import Family as Family
from ._family import register_encoder as register_encoder
from ._store import read_embeddings as read_embeddings
from ._weights import CheckpointError as CheckpointError
from ._weights import Rule as Rule
