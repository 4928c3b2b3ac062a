import gzip
import json
import re

import pytest

from csrm_guard import Guard, Message, Policy, ScoringError
from csrm_guard.bulk import _in_order, count_lines, score_file, score_row, worst
from csrm_guard.errors import RowError
from csrm_guard.rows import parse_row
from csrm_guard.testing import KeywordRewardModel, ScriptedRewardModel

MODEL = KeywordRewardModel("bomb")
POLICY = Policy.from_dict({"rules": [{"id": "a", "text": "No bombs."}, {"id": "b", "text": "No cake."}]})
ROWS = [{"id": f"row-{i}", "messages": "a bomb" if i % 3 == 0 else "bread"} for i in range(12)]
TALK = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "a bomb"},
    {"role": "assistant", "content": "no"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.jsonl"


def results(target):
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def score_lines(source, target, *lines, **options):
    source.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    score_file(source, target, options.get("model", MODEL), policy=options.get("policy", POLICY))
    return results(target)


def test_every_row_has_a_result_in_the_same_order(source, target):
    report = score_file(source, target, MODEL, policy=POLICY)
    assert [r["id"] for r in results(target)] == [row["id"] for row in ROWS]
    assert [r["allowed"] for r in results(target)] == [i % 3 != 0 for i in range(12)]
    assert (report.scored, report.resumed, report.errors) == (12, 0, 0)


def test_a_result_says_what_was_found(source, target):
    score_file(source, target, MODEL, policy=POLICY)
    first = results(target)[0]
    assert first["rules"] == {"a": 0.99, "b": 0.99}
    assert (first["model"], first["policy_hash"], first["windows"]) == ("keyword", POLICY.hash, 1)
    assert first["p_safe"] == pytest.approx(0.01)


def test_a_gz_file_is_scored_alike(source, target, tmp_path):
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    score_file(packed, target, MODEL, policy=POLICY)
    assert len(results(target)) == count_lines(packed) == 12


def test_a_run_torn_anywhere_ends_in_the_same_bytes(source, target):
    score_file(source, target, MODEL, policy=POLICY)
    whole = target.read_bytes()
    for cut in range(0, len(whole), 41):
        target.write_bytes(whole[:cut])
        score_file(source, target, MODEL, policy=POLICY)
        assert target.read_bytes() == whole


def test_a_resumed_run_scores_only_the_rest(source, target):
    score_file(source, target, MODEL, policy=POLICY)
    lines = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    model = ScriptedRewardModel([0.1] * 7)
    report = score_file(source, target, model, policy=POLICY)
    assert (report.scored, report.resumed, len(model.requests)) == (7, 5, 7)


def test_a_finished_run_is_left_as_it_is(source, target):
    score_file(source, target, MODEL, policy=POLICY)
    report = score_file(source, target, ScriptedRewardModel([]), policy=POLICY)
    assert (report.scored, report.resumed) == (0, 12)


def test_progress_counts_every_row(source, target):
    score_file(source, target, MODEL, policy=POLICY)
    target.write_bytes(target.read_bytes()[:-5])
    seen = []
    score_file(source, target, MODEL, policy=POLICY, progress=seen.append)
    assert seen == [11, 1]


@pytest.mark.parametrize(
    "foreign",
    [
        b'{"id": "other"}\n',
        b'{"id": "row-1", "allowed": true}\n',
        b"Dear diary,\n",
        b"Dear diary",
        b"[1, 2]\n",
        b"\xff\xfe\x00\x01\n",
        b"".join(b'{"id": "row-%d"}\n' % i for i in range(13)),
    ],
    ids=["other id", "other order", "prose", "prose without newline", "list", "binary", "more rows"],
)
def test_an_output_of_another_file_is_refused_and_kept(source, target, foreign):
    target.write_bytes(foreign)
    with pytest.raises(RowError, match=r"out\.jsonl: row \d+ is not of .*in\.jsonl; give another output file"):
        score_file(source, target, MODEL, policy=POLICY)
    assert target.read_bytes() == foreign


def test_an_output_that_cannot_be_written_is_named(source, tmp_path):
    with pytest.raises(RowError, match=r"out\.jsonl: cannot be written: No such file"):
        score_file(source, tmp_path / "none" / "out.jsonl", MODEL, policy=POLICY)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"id": "x", "mess\n', r"RowError: .*in\.jsonl:2: not a whole line of JSON"),
        ("[1]\n", r"RowError: .*in\.jsonl:2: expected a JSON object"),
        ("[" * 100_000 + "\n", r"RowError: .*in\.jsonl:2: not a whole line of JSON"),
        ({"id": "x"}, r"RowError: .*in\.jsonl:2: no messages"),
        ({"id": "x", "messages": "a" * 200_001}, "MessageError: .*at most 200000"),
        ({"id": "x", "messages": "hi", "label": "bad"}, r"RowError: .*in\.jsonl:2: label"),
        ({"id": "x", "messages": "hi", "violated": 5}, r"RowError: .*in\.jsonl:2: violated"),
        ({"id": "x", "messages": [{"role": {}}]}, r"RowError: .*in\.jsonl:2: messages\[0\]: unknown role"),
        (
            {"id": "x", "messages": "hi", "policy": {"extends": ["none.yaml"]}},
            "RowError: .*may extend built-in policies only",
        ),
    ],
    ids=["torn", "list", "nested", "no messages", "long", "label", "violated", "role", "policy"],
)
def test_a_wrong_row_is_an_error_row_between_its_neighbours(source, target, line, error):
    first, wrong, last = score_lines(source, target, ROWS[0], line, ROWS[1])
    assert (first["id"], last["id"]) == ("row-0", "row-1")
    assert "allowed" not in wrong
    assert re.match(error, wrong["error"])


