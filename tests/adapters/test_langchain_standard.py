"""LangChain's own integration suite on a guarded `ChatOpenAI`, which talks to a scripted server on loopback.

Skipped:
* `test_image_inputs`, `test_image_tool_message`, `test_pdf_inputs`, `test_pdf_tool_message`, `test_audio_inputs`
  download a picture, a document or a recording;
* `test_anthropic_inputs` sends blocks of another vendor;
* `test_stream_time` measures against recorded traffic.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from csrm_guard.testing import ChatServer, Reply
from csrm_guard_adapters.langchain import GuardedChatModel
from tests.scripted import guard

ChatOpenAI = pytest.importorskip("langchain_openai").ChatOpenAI


def value_of(schema: dict[str, Any], asked: str) -> Any:
    """Return a value of a JSON schema; a name or a number of the question where there is one."""
    kind = schema.get("type") or schema.get("anyOf", [{}])[0].get("type")
    if kind == "object":
        return {name: value_of(inner, asked) for name, inner in schema.get("properties", {}).items()}
    if kind in ("integer", "number"):
        return int((re.findall(r"\d+", asked) or ["1"])[0])
    return (re.findall(r"'(.+?)'", asked) or ["a cat"])[0]


def answer(body: dict[str, Any]) -> Reply:
    """Answer as a model does that calls the first tool, or fills in the form, when it may."""
    last = body["messages"][-1]
    asked = last["content"] if isinstance(last["content"], str) else json.dumps(last["content"])
    choice = body.get("tool_choice")
    tools = [tool["function"] for tool in body.get("tools", ())]
    if tools and (last["role"] == "user" or choice):
        wanted = choice["function"]["name"] if isinstance(choice, dict) else tools[0]["name"]
        tool = next(tool for tool in tools if tool["name"] == wanted)
        return Reply(tool_calls=((wanted, json.dumps(value_of(tool["parameters"], asked))),))
    form = body.get("response_format")
    if form:
        jokes = {"type": "object", "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}
        schema = form["json_schema"]["schema"] if form["type"] == "json_schema" else jokes
        return Reply((json.dumps(value_of(schema, "")),))
    return Reply(("Hello there! All is well with me. Ask away.",))


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(answer) as found:
        yield found


# Of the inner model and its SDK: the class that is parsed is not in OpenAI's own types; pydantic 1 needs tools.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings", "ignore:Received a Pydantic BaseModel V1 schema")
class TestStandard(ChatModelIntegrationTests):
    """The suite; with the same model unguarded it warns and skips alike."""

    @pytest.fixture(autouse=True)
    def at(self, server: ChatServer) -> None:
        type(self).url = server.url

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GuardedChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        inner = ChatOpenAI(model="scripted", base_url=self.url, api_key="none", stream_usage=True, max_retries=0)
        return {"model": inner, "guard": guard()}

    supports_json_mode = True
    supports_model_override = True
    model_override_value = "another"
