"""How each class of pretrained backbone reads a packed sequence: its positions, its mask, its tokens.

Every family gets the same arrays (token ids, blocks, positions, a mask of who may read whom) and
returns hidden states. What differs is where a backbone keeps its notion of position, and what
form it takes a mask in. A rule's positions never depend on the rules beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedConfig

from csrm_guard.encoding import FIRST_RULE
from csrm_guard.packing import CONVERSATION_OFFSET

__all__ = ["FAMILIES", "Family", "FamilyError", "additive", "family_of", "special_tokens"]

Reads: TypeAlias = Literal["first", "last"]

# Tokens that open a rule and every other piece, by what tokenizers have.
_SPECIAL = (
    ("[CLS]", "[SEP]"),
    ("<s>", "</s>"),
    ("<|begin_of_text|>", "<|eot_id|>"),
    ("<|im_start|>", "<|im_end|>"),
    ("<|endoftext|>", "<|endoftext|>"),
)


class FamilyError(Exception):
    """A backbone is of no known class; the message names the classes that are."""


@dataclass(frozen=True, slots=True)
class Family:
    """One class of backbones.

    Attributes:
        hidden: (backbone, ids, blocks, positions, mask) -> hidden states (B, T, H). Mask is bool
            (B, 1, T, T), query first.
        reads: whether a rule's logit is read at its first or at its last token.
        causal: whether a token can read later ones at all.
        adapters: names of the linear layers that LoRA adapts.
        options: what `from_pretrained` and the configuration are given.
    """

    hidden: Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
    reads: Reads
    causal: bool
    adapters: tuple[str, ...]
    options: Mapping[str, float]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a bool mask as what is added to attention scores.

    transformers' eager attention adds any 4-D mask as it is, also a boolean one, which then
    hides nothing; only the additive form means the same in every implementation.
    """
    hidden = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, hidden, hidden - 1e4)


def _dtype(backbone: nn.Module) -> torch.dtype:
    return next(p.dtype for p in backbone.parameters() if p.is_floating_point())


def _bert(backbone: Any, ids: Tensor, blocks: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401
    found: Tensor = backbone(
        input_ids=ids,
        attention_mask=additive(mask, _dtype(backbone)),
        token_type_ids=((blocks >= 0) & (blocks < FIRST_RULE)).long(),
        position_ids=positions,
    ).last_hidden_state
    return found


def _mpnet(backbone: Any, ids: Tensor, blocks: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401
    del blocks
    encoder = backbone.encoder
    distance = positions[:, None, :] - positions[:, :, None]
    bucket = encoder.relative_position_bucket(distance, num_buckets=backbone.config.relative_attention_num_buckets)
    table = encoder.relative_attention_bias.weight
    bias = table[bucket].permute(0, 3, 1, 2) + additive(mask, table.dtype)
    # As in RoBERTa, position 0 is the row behind the padding row.
    hidden: Tensor = backbone.embeddings(input_ids=ids, position_ids=positions + backbone.config.pad_token_id + 1)
    for layer in encoder.layer:
        hidden = layer(hidden, None, position_bias=bias)[0]
    return hidden


def _modernbert(backbone: Any, ids: Tensor, blocks: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401
    del blocks
    distance = (positions[:, None, :] - positions[:, :, None]).abs()[:, None]
    near = mask & (distance <= backbone.config.sliding_window)
    dtype = _dtype(backbone)
    masks = {"full_attention": additive(mask, dtype), "sliding_attention": additive(near, dtype)}
    found: Tensor = backbone(input_ids=ids, attention_mask=masks, position_ids=positions).last_hidden_state
    return found


def _deberta(backbone: Any, ids: Tensor, blocks: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    del blocks
    encoder = backbone.encoder
    distance = positions[:, :, None] - positions[:, None, :]
    if encoder.position_buckets > 0:
        distance = make_log_bucket_position(distance, encoder.position_buckets, encoder.max_relative_positions)
    embedded = backbone.embeddings(input_ids=ids, position_ids=positions)
    # transformers shares one table of distances over a batch; here every sequence has its own.
    rows = [
        encoder(embedded[b : b + 1], mask[b], relative_pos=distance[b : b + 1].long(), return_dict=True)
        for b in range(ids.shape[0])
    ]
    return torch.cat([row.last_hidden_state for row in rows])


def _decoder(backbone: Any, ids: Tensor, blocks: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ANN401
    conversation = (blocks >= 0) & (blocks < FIRST_RULE)
    length = conversation.sum(dim=1, keepdim=True)
    # Each rule goes on where the conversation ends, as if it were the only one.
    places = torch.where(conversation, positions - CONVERSATION_OFFSET, positions + length)
    found: Tensor = backbone(
        input_ids=ids,
        attention_mask=additive(mask, _dtype(backbone)),
        position_ids=places.clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    return found


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT = Family(_bert, "first", False, ("query", "key", "value", "dense"), _NO_DROPOUT)
_DECODER = Family(
    _decoder,
    "last",
    True,
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    {"attention_dropout": 0.0},
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "mpnet": Family(_mpnet, "first", False, ("q", "k", "v", "o", "dense"), _NO_DROPOUT),
    "modernbert": Family(_modernbert, "first", False, ("Wqkv", "Wo", "Wi"), {"attention_dropout": 0.0}),
    "deberta-v2": Family(_deberta, "first", False, ("query_proj", "key_proj", "value_proj", "dense"), _NO_DROPOUT),
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a backbone by its configuration's `model_type`.

    Raises:
        FamilyError: none reads this class.
    """
    found = FAMILIES.get(config.model_type)
    if found is None:
        raise FamilyError(f"backbone of type {config.model_type!r}; known types: {', '.join(sorted(FAMILIES))}")
    return found


def special_tokens(tokenizer: Tokenizer) -> tuple[str, str]:
    """Return the tokens that open a rule and every other piece.

    Raises:
        FamilyError: the tokenizer has none of the known pairs.
    """
    for cls, sep in _SPECIAL:
        if tokenizer.token_to_id(cls) is not None and tokenizer.token_to_id(sep) is not None:
            return cls, sep
    known = ", ".join(f"{cls} {sep}" for cls, sep in _SPECIAL)
    raise FamilyError(f"the tokenizer has none of these pairs of special tokens: {known}")
