"""Guards for LangChain: `GuardedChatModel(model=ChatOpenAI(), guard=Guard("support-desk"))` in place of the model.

`GuardRunnable` stands before or after a model in a chain, `GuardMiddleware` in an agent, `BestOfN` in place of a model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from csrm_guard_adapters.langchain_best_of_n import BestOfN
from csrm_guard_adapters.langchain_chat_model import GuardedChatModel
from csrm_guard_adapters.langchain_runnable import GuardRunnable

if TYPE_CHECKING:
    from csrm_guard_adapters.langchain_middleware import GuardMiddleware

__all__ = ["BestOfN", "GuardMiddleware", "GuardRunnable", "GuardedChatModel"]


def __getattr__(name: str) -> object:
    # Agents are another package than chat models, and not everyone has it.
    if name == "GuardMiddleware":
        return getattr(import_module("csrm_guard_adapters.langchain_middleware"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
