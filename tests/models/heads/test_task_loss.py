import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from models.heads.task_loss import Imbalance, TaskLoss

UNKNOWN = float("nan")
EVEN = Imbalance(weighting="none")
LABELS = {"single_label": torch.tensor([[0.0], [2.0], [1.0], [2.0]]),
          "multi_label": torch.tensor([[1, 0, UNKNOWN], [UNKNOWN, UNKNOWN, 1], [0, 1, 1], [UNKNOWN, 0, UNKNOWN]]),
          "regression": torch.tensor([[1.0, 20, 5], [UNKNOWN, 40, 5], [3.0, UNKNOWN, UNKNOWN], [2.0, 10, 9]])}


def predictions() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3)


def test_an_unknown_label_is_neither_yes_nor_no():
    said, labels = predictions(), LABELS["multi_label"]
    known = ~labels.isnan()
    loss = TaskLoss("multi_label", 3)(said, labels)
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(said[known], labels[known]))
    other = said.clone()
    other[~known] += 5
    assert torch.equal(TaskLoss("multi_label", 3)(other, labels), loss)
    nothing = torch.full((2, 1), UNKNOWN)
    assert float(TaskLoss("single_label", 3)(said[:2], nothing)) == 0
    half = torch.tensor([[1.0], [UNKNOWN], [0.0], [UNKNOWN]])
    torch.testing.assert_close(TaskLoss("single_label", 3)(said, half),
                               cross_entropy(said[::2], torch.tensor([1, 0])))


def test_numbers_are_compared_in_deviations_of_the_training_labels_and_answered_in_their_units():
    said, labels = predictions(), LABELS["regression"]
    loss = TaskLoss("regression", 3)
    loss.fit(labels, EVEN)
    errors = []
    for column in range(3):
        known = labels[~labels[:, column].isnan(), column]
        mean, std = known.mean(), known.std(correction=0)
        own = (said[~labels[:, column].isnan(), column] * std + mean - known) / std
        errors.append(own.square())
        torch.testing.assert_close(loss.in_label_units(said)[:, column], said[:, column] * std + mean)
    torch.testing.assert_close(loss.eval()(said, labels), torch.cat(errors).mean())


def test_smoothed_labels_are_torchs():
    said, labels = predictions(), LABELS["single_label"]
    expected = cross_entropy(said, labels[:, 0].long(), label_smoothing=0.2)
    torch.testing.assert_close(TaskLoss("single_label", 3, label_smoothing=0.2)(said, labels), expected)


@pytest.mark.parametrize(("weighting", "expected"), [("none", [1, 1, 1]), ("balanced", [6 / 9, 6 / 6, 6 / 3]),
                                                     ("sqrt", [(2 / 3) ** 0.5, 1, 2**0.5])])
def test_classes_weigh_by_how_rare_they_are_among_known_labels(weighting, expected):
    loss = TaskLoss("single_label", 3)
    loss.fit(torch.tensor([[0.0], [0], [0], [1], [1], [2], [UNKNOWN], [UNKNOWN]]), Imbalance(weighting=weighting))
    assert loss.weight.tolist() == pytest.approx(expected)


def test_a_finding_weighs_by_its_noes_per_yes_and_no_class_more_than_the_limit():
    loss = TaskLoss("multi_label", 2)
    column = [1.0] + [0.0] * 8 + [UNKNOWN] * 3
    loss.fit(torch.tensor([column, [1.0] * 6 + [0.0] * 6]).T, Imbalance(limit=5))
    assert loss.weight.tolist() == pytest.approx([5, 1])
    loss.fit(torch.tensor([column, [1.0] * 6 + [0.0] * 6]).T, Imbalance())
    assert loss.weight.tolist() == pytest.approx([8, 1])
    single = TaskLoss("single_label", 3)
    single.fit(torch.tensor([[0.0]] * 98 + [[1.0], [1.0]]), Imbalance(limit=3))
    assert single.weight.tolist() == pytest.approx([100 / 196, 3, 3]), "a class without a row has no infinite weight"


@pytest.mark.parametrize("kind", LABELS)
def test_micro_batches_add_up_to_their_batch_wherever_labels_are_unknown(kind):
    said, labels = predictions(), LABELS[kind]
    loss = TaskLoss(kind, 3)
    loss.fit(labels, EVEN)
    parts = torch.stack([loss(said[i:i + 1], labels[i:i + 1]) for i in range(4)])
    torch.testing.assert_close(parts.mean(), loss(said, labels))
    torch.testing.assert_close(loss.eval()(said, labels), parts.mean())
    assert math.isfinite(float(loss(said[:1], labels[:1])))


def test_weights_of_classes_are_1_in_the_mean_over_training_rows_also_where_a_class_has_none():
    labels = torch.tensor([[0.0]] * 6 + [[2.0]] * 2)
    loss = TaskLoss("single_label", 3)
    loss.fit(labels, Imbalance())
    assert float(loss.weight[labels[:, 0].long()].mean()) == pytest.approx(1)
