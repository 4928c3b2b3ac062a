"""NeMo Guardrails against the defects that concern it: regex rails on input and output."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import defects
from defects import ASK, BAD, CALL, CONTINUE, STREAM, Finding
from nemoguardrails import LLMRails, RailsConfig

from csrm_guard.testing import ChatServer, Reply

PACKAGES = ("nemoguardrails",)
CONFIG = """
models:
  - {{type: main, engine: openai, model: m, parameters: {{base_url: "{url}", api_key: none}}}}
rails:
  config:
    regex_detection:
      input: {{patterns: [{word}], case_insensitive: true}}
      output: {{patterns: [{word}], case_insensitive: true}}
  input: {{flows: [regex check input]}}
  output: {{flows: [regex check output], streaming: {{enabled: {stream}}}}}
passthrough: {tools}
"""


def run() -> dict[str, dict[str, Finding]]:
    """Return the findings by defect."""
    os.environ.setdefault("OPENAI_API_KEY", "none")
    return {"NeMo Guardrails": asyncio.run(_findings())}


async def _findings() -> dict[str, Finding]:
    prompt, answer = await _sent(BAD), await _answer(Reply(("a bomb",)))
    return {
        "control": Finding(prompt.holds and answer.holds, answer.seen),
        "arguments": await _answer(CALL, tools=True),
        "turns": await _sent(CONTINUE),
        "stream": await _stream(),
    }


def _rails(server: ChatServer, *, stream: bool = False, tools: bool = False) -> LLMRails:
    """Return rails; `tools`: in pass-through mode, without which the model's tool calls are dropped."""
    options = {"stream": str(stream).lower(), "tools": str(tools).lower()}
    made = CONFIG.format(url=server.url, word=defects.WORD, **options)
    return LLMRails(RailsConfig.from_content(yaml_content=made))


async def _sent(messages: list[Any]) -> Finding:
    with ChatServer("fine") as server:
        await _rails(server).generate_async(messages=messages)
        return Finding(not server.requests, "sent and answered" if server.requests else "refused")


async def _answer(reply: Reply, *, tools: bool = False) -> Finding:
    with ChatServer(reply) as server:
        found = await _rails(server, tools=tools).generate_async(messages=ASK, options={"output_vars": True})
    said = repr((found.response, found.tool_calls))
    return Finding(defects.WORD not in said, "delivered" if defects.WORD in said else "withheld")


async def _stream() -> Finding:
    with ChatServer(STREAM) as server:
        said = "".join([str(chunk) async for chunk in _rails(server, stream=True).stream_async(messages=ASK)])
    return Finding(defects.WORD not in said, "delivered" if defects.WORD in said else "withheld")
