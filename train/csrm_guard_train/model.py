"""The CSRM: rules read the conversation inside one pretrained encoder.

Structure: the context reads itself; the judged message reads the context and itself; each rule
reads both and itself, never another rule. So a rule's logit does not depend on which other rules
stand beside it, nor on their order. The mask is the whole difference from a plain encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from csrm_guard.encoding import FIRST_RULE

__all__ = ["RuleReader", "attention_mask"]


def attention_mask(blocks: Tensor) -> Tensor:
    """Return which token may read which, bool (B, 1, T, T): query first, key second.

    Args:
        blocks: int64 (B, T); 0 context, 1 judged, 2 + k rule k, -1 padding.
    """
    query, key = blocks[:, :, None], blocks[:, None, :]
    own = query == key
    earlier = (key < query) & (key < FIRST_RULE)
    # A padding token reads padding only, so that no softmax row is empty.
    return (own | (earlier & (key >= 0)))[:, None]


class RuleReader(nn.Module):
    """A BERT-class encoder with one violation logit per rule.

    Args:
        backbone: the pretrained encoder; its pooler starts the head.
        dropout: before the last layer, in training.
    """

    def __init__(self, backbone: BertModel, *, dropout: float = 0.1) -> None:
        super().__init__()
        hidden = int(backbone.config.hidden_size)
        self.backbone = backbone
        self.dense = nn.Linear(hidden, hidden)
        if backbone.pooler is not None:
            self.dense.load_state_dict(backbone.pooler.dense.state_dict())
            backbone.pooler = None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 1)
        nn.init.normal_(self.out.weight, std=0.02)
        # Most rules are kept by most messages: start there.
        nn.init.constant_(self.out.bias, -1.0)

    @property
    def config(self) -> BertConfig:
        """The encoder's configuration."""
        return self.backbone.config

    def _additive(self, mask: Tensor) -> Tensor:
        """Return the mask as what is added to attention scores.

        transformers' eager attention adds any 4-D mask as it is, also a boolean one, which then
        hides nothing; only the additive form means the same in every implementation.
        """
        hidden = torch.zeros((), dtype=self.dense.weight.dtype, device=mask.device)
        return torch.where(mask, hidden, hidden - 1e4)

    def forward(self, ids: Tensor, blocks: Tensor, positions: Tensor, heads: Tensor) -> Tensor:
        """Return violation logits (B, R); higher is more violated. All inputs are int64.

        Args:
            ids: token ids (B, T).
            blocks: block of each token (B, T), see `attention_mask`.
            positions: position of each token (B, T).
            heads: index of each rule's first token (B, R); padded with 0.
        """
        types = ((blocks >= 0) & (blocks < FIRST_RULE)).long()
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=self._additive(attention_mask(blocks)),
            token_type_ids=types,
            position_ids=positions,
        ).last_hidden_state  # (B, T, H)
        index = heads[:, :, None].expand(-1, -1, hidden.shape[-1])
        first = hidden.gather(1, index)  # (B, R, H)
        features = torch.tanh(self.dense(first))
        logits: Tensor = self.out(self.dropout(features)).squeeze(-1)
        return logits
