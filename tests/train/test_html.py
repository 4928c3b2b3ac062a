"""The page about an evaluation: one file, all numbers, no network."""

import re

import pytest

from csrm_guard_train.html import page

TABLE = {"title": "Accuracy & controls", "head": ["", "auroc"], "rows": [["real policy", "0.9"], ["a <b>", "0.5"]]}


def make_found(model: str = "m@1", policies: int = 2) -> dict:
    scores = [
        {"id": str(i), "label": "unsafe" if i % 2 else "safe", "p_unsafe": (i % 2 * 50 + i) / 100, "p_raw": 0.5}
        for i in range(40)
    ]
    report = {"n": 20.0, "accuracy": 0.75}
    return {
        "model": model,
        "seed": 0,
        "scores": scores,
        "policies": {f"bank {i}": report for i in range(policies)},
        "real": {"auroc": 0.9},
        "ms_per_check": 12.0,
    }


@pytest.fixture(scope="module")
def html() -> str:
    return page("Dev rows", make_found(), [TABLE], [make_found("other@2")])


def test_the_page_needs_nothing_from_elsewhere(html: str):
    assert not re.search(r"""(src|href)=["']?https?:|@import|<script|<link""", html)


def test_all_four_plots_are_drawn(html: str):
    assert html.count("<svg") == 4


def test_every_cell_of_a_table_is_shown_as_text(html: str):
    assert "<td>a &lt;b&gt;</td>" in html
    assert "Accuracy &amp; controls" in html


def test_the_frontier_names_every_model(html: str):
    assert "m@1" in html.split("<svg")[-1]
    assert "other@2" in html.split("<svg")[-1]


def test_policies_beyond_what_can_be_read_are_counted():
    assert "40 of 55 policies" in page("t", make_found(policies=55), [])


def test_equal_results_give_equal_pages(html: str):
    assert page("Dev rows", make_found(), [TABLE], [make_found("other@2")]) == html
