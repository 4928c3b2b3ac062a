"""A LangChain chat model that says what a test wrote, and the guard of these tests."""

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from csrm_guard import Guard, Policy
from csrm_guard.testing import KeywordRewardModel

STAGES = ["prompt", "response", "tool_call", "tool_result"]


def guard(action: str = "block", check: Any = None, **options: Any) -> Guard:
    rule = {"id": "bombs", "text": "No bombs.", "action": action, "stages": STAGES}
    policy = Policy.from_dict({"name": "p", "defaults": {"fallback": "Sorry."}, "rules": [rule]})
    return Guard(policy, KeywordRewardModel("bomb"), checks={"bombs": check} if check else None, **options)


class Scripted(BaseChatModel):
    """Says what it is told, word by word; the last answer is repeated."""

    answers: list[AIMessage] = [AIMessage("All is well. Goodbye now.")]  # noqa: RUF012
    asked: list[list[BaseMessage]] = []  # noqa: RUF012
    sent: list[str] = []  # noqa: RUF012

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        self.asked.append(messages)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs) -> Iterator[ChatGenerationChunk]:
        said = self._next(messages)
        for word in str(said.content).split(" "):
            self.sent.append(word)
            yield ChatGenerationChunk(message=AIMessageChunk(word + " "))
        for i, call in enumerate(said.tool_calls):
            chunk = {"name": call["name"], "args": json.dumps(call["args"]), "id": call["id"], "index": i}
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=[chunk]))
        usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=usage, chunk_position="last"))

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[convert_to_openai_tool(t) for t in tools], **kwargs)


def scripted(*answers: str | AIMessage) -> Scripted:
    said = [AIMessage(a) if isinstance(a, str) else a for a in answers]
    return Scripted(answers=said, asked=[], sent=[])
