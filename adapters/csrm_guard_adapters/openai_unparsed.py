"""An answer that the SDK could not parse: its error holds the text, which is judged before the error is raised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openai import LengthFinishReasonError
from pydantic import ValidationError

from csrm_guard import Message
from csrm_guard_adapters.openai_formats import Format

__all__ = ["UNPARSED", "Unparsed"]

# What `parse` raises with an answer inside.
UNPARSED = (ValidationError, LengthFinishReasonError)


@dataclass(frozen=True, slots=True)
class Unparsed:
    """Stands where a reply would; `error`: one of `UNPARSED`."""

    error: Exception

    def read(self, form: Format) -> list[Message]:
        """Return what the error tells of the answer."""
        if isinstance(self.error, LengthFinishReasonError):
            return form.read(self.error.completion)
        assert isinstance(self.error, ValidationError)
        told: list[Any] = []
        for one in self.error.errors():
            told += [one["input"], *one["loc"]]
        return [Message("assistant", "\n".join(map(str, told)))]
