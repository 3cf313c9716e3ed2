"""Answers to samples that are looked at together: what is said of them, what they depend on, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from models.test_time.entropy import Batch, Tent
from models.test_time.lame import Lame
from models.test_time.statistics import Norm
from pipelines.prediction.test_time import adapted, batches_of, way_of
from pipelines.weights.tuned_checkpoints import probabilities
from tests.models.test_time.models import samples, tuned

WAYS = [Norm(), Tent(), Tent(episodic=True), Lame()]


def in_batches(x: Tensor) -> Callable[[int], Iterator[Batch]]:
    return lambda size: ((x[first:last], None) for first, last in batches_of(len(x), size))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.kind)
@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("kind", ["xray", "points"])
def test_every_way_gives_probabilities_and_leaves_the_model_as_it_was(kind, task, way):
    model, x = tuned(kind, task), samples(kind, 70)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = adapted(model, 1.5, in_batches(x), way)
    with torch.no_grad():
        plain = probabilities(task, model(x), 1.5).numpy()
    assert found.answers.shape == (70, 3) and (found.answers >= 0).all() and (found.answers <= 1).all()
    assert np.abs(found.answers - plain).max() > 1e-4
    assert found.said.startswith(way.kind)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_batch_norms_says_that_its_input_channels_were_measured():
    assert "no batch norms" in adapted(tuned(), 1.0, in_batches(samples()), Norm()).said
    assert "batch norms were measured" in adapted(tuned("points"), 1.0, in_batches(samples("points")), Norm()).said


def test_input_channels_measured_anew_undo_a_shift_of_all_samples():
    model, x = tuned(), samples(count=200)
    x = (x - x.mean()) / x.std()
    with torch.no_grad():
        plain = probabilities("single_label", model(x), 1.0).numpy()
    shifted = adapted(model, 1.0, in_batches(1.6 * x - 2.0), Norm(source_weight=0)).answers
    np.testing.assert_allclose(shifted, plain, atol=1e-4)


def test_norm_and_lame_do_not_depend_on_the_order_of_the_samples():
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    for kind in ("xray", "points"):
        model, x = tuned(kind), samples(kind, 70)
        for way in (Norm(), Lame()):
            one, other = (adapted(model, 1.0, in_batches(each), way).answers for each in (x, x[order]))
            np.testing.assert_allclose(one[order.numpy()], other, atol=2e-5)


@pytest.mark.parametrize("way", [Tent(), Lame()], ids=lambda way: way.kind)
def test_a_regression_is_refused_where_it_means_nothing(way):
    with pytest.raises(ValueError, match=f"{way.kind}: found a regression"):
        adapted(tuned(task="regression"), 1.0, in_batches(samples()), way)


def test_a_regression_is_answered_in_the_units_of_its_labels_under_norm():
    model = tuned(task="regression")
    model.loss.mean.fill_(40.0)
    model.loss.std.fill_(7.0)
    found = adapted(model, 1.0, in_batches(samples()), Norm()).answers
    assert 10 < found.mean() < 70


def test_batches_are_as_few_as_can_be_and_none_is_left_with_one_sample():
    for count in range(2, 200):
        batches = batches_of(count, 64)
        sizes = [last - first for first, last in batches]
        assert sum(sizes) == count and max(sizes) <= 64 and min(sizes) >= 2 and len(sizes) == -(-count // 64)
        assert [first for first, _ in batches[1:]] == [last for _, last in batches[:-1]]


def test_a_way_is_named_or_told_with_its_settings():
    assert way_of("tent") == Tent() and way_of("{kind: tent, steps: 5, episodic: true}") == Tent(steps=5, episodic=True)
    assert way_of("{kind: lame, neighbours: 3}") == Lame(neighbours=3)
    with pytest.raises(ValueError, match=r"test_time\.step"):
        way_of("{kind: tent, step: 5}")


@pytest.mark.parametrize("text", ["shot", "{kind: tent", "[tent]"])
def test_an_unknown_way_is_refused_with_those_there_are(text):
    with pytest.raises(ValueError, match="expected one of norm, tent, lame"):
        way_of(text)
