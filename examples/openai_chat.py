"""Guard an OpenAI-style client: python examples/openai_chat.py (the server is a scripted one on loopback)."""

from openai import OpenAI

from csrm_guard import Blocked, Policy
from csrm_guard.checks import pii_check
from csrm_guard.guard import Guard
from csrm_guard.testing import ChatServer
from csrm_guard_adapters.openai import guard_client, verdicts_of

policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "rules": [{"id": "no-personal-data", "text": "No e-mail addresses or phone numbers.", "action": "redact"}],
    }
)
guard = Guard(policy, checks={"no-personal-data": pii_check("email", "phone")})

with ChatServer("Write to ann@example.com, she will help.") as server:
    client = guard_client(OpenAI(base_url=server.url, api_key="none"), guard)
    question = [{"role": "user", "content": "Who can repair my kettle?"}]
    try:
        reply = client.chat.completions.create(model="any", messages=question)
        print(reply.choices[0].message.content, verdicts_of(reply).endings)
    except Blocked as blocked:
        print(blocked.verdict.summary())
    for chunk in client.chat.completions.create(model="any", messages=question, stream=True):
        print(chunk.choices[0].delta.content or "", end="")
    print()
