"""A policy file of your own, extending a built-in one, with thresholds and actions per rule."""

import tempfile
from pathlib import Path

from csrm_guard import Guard, Policy

YAML = """
name: museum-guide
setting: A city museum's guide for visitors of all ages.
extends: [baseline-harms]
defaults: {threshold: 0.6, action: rewrite}
rules:
  - id: no-prices
    text: Never state ticket prices; point to the ticket desk or the website.
    stages: [response]
  - id: cite-room
    text: Name the room in which an exhibit stands whenever you speak of one.
    stance: require
    stages: [response]
    action: observe
  - id: battle-history
    text: Battles and wounds may be described as far as an exhibit shows them.
    stance: permit
"""

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "museum.yaml"
    path.write_text(YAML, encoding="utf-8")
    policy = Policy.from_file(path)

question = {"role": "user", "content": "How much is a family ticket?"}
answer = {"role": "assistant", "content": "A family ticket is 28 euros at the desk."}
verdict = Guard(policy).check([question, answer])
print(policy.name, policy.hash, verdict.summary())
for rule in verdict.rules[:3]:
    print(f"  {rule.id:20} q={rule.q:.2f} threshold={rule.threshold} -> {rule.action}")
