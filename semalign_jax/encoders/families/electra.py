"""ELECTRA, the discriminator or the generator: Clark et al. 2020, arXiv 2003.10555."""

from dataclasses import dataclass, replace

import flax.linen as nn

from .._config import ConfigReader
from .._layers import Array
from .._weights import linear
from . import bert


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(bert.BertConfig):
    """And the width of the embeddings, which can be smaller than that of the layers."""

    embedding_size: int = 128


def parse(reader: ConfigReader, tensors: frozenset[str]) -> ElectraConfig:
    """Read the configuration."""
    reader.neutral("summary_*", "generator_size")
    return bert.parse(reader, tensors, ElectraConfig, has_pooler=False)


class Electra(bert.Bert):
    """BERT without pooler; a projection follows embeddings of another width."""

    config: ElectraConfig

    def embed(self, batch: dict[str, Array]) -> Array:
        """Return the embeddings in the width of the layers."""
        c = self.config
        x = super().embed(batch, c.embedding_size)
        if c.embedding_size == c.hidden_size:
            return x
        return nn.Dense(c.hidden_size, name="embeddings_project")(x)


ELECTRA = replace(
    bert.BERT,
    name="electra",
    parse=parse,
    build=Electra,
    rules=(
        *bert.EMBEDDING_RULES,
        *linear("embeddings_project", "embeddings_project"),
        *bert.LAYER_RULES,
    ),
    prefixes=("electra.",),
    ignored=(
        *bert.IGNORED,
        "discriminator_predictions.*",
        "generator_predictions.*",
        "generator_lm_head.*",
        "sequence_summary.*",
    ),
)
FAMILIES = {"electra": ELECTRA}
