"""Guard a LangChain agent, its model and its tools: python examples/langchain_agent.py (the server is scripted)."""

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from csrm_guard import Guard, Policy
from csrm_guard.checks import DenylistCheck
from csrm_guard.testing import ChatServer, Reply
from csrm_guard_adapters.langchain import GuardMiddleware

everywhere = ["prompt", "response", "tool_call", "tool_result"]
policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "defaults": {"fallback": "Let me stay with our own kettles."},
        "rules": [{"id": "no-competitors", "text": "Do not name other shops.", "stages": everywhere}],
    }
)
guard = Guard(policy, checks={"no-competitors": DenylistCheck(["Acme"])})


@tool
def find(word: str) -> str:
    """Find a product."""
    return "A kettle of Acme." if word == "kettle" else "A lamp."


answers = [
    Reply(tool_calls=(("find", '{"word": "kettle"}'),)),  # its result is withheld from the model
    Reply(("It keeps tea warm for an hour. Acme has a better one.",), piece=1),  # its second sentence never leaves
]
with ChatServer(*answers) as server:
    model = ChatOpenAI(model="any", base_url=server.url, api_key="none")
    agent = create_agent(model, [find], middleware=[GuardMiddleware(guard)])
    question = {"messages": [("user", "Is your kettle any good?")]}
    for message, _ in agent.stream(question, stream_mode="messages"):
        print(f"[{message.type}] {message.content}\n" if message.type == "tool" else message.content, end="")
print()
