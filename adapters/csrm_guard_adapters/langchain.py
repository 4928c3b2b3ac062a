"""Guards for LangChain: `GuardedChatModel(model=ChatOpenAI(), guard=Guard("support-desk"))` in place of the model.

`GuardRunnable` stands before or after a model in a chain, `GuardMiddleware` in an agent, `BestOfN` in place of a model.
"""

from __future__ import annotations

from csrm_guard_adapters.langchain_chat_model import GuardedChatModel
from csrm_guard_adapters.langchain_runnable import GuardRunnable

__all__ = ["GuardRunnable", "GuardedChatModel"]
