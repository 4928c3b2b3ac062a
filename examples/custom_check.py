"""A rule that your own function decides, in shadow mode first: python examples/custom_check.py."""

from csrm_guard import Finding, Guard, Message, Policy

policy = Policy.from_dict(
    {"name": "shop", "rules": [{"id": "no-shouting", "text": "No words in capitals.", "stages": ["response"]}]}
)


def shouting(text: str, messages: tuple[Message, ...]) -> list[Finding]:
    words = [word for word in text.split() if len(word) > 3 and word.isupper()]
    return [Finding((text.index(word), text.index(word) + len(word))) for word in words]


for shadow in (True, False):
    guard = Guard(policy, checks={"no-shouting": shouting}, shadow=shadow)
    print(guard.check({"role": "assistant", "content": "This is FINE, thank you."}).summary())
