"""RoBERTa, XLM-RoBERTa and CamemBERT, which is a RoBERTa of French.

Liu et al. 2019, arXiv 1907.11692; Conneau et al. 2019, 1911.02116; Martin et al. 2019, 1911.03894.
"""

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn

from .._layers import Array, Outputs, positions_past_padding
from . import bert


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(bert.BertConfig):
    """And the id of the padding token, past which positions are numbered."""

    pad_token_id: int = 1


class Roberta(nn.Module):
    """BERT with positions that are counted over the tokens that are no padding."""

    config: RobertaConfig

    @nn.compact
    def __call__(self, batch: dict[str, Array]) -> Outputs:
        """Run on ``input_ids``, ``attention_mask`` and optional ``token_type_ids``."""
        positions = positions_past_padding(batch["input_ids"], self.config.pad_token_id)
        x = bert.embed(self.config, batch, positions=positions)
        return bert.transform(self.config, x, batch.get("attention_mask"))


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
