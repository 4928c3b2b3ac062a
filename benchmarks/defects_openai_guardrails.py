"""openai-guardrails, set up as its documentation shows: a keyword filter, or a check of one's own."""

import asyncio
from typing import Any

import defects
from guardrails import GuardrailsAsyncOpenAI, GuardrailsOpenAI, GuardrailTripwireTriggered
from guardrails.registry import default_spec_registry
from guardrails.types import GuardrailResult
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from csrm_guard.testing import ChatServer

__all__ = ["GuardrailTripwireTriggered", "make"]


class NoConfig(BaseModel):
    pass


async def late(ctx: Any, data: str, config: NoConfig) -> GuardrailResult:
    await asyncio.sleep(0.3)
    return GuardrailResult(tripwire_triggered=defects.WORD in data, info={})


async def failing(ctx: Any, data: str, config: NoConfig) -> GuardrailResult:
    raise OSError("the check is down")


for name, check in (("late", late), ("failing", failing)):
    default_spec_registry.register(name=name, check_fn=check, description=name, media_type="text/plain")


def make(server: ChatServer, cls: type[Any] = OpenAI, *, fails: bool = False, beside: bool = False) -> Any:
    """Return a client with the word as a keyword on input and output; `beside`: with a check that takes its time."""
    named: dict[str, Any] = {"name": "Keyword Filter", "config": {"keywords": [defects.WORD]}}
    if fails or beside:
        named = {"name": "failing" if fails else "late", "config": {}}
    stages = ("input",) if beside else ("input", "output")
    config = {"version": 1, **{stage: {"version": 1, "guardrails": [named]} for stage in stages}}
    made = GuardrailsAsyncOpenAI if cls is AsyncOpenAI else GuardrailsOpenAI
    return made(config=config, api_key="none", base_url=server.url, max_retries=0)
