import math

import pytest
import torch

from csrm_guard_train.loss import classification, listwise, ordering


def test_the_order_is_satisfied_where_the_strict_rule_is_violated_more():
    strict, lenient = torch.tensor([2.0]), torch.tensor([-2.0])
    assert ordering(strict, lenient, 0.0) < ordering(lenient, strict, 0.0)


def test_equal_logits_cost_log_two():
    assert ordering(torch.zeros(3), torch.zeros(3), 0.0).item() == pytest.approx(math.log(2))


def test_a_margin_asks_for_more():
    more, less = torch.tensor([1.0]), torch.tensor([0.0])
    assert ordering(more, less, 1.0).item() == pytest.approx(math.log(2))


def test_classification_is_the_weighted_mean_of_log_losses():
    loss = classification(torch.tensor([0.0, 100.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx(math.log(2) / 4)


def test_listwise_is_the_cross_entropy_among_the_kept_rules():
    logits, labels = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    loss = listwise(logits, labels, torch.tensor([0, 0, 0]), 1)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-4)


def test_listwise_does_not_compare_across_examples():
    logits, labels = torch.tensor([0.0, 50.0]), torch.tensor([1.0, 0.0])
    assert listwise(logits, labels, torch.tensor([0, 1]), 2).item() == pytest.approx(0.0, abs=1e-4)


def test_listwise_is_zero_where_nothing_is_violated():
    assert listwise(torch.randn(3), torch.zeros(3), torch.tensor([0, 0, 1]), 2).item() == 0.0


def test_labels_that_nobody_trusts_cost_nothing():
    assert float(classification(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([0.0]))) == 0.0
