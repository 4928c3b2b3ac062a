"""Guard the model of a LangChain agent: python examples/langchain_agent.py (its model is scripted)."""

from langchain.agents import create_agent
from langchain_core.language_models import GenericFakeChatModel

from csrm_guard import Guard, Policy
from csrm_guard.checks import DenylistCheck
from csrm_guard_adapters.langchain import GuardedChatModel

policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "defaults": {"fallback": "Let me stay with our own kettles."},
        "rules": [{"id": "no-competitors", "text": "Do not name other shops.", "stages": ["response"]}],
    }
)
guard = Guard(policy, checks={"no-competitors": DenylistCheck(["Acme"])})
inner = GenericFakeChatModel(messages=iter(["It keeps tea warm for an hour. Acme has a better one."]))
agent = create_agent(GuardedChatModel(model=inner, guard=guard), [])
question = {"messages": [("user", "Is your kettle any good?")]}
for message, _ in agent.stream(question, stream_mode="messages"):
    print(message.content, end="")
print()
