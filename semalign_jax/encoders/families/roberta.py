"""RoBERTa, XLM-RoBERTa and CamemBERT, which is a RoBERTa of French.

Liu et al. 2019, arXiv 1907.11692; Conneau et al. 2019, 1911.02116; Martin et al. 2019, 1911.03894.
"""

from dataclasses import dataclass, replace
from functools import partial

from .._layers import Array, positions_past_padding
from . import bert


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(bert.BertConfig):
    """And the id of the padding token, past which positions are numbered."""

    pad_token_id: int = 1


class Roberta(bert.Bert):
    """BERT with positions that are counted over the tokens that are no padding."""

    config: RobertaConfig

    def positions(self, ids: Array) -> Array:
        """Return the positions; padding has its own."""
        return positions_past_padding(ids, self.config.pad_token_id)


def max_tokens(config: RobertaConfig) -> int:
    """The positions up to that of padding are never those of a token."""
    return config.max_position_embeddings - config.pad_token_id - 1


ROBERTA = replace(
    bert.BERT,
    name="roberta",
    parse=partial(bert.parse, config=RobertaConfig),
    build=Roberta,
    max_tokens=max_tokens,
    prefixes=("roberta.",),
    ignored=(*bert.IGNORED, "lm_head.*"),
)
FAMILIES = {name: replace(ROBERTA, name=name) for name in ("roberta", "xlm-roberta", "camembert")}
