"""The CSRM: a pretrained backbone that reads rules against a conversation, one logit per rule.

Structures (docs/results.md compares them), all order-invariant: a rule's logit never depends on
the rules beside it.

- `context-first` (shipped): the context reads itself, the judged message reads the context and
  itself, each rule reads both and itself. The mask is the whole difference from a plain encoder.
- `conversation`: as above, but context and judged message read each other.
- `pairwise`: conversation and one rule read each other freely, one pass per rule. The most
  accurate and the dearest: the reference.
- `probes`: conversation and rules are encoded apart; one small attention reads the conversation
  with each rule's vector. The cheapest: rules can be compiled ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from csrm_guard.encoding import FIRST_RULE, JUDGED
from csrm_guard.packing import PADDING
from csrm_guard_train.families import family_of
from csrm_guard_train.recipe import Structure

__all__ = ["RuleReader", "attention_mask", "pairs"]


def attention_mask(blocks: Tensor, structure: Structure = "context-first", *, causal: bool = False) -> Tensor:
    """Return which token may read which, bool (B, 1, T, T): query first, key second.

    Args:
        blocks: int64 (B, T); 0 context, 1 judged, 2 + k rule k, -1 padding.
        structure: who reads whom.
        causal: whether a token is kept from reading later tokens.
    """
    query, key = blocks[:, :, None], blocks[:, None, :]
    own = query == key
    conversation = (key >= 0) & (key < FIRST_RULE)
    if structure == "context-first":
        allowed = own | (conversation & (key < query))
    elif structure == "conversation":
        allowed = own | (conversation & (query >= 0))
    elif structure == "pairwise":
        allowed = (query >= 0) == (key >= 0)
    else:
        allowed = own | (conversation & (query >= 0) & (query < FIRST_RULE))
    # A padding token reads padding only, so that no softmax row is empty.
    if causal:
        order = torch.arange(blocks.shape[1], device=blocks.device)
        allowed = allowed & (order[None, :, None] >= order[None, None, :])
    return allowed[:, None]


def pairs(ids: Tensor, blocks: Tensor, positions: Tensor, heads: Tensor) -> tuple[Tensor, ...]:
    """Return one sequence per rule: the conversation and that rule, without the other rules' tokens.

    Args:
        ids: token ids (B, T).
        blocks: block of each token (B, T).
        positions: position of each token (B, T).
        heads: where each rule is read (B, R).

    Returns:
        ids, blocks, positions (N, T'), heads (N,), and which of the (B, R) rules these N are; padded
        rules have no sequence.
    """
    wanted = torch.arange(heads.shape[1], device=blocks.device)[None, :, None] + FIRST_RULE
    each = blocks[:, None, :].expand(-1, heads.shape[1], -1)
    mine = each == wanted
    exists = mine.any(dim=-1)  # (B, R)
    keep = (((each >= 0) & (each <= JUDGED)) | mine)[exists]  # (N, T)
    order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, : int(keep.sum(dim=1).max())]
    alone = torch.where(keep, each[exists].clamp(max=FIRST_RULE), PADDING).gather(1, order)
    owners = exists.nonzero()[:, 0]
    at = (keep.cumsum(dim=1) - 1).gather(1, heads[exists][:, None])[:, 0]
    return ids[owners].gather(1, order), alone, positions[owners].gather(1, order), at, exists


class RuleReader(nn.Module):
    """A pretrained backbone with one violation logit per rule.

    Args:
        backbone: the pretrained model without its head; an encoder's pooler starts the new head.
        structure: who reads whom, see the module.
        dropout: before the last layer, in training.
        verbalizers: embeddings (safe (S, H), unsafe (U, H)) of the paper's answer words. With
            them the logit is log sum exp over unsafe minus safe (paper 3.3: R with its sign
            turned), read where a language model would answer.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        structure: Structure = "context-first",
        dropout: float = 0.1,
        verbalizers: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.family = family_of(backbone.config)
        self.structure: Structure = structure
        hidden = int(backbone.config.hidden_size)
        self.backbone = backbone
        self.dense = nn.Linear(hidden, hidden)
        pooler = getattr(backbone, "pooler", None)
        if pooler is not None and hasattr(pooler, "dense"):
            self.dense.load_state_dict(pooler.dense.state_dict())
            backbone.pooler = None  # type: ignore[assignment]  # as transformers itself does
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, 1)
        nn.init.normal_(self.out.weight, std=0.02)
        # Most rules are kept by most messages: start there.
        nn.init.constant_(self.out.bias, -1.0)
        self.probe = _Probe(hidden) if structure == "probes" else None
        self.safe = nn.Parameter(verbalizers[0].clone()) if verbalizers else None
        self.unsafe = nn.Parameter(verbalizers[1].clone()) if verbalizers else None

    def drop_hidden(self, share: float) -> None:
        """Zero this share of the backbone's hidden states in training; attention's weights are left alone."""
        for name, layer in self.backbone.named_modules():
            if isinstance(layer, nn.Dropout) and not name.endswith(("self.dropout", "attn.dropout")):
                layer.p = share

    def freeze_words(self) -> None:
        """Keep the word embeddings as they are in training."""
        self.backbone.get_input_embeddings().requires_grad_(False)

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's configuration."""
        config: PreTrainedConfig = self.backbone.config
        return config

    def forward(self, ids: Tensor, blocks: Tensor, positions: Tensor, heads: Tensor) -> Tensor:
        """Return violation logits (B, R); higher is more violated. All inputs are int64.

        Args:
            ids: token ids (B, T).
            blocks: block of each token (B, T), see `attention_mask`.
            positions: position of each token (B, T).
            heads: index of each rule's first token (B, R); padded with 0.
        """
        heads = self._read_at(blocks, heads)
        if self.structure == "pairwise":
            ids, blocks, positions, at, exists = pairs(ids, blocks, positions, heads)
            hidden = self._hidden(ids, blocks, positions)  # (N, T', H)
            read = self._logits(hidden[torch.arange(len(at), device=at.device), at])  # (N,)
            logits = read.new_zeros(heads.shape)
            logits[exists] = read
            return logits
        hidden = self._hidden(ids, blocks, positions)  # (B, T, H)
        found = hidden.gather(1, heads[:, :, None].expand(-1, -1, hidden.shape[-1]))  # (B, R, H)
        if self.probe is not None:
            found = self.probe(found, hidden, (blocks >= 0) & (blocks <= JUDGED))
        return self._logits(found)

    def _hidden(self, ids: Tensor, blocks: Tensor, positions: Tensor) -> Tensor:
        mask = attention_mask(blocks, self.structure, causal=self.family.causal)
        return self.family.hidden(self.backbone, ids, blocks, positions, mask)

    def _read_at(self, blocks: Tensor, heads: Tensor) -> Tensor:
        if self.family.reads == "first":
            return heads
        wanted = torch.arange(heads.shape[1], device=blocks.device)[None, :, None] + FIRST_RULE
        lengths = (blocks[:, None, :] == wanted).sum(dim=-1)  # (B, R)
        return heads + (lengths - 1).clamp(min=0)

    def _logits(self, features: Tensor) -> Tensor:
        """Return logits of features (..., H) without their last dimension."""
        if self.safe is not None and self.unsafe is not None:
            unsafe = torch.logsumexp(functional.linear(features, self.unsafe).float(), dim=-1)
            safe = torch.logsumexp(functional.linear(features, self.safe).float(), dim=-1)
            return unsafe - safe
        features = torch.tanh(self.dense(features))
        logits: Tensor = self.out(self.dropout(features)).squeeze(-1)
        return logits


class _Probe(nn.Module):
    """Read a conversation with rule vectors: one cross-attention, and the product of both means."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.mix = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.heads = max(hidden // 64, 1)

    def forward(self, rules: Tensor, hidden: Tensor, readable: Tensor) -> Tensor:
        """Return features (B, R, H) of rules (B, R, H) against tokens (B, T, H), readable (B, T)."""
        batch, _, size = hidden.shape

        def split(x: Tensor) -> Tensor:
            return x.reshape(batch, -1, self.heads, size // self.heads).transpose(1, 2)

        query, key, value = split(self.query(rules)), split(self.key(hidden)), split(self.value(hidden))
        scores = query @ key.transpose(-1, -2) / (size // self.heads) ** 0.5  # (B, heads, R, T)
        scores = scores.masked_fill(~readable[:, None, None, :], -1e4)
        read = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rules.shape)
        weight = readable[:, :, None].to(hidden.dtype)
        mean = (hidden * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        found: Tensor = rules + self.mix(torch.cat([rules, read, rules * mean], dim=-1))
        return found
