import socket
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("presidio_analyzer")

from csrm_guard import Guard, Policy
from csrm_guard_adapters.presidio import PresidioCheck, presidio_check
from tests.fresh import python


@pytest.fixture(scope="module")
def check() -> PresidioCheck:
    return presidio_check()


def found(check: PresidioCheck, text: str) -> list[str]:
    return [text[slice(*finding.span)] for finding in check(text) if finding.q >= 0.4]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Write to ann@example.com now.", "ann@example.com"),
        ("My card is 4111 1111 1111 1111, thanks.", "4111 1111 1111 1111"),
        ("Pay to GB82 WEST 1234 5698 7654 32 please.", "GB82 WEST 1234 5698 7654 32"),
        ("Call +1 212 555 0123 today.", "+1 212 555 0123"),
        ("It comes from 192.168.0.1, they say.", "192.168.0.1"),
    ],
)
def test_personal_data_with_a_form_is_found(check: PresidioCheck, text: str, place: str):
    assert place in found(check, text)


@pytest.mark.parametrize(
    "text", ["The kettle holds 1.7 litres.", "It is a 4111 1111 1111 1112.", "Not an address: a@b.", ""]
)
def test_other_texts_hold_none(check: PresidioCheck, text: str):
    assert found(check, text) == []


def test_links_and_dates_are_found_on_request(check: PresidioCheck):
    text = "See https://example.com since 2024-05-17."
    assert found(check, text) == []
    assert found(presidio_check("URL"), text) == ["https://example.com"]


def test_what_is_found_is_redacted(check: PresidioCheck):
    rule = {"id": "no-pii", "text": "No personal data.", "action": "redact", "threshold": 0.4}
    guard = Guard(Policy.from_dict({"name": "p", "rules": [rule]}), checks={"no-pii": check})
    verdict = guard.check({"role": "assistant", "content": "Write to ann@example.com now."})
    assert (verdict.action, verdict.rules[0].spans) == ("redact", ((9, 24),))


def test_an_unknown_entity_is_an_error():
    with pytest.raises(ValueError, match=r"finds no PERSONS; it finds .*EMAIL_ADDRESS"):
        presidio_check("PERSONS")


@dataclass
class Result:
    start: int
    end: int
    score: float


class Own:
    """An analyzer of the user's own, which knows one name."""

    def analyze(self, text: str, language: str, entities: Any = None) -> list[Result]:
        assert (language, entities) == ("de", ["PERSON"])
        at = text.find("Anna")
        return [] if at < 0 else [Result(at, at + 4, 0.85)]

    def get_supported_entities(self, language: str | None = None) -> list[str]:
        return ["PERSON", "DATE_TIME"]


def test_an_analyzer_of_the_users_own_is_asked():
    (finding,) = presidio_check(analyzer=Own(), language="de")("Frag Anna.")
    assert (finding.span, finding.q) == ((5, 9), 0.85)


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert found(presidio_check(), "Write to ann@example.com now.") == ["ann@example.com"]


def test_without_presidio_the_error_names_the_fix():
    code = (
        "import sys; sys.modules['presidio_analyzer'] = None\n"
        "from csrm_guard_adapters.presidio import presidio_check\npresidio_check()"
    )
    assert 'pip install "csrm-guard[presidio]"' in python(code).stderr
