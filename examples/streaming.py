"""Gate a stream: python examples/streaming.py (the server is a scripted one on loopback)."""

from openai import OpenAI

from csrm_guard import Guard, Policy
from csrm_guard.checks import DenylistCheck
from csrm_guard.testing import ChatServer, Reply
from csrm_guard_adapters.openai import guard_client, verdicts_of

policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "rules": [{"id": "no-competitors", "text": "Do not name other shops.", "stages": ["response"]}],
    }
)
guard = Guard(policy, checks={"no-competitors": DenylistCheck(["Acme"])})
answer = "It keeps tea warm for an hour. You can get a better one at Acme. And cheaper."

with ChatServer(Reply((answer,), piece=3)) as server:
    # A block is a value here: the choice ends with `content_filter`, and what came before it has been seen.
    client = guard_client(OpenAI(base_url=server.url, api_key="none"), guard, on_block="return")
    question = [{"role": "user", "content": "Is your kettle any good?"}]
    stream = client.chat.completions.create(model="any", messages=question, stream=True)
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
            print(f"[{choice.finish_reason}]" if choice.finish_reason else "", end="")
    print("\n" + "; ".join(verdict.summary() for verdict in verdicts_of(stream).answer if verdict))
    print(f"{server.streamed[0]} pieces were sent before the stream was closed.")
