import pytest

from csrm_guard import Guard, Message, Policy, PolicyError
from csrm_guard.checks import DenylistCheck, Finding, PatternCheck, find_all, pii_check
from csrm_guard.messages import ToolCall
from csrm_guard.testing import KeywordRewardModel


def policy(**rule: object) -> Policy:
    stages = ["prompt", "response", "tool_call"]
    return Policy.from_dict({
        "name": "shop",
        "rules": [{"id": "bombs", "text": "No bombs."}, {"id": "pii", "text": "No PII.", "stages": stages, **rule}],
    })  # fmt: skip


def guard(check: object, **rule: object) -> Guard:
    return Guard(policy(**rule), KeywordRewardModel("bomb"), checks={"pii": check})  # type: ignore[dict-item]


def broken(text: str, messages: tuple[Message, ...]) -> list[Finding]:
    raise OSError("no list")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write to jo.doe+x@example.co.uk today", "jo.doe+x@example.co.uk"),
        ("card 4111 1111 1111 1111.", "4111 1111 1111 1111"),
        ("IBAN GB82 WEST 1234 5698 7654 32 please", "GB82 WEST 1234 5698 7654 32"),
        ("ssn 123-45-6789", "123-45-6789"),
        ("call (020) 7946 0958 now", "(020) 7946 0958"),
        ("call +49 151 2345 6789 now", "+49 151 2345 6789"),
        ("host 192.168.0.17 is down", "192.168.0.17"),
    ],
)
def test_personal_data_is_found_where_it_stands(text: str, found: str):
    assert [text[slice(*f.span)] for f in pii_check()(text)] == [found]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "GB83 WEST 1234 5698 7654 32",
        "version 1.2.3",
        "in 1999 2000 people",
        "a @ b",
        "300.1.1.1",
    ],
)
def test_what_only_looks_like_personal_data_is_left_alone(text: str):
    assert pii_check("card", "iban", "email", "ipv4")(text) == []


def test_only_the_kinds_asked_for_are_found():
    assert pii_check("email")("123-45-6789") == []


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="no kind shoe; there are email"):
        pii_check("shoe")


def test_a_denylist_matches_whole_words_in_any_case():
    check = DenylistCheck(["Acme Corp", "beta"])
    text = "ACME  corp sells beta, not betamax"
    assert [text[slice(*f.span)] for f in check(text)] == ["ACME  corp", "beta"]


@pytest.mark.parametrize("phrases", [[], ["a", " "]])
def test_an_empty_denylist_is_an_error(phrases: list[str]):
    with pytest.raises(ValueError, match="denylist needs phrases"):
        DenylistCheck(phrases)


def test_a_broken_pattern_is_named():
    with pytest.raises(ValueError, match="pattern 'x'"):
        PatternCheck({"x": "("})


@pytest.mark.parametrize(("span", "q"), [((2, 1), 1.0), ((-1, 1), 1.0), ((0, 1), 1.1), ((0, 1), float("nan"))])
def test_a_finding_outside_its_range_is_an_error(span: tuple[int, int], q: float):
    with pytest.raises(ValueError, match="a finding needs"):
        Finding(span, q)


def test_a_finding_beyond_the_text_is_an_error():
    with pytest.raises(ValueError, match="in a text of 2"):
        find_all(lambda text, messages: [Finding((0, 9))], (Message("user", "hi"),))


def test_a_check_decides_its_rule():
    verdict = guard(pii_check()).check("mail a@b.com")
    (rule,) = verdict.violated
    assert (rule.id, rule.q, rule.spans, rule.exact) == ("pii", 1.0, ((5, 12),), True)
    assert verdict.p_safe == 0.0


def test_the_model_decides_the_other_rules():
    assert [rule.id for rule in guard(pii_check()).check("a bomb").violated] == ["bombs"]


def test_a_finding_below_the_threshold_triggers_nothing():
    verdict = guard(lambda text, messages: [Finding((0, 1), 0.4)]).check("mail")
    assert verdict.allowed
    assert verdict.p_safe == pytest.approx(0.6)


def test_tool_arguments_are_checked():
    call = Message("assistant", "", (ToolCall("send", '{"to": "a@b.com"}'),))
    assert not guard(pii_check()).check([call]).allowed


def test_a_check_sees_the_conversation():
    seen = []

    def check(text: str, messages: tuple[Message, ...]) -> list[Finding]:
        seen.append([m.content for m in messages])
        return []

    guard(check).check([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
    assert seen == [["one", "two"]]


def test_a_failing_check_refuses():
    verdict = guard(broken).check("hello")
    assert not verdict.allowed
    assert verdict.degraded
    assert verdict.error == "check pii: OSError: no list"


def test_a_failing_check_may_be_overlooked_by_its_rule():
    verdict = guard(broken, on_error="observe").check("hello")
    assert verdict.allowed
    assert verdict.degraded


def test_what_a_check_finds_counts_where_the_model_fails():
    lenient = Policy.from_dict({
        "name": "shop",
        "defaults": {"on_error": "observe"},
        "rules": [{"id": "bombs", "text": "No bombs."}, {"id": "pii", "text": "No PII.", "action": "redact"}],
    })  # fmt: skip

    class Failing(KeywordRewardModel):
        def score(self, requests):
            raise OSError("gone")

    verdict = Guard(lenient, Failing(), checks={"pii": pii_check()}).check("a@b.com")
    assert verdict.action == "redact"
    assert not verdict.allowed


def test_a_policy_of_checks_needs_no_model():
    only = Policy.from_dict({"name": "p", "rules": [{"id": "pii", "text": "No PII."}]})
    made = Guard(only, checks={"pii": pii_check()})
    assert made.model.id == "checks-only"
    assert not made.check("a@b.com").allowed
    assert made.check("hello").allowed


def test_a_check_for_no_rule_is_an_error():
    with pytest.raises(PolicyError, match="no rule 'pi' to decide; there are bombs, pii"):
        Guard(policy(), KeywordRewardModel(), checks={"pi": pii_check()})