def test_errors_are_counted(source, target):
    source.write_text('{"id": "x"}\n' + json.dumps(ROWS[0]) + "\n")
    assert score_file(source, target, MODEL, policy=POLICY).errors == 1


def test_an_id_that_is_no_text_of_utf8_is_kept(source, target):
    found = score_lines(source, target, '{"id": "\\ud800", "messages": "bread"}\n', ROWS[1])
    assert [r["id"] for r in found] == ["\ud800", "row-1"]


def test_a_model_that_fails_makes_an_error_row(source, target):
    model = ScriptedRewardModel([ScoringError("it broke"), 0.1])
    first, second = score_lines(source, target, ROWS[0], ROWS[1], model=model)
    assert first == {"id": "row-0", "error": "ScoringError: it broke", "allowed": False}
    assert second["allowed"]


def test_a_rows_own_policy_goes_before_the_given_one(source, target):
    own = {"rules": [{"id": "own", "text": "x"}]}
    first, second = score_lines(source, target, ROWS[0] | {"policy": own}, ROWS[1])
    assert (list(first["rules"]), list(second["rules"])) == (["own"], ["a", "b"])


def test_a_row_without_any_policy_is_an_error_with_the_way_out(source, target):
    (found,) = score_lines(source, target, ROWS[0], policy=None)
    assert found["error"].endswith("in.jsonl:1: the row has no policy; give it one, or pass --policy")


def test_many_policies_are_scored_each_by_its_own(source, target):
    rows = [{"id": str(i), "messages": "hi", "policy": {"rules": [{"id": f"r{i}", "text": "x"}]}} for i in range(300)]
    assert [list(found["rules"]) for found in score_lines(source, target, *rows)] == [[f"r{i}"] for i in range(300)]


def test_blank_lines_have_no_result(source, target):
    assert len(score_lines(source, target, ROWS[0], "\n", "  \n", ROWS[1])) == 2


def test_a_source_that_is_not_utf8_is_refused(source, target):
    source.write_bytes(b"caf\xe9\n")
    with pytest.raises(RowError, match=r"in\.jsonl:1: not UTF-8"):
        score_file(source, target, MODEL, policy=POLICY)


def test_any_assistant_turn_may_break_a_rule():
    row = parse_row({"messages": TALK, "scope": "any assistant turn"}, "f:1")
    assert not score_row(Guard(POLICY, MODEL), row).allowed


def test_the_last_message_alone_is_judged_by_default():
    assert score_row(Guard(POLICY, MODEL), parse_row({"messages": TALK}, "f:1")).allowed


def test_the_worst_of_several_turns_has_each_rule_at_its_highest():
    guard = Guard(POLICY, ScriptedRewardModel([{"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.6}]))
    verdict = worst(guard.score([Message("user", "one"), Message("user", "two")]))
    assert {rule.id: rule.q for rule in verdict.rules} == {"a": 0.9, "b": 0.6}
    assert (verdict.p_safe, verdict.coverage.windows) == (pytest.approx(0.1), 2)


def test_rows_side_by_side_give_the_same_file(source, tmp_path):
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    score_file(source, one, MODEL, policy=POLICY)
    score_file(source, many, MODEL, policy=POLICY, workers=4)
    assert one.read_bytes() == many.read_bytes()


def test_no_more_is_read_ahead_than_keeps_the_workers_busy():
    read = []
    results = _in_order(lambda line: {"id": line[0]}, ((read.append(i), (i, ""))[1] for i in range(1000)), 2)
    assert [next(results)["id"] for _ in range(3)] == [0, 1, 2]
    assert len(read) < 50
    results.close()
