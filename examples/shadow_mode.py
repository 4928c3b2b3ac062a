"""Try a policy on live traffic without stopping any of it: python examples/shadow_mode.py (the server is scripted)."""

import json
import tempfile
from collections import Counter
from pathlib import Path

from openai import OpenAI

from csrm_guard import Guard, Policy
from csrm_guard.audit import AuditLog
from csrm_guard.checks import DenylistCheck
from csrm_guard.testing import ChatServer
from csrm_guard_adapters.openai import guard_client

policy = Policy.from_dict(
    {
        "name": "kettle-shop",
        "rules": [{"id": "no-competitors", "text": "Do not name other shops.", "stages": ["response"]}],
    }
)
answers = ("It keeps tea warm.", "Acme has a better one.", "Yes, in red.", "No, but Acme does.")

with (
    tempfile.TemporaryDirectory() as folder,
    AuditLog(Path(folder) / "audit.jsonl") as log,
    ChatServer(*answers) as server,
):
    checks = {"no-competitors": DenylistCheck(["Acme"])}
    guard = Guard(policy, checks=checks, shadow=True, observers=[log])
    client = guard_client(OpenAI(base_url=server.url, api_key="none"), guard)
    for question in ("Is your kettle any good?", "A better one?", "In red?", "In green?"):
        reply = client.chat.completions.create(model="any", messages=[{"role": "user", "content": question}])
        print(question, reply.choices[0].message.content)  # nothing is stopped
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    print("would have been done:", Counter(row["would"] for row in rows if row["stages"] == ["response"]))
