from csrm_guard.rows import parse_row
from csrm_guard_train.data import Authored
from csrm_guard_train.validation import rows_to_jsonl, validation_rows


def test_items_are_unsafe_as_often_as_safe(authored: Authored):
    rows = [row for row in validation_rows(authored, 0) if row.id.startswith("a1-")]
    assert sum(bool(row.label) for row in rows) * 2 == len(rows)


def test_each_text_of_an_item_is_both_safe_and_unsafe(authored: Authored):
    rows = {row.id: row for row in validation_rows(authored, 0)}
    item = authored.items[0]
    assert rows[f"{item.id}-violating"].messages == rows[f"{item.id}-lenient"].messages
    assert rows[f"{item.id}-violating"].label != rows[f"{item.id}-lenient"].label


def test_rows_survive_the_bulk_format(authored: Authored):
    rows = validation_rows(authored, 0)
    for row, data in zip(rows, rows_to_jsonl(rows), strict=True):
        again = parse_row(data, "here")
        assert (again.messages, again.label, again.scope) == (row.messages, row.label, row.scope)
        assert again.policy == row.policy
