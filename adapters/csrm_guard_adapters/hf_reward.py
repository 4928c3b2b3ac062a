"""A reward model of transformers as helpfulness: `best_of_n(..., helpfulness=hf_helpfulness("models/reward"))`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csrm_guard import Message

try:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError('hf_helpfulness needs torch and transformers: pip install "csrm-guard[train]"') from exc

__all__ = ["RewardModelHelpfulness", "hf_helpfulness"]

_ROLES = {"developer": "system"}


class RewardModelHelpfulness:
    """Score candidates by the one logit of a sequence classifier; higher is more helpful.

    A tokenizer with a chat template is given the conversation, any other the conversation and the answer as a pair.
    What is too long loses its oldest turns; an answer that is too long by itself is scored by its beginning.

    Args:
        model: with one label.
        tokenizer: the model's.
        batch_size: candidates scored at a time.
        max_tokens: what the model reads.
        sigmoid: map the logit to (0, 1), for objectives that want H >= 0.

    Raises:
        ValueError: the model has another number of labels.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int = 8, max_tokens: int | None = None, sigmoid: bool = False
    ) -> None:
        if model.config.num_labels != 1:
            raise ValueError(f"a reward model has 1 label, this one has {model.config.num_labels}")
        limits = (max_tokens, tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self._model, self._tokenizer, self._sigmoid = model.eval(), tokenizer, sigmoid
        # Without a padding token nothing can be padded: one at a time.
        self._batch_size = batch_size if tokenizer.pad_token is not None else 1
        self._max_tokens = min(limit for limit in limits if limit)
        self._lock = threading.Lock()  # a fast tokenizer is not for two threads

    def __call__(self, messages: tuple[Message, ...], candidates: Sequence[str], /) -> list[float]:
        """Return one score per candidate."""
        scores: list[float] = []
        for start in range(0, len(candidates), self._batch_size):
            with self._lock:
                rows = [self._encoded(messages, text) for text in candidates[start : start + self._batch_size]]
                batch = rows[0] if len(rows) == 1 else self._tokenizer.pad(rows)
            inputs = {
                name: torch.tensor(values if len(rows) > 1 else [values], device=self._model.device)
                for name, values in batch.items()
            }
            with torch.inference_mode():
                logits = self._model(**inputs).logits[:, 0].float()  # (B,)
            scores += (logits.sigmoid() if self._sigmoid else logits).tolist()
        return scores

    def _encoded(self, messages: tuple[Message, ...], candidate: str) -> dict[str, list[int]]:
        turns = [i for i, message in enumerate(messages) if i == 0 or message.role == "user"]
        row: dict[str, list[int]] = {}
        for start in turns or [0]:
            row = self._row(messages[start:], candidate)
            if len(row["input_ids"]) <= self._max_tokens:
                return row
        return {name: values[: self._max_tokens] for name, values in row.items()}

    def _row(self, messages: Sequence[Message], candidate: str) -> dict[str, list[int]]:
        if self._tokenizer.chat_template is None:
            prompt = "\n".join(message.content for message in messages)
            return dict(self._tokenizer(prompt, candidate))
        talk = [{"role": _ROLES.get(m.role, m.role), "content": m.content} for m in messages]
        text = self._tokenizer.apply_chat_template([*talk, {"role": "assistant", "content": candidate}], tokenize=False)
        return dict(self._tokenizer(text, add_special_tokens=False))


def hf_helpfulness(
    model: Any,
    tokenizer: Any = None,
    *,
    batch_size: int = 8,
    max_tokens: int | None = None,
    sigmoid: bool = False,
    device: str = "cpu",
) -> RewardModelHelpfulness:
    """Return a reward model as H. Nothing is downloaded.

    Args:
        model: a folder (or the name of a model that is in the local cache), or a model.
        tokenizer: the model's; None: the one beside it.
        batch_size: candidates scored at a time.
        max_tokens: what the model reads; None: as much as it can.
        sigmoid: map the logit to (0, 1), for objectives that want H >= 0.
        device: where a model that is loaded here runs.

    Raises:
        OSError: there is no such model.
        ValueError: it has not one label, or a model is given without a tokenizer.
    """
    if isinstance(model, str | Path):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(model, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(model, local_files_only=True).to(device)
    elif tokenizer is None:
        raise ValueError("hf_helpfulness needs the tokenizer of a model that is given as such")
    return RewardModelHelpfulness(model, tokenizer, batch_size=batch_size, max_tokens=max_tokens, sigmoid=sigmoid)
