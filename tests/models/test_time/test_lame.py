"""LAME against brute force: its objective falls at every step, and where it ends nothing near is lower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.test_time.lame import Lame, assign, energy, joined, nearest, settle

EXACT = Lame(tolerance=1e-15, max_steps=20_000)


def problem(seed: int, n: int = 24, classes: int = 3, width: int = 4, hubs: bool = False) -> tuple[Tensor, Tensor]:
    """Answers and features; with hubs, a few samples are everybody's neighbours."""
    chance = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=chance, dtype=torch.float64)
    if hubs:
        features[:3] = features.mean(0) * 50
        features[3:] = features[0] + 0.3 * features[3:]
    p = (2 * torch.randn(n, classes, generator=chance, dtype=torch.float64)).softmax(-1)
    return p, features


def matrix(features: Tensor, neighbours: int) -> Tensor:
    """w, written out: half from each side."""
    likeness = torch.nn.functional.normalize(features.double(), dim=-1)
    likeness = likeness @ likeness.T
    w = torch.zeros(len(features), len(features), dtype=torch.float64)
    for i in range(len(features)):
        order = [int(j) for j in likeness[i].argsort(descending=True) if int(j) != i]
        w[i, order[:neighbours]] = 1
    return (w + w.T) / 2


def objective(logits: Tensor, p: Tensor, w: Tensor) -> Tensor:
    z = logits.softmax(-1)
    return (z * (z.log() - p.log())).sum() - (w * (z @ z.T)).sum() / 2


def minimised(logits: Tensor, p: Tensor, w: Tensor) -> tuple[Tensor, float]:
    """Brute force: quasi-Newton on the logits of all samples at once."""
    free = logits.clone().requires_grad_(True)
    search = torch.optim.LBFGS([free], max_iter=3000, tolerance_grad=1e-13, tolerance_change=1e-16,
                               history_size=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = objective(free, p, w)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    return free.detach().softmax(-1), float(objective(free.detach(), p, w))


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_and_energy_are_those_of_the_matrix_written_out(seed, neighbours):
    p, features = problem(seed)
    w = matrix(features, neighbours)
    near = nearest(features, neighbours)
    torch.testing.assert_close(joined(near, p), w @ p)
    logits = torch.randn(p.shape, dtype=torch.float64)
    assert energy(logits.log_softmax(-1), p.log(), near) == pytest.approx(float(objective(logits, p, w)), abs=1e-10)


@pytest.mark.parametrize("hubs", [False, True])
@pytest.mark.parametrize("neighbours", [1, 3, 5, 15])
@pytest.mark.parametrize("seed", range(4))
def test_the_objective_falls_at_every_step_even_with_samples_that_are_everybodys_neighbours(seed, neighbours, hubs):
    p, features = problem(seed, n=60, hubs=hubs)
    found = assign(p, features, Lame(neighbours=neighbours, tolerance=1e-13))
    falls = torch.tensor(found.energies).diff()
    assert found.converged and len(falls) > 1
    assert (falls <= 1e-11).all() and falls[0] < 0
    torch.testing.assert_close(found.probabilities.sum(-1), torch.ones(60, dtype=torch.float64))


def test_whole_steps_would_raise_the_objective_where_two_crowds_look_at_each_other():
    near = torch.cat([torch.arange(20, 40).repeat(20, 1), torch.arange(20).repeat(20, 1)])
    p = torch.tensor([[0.6, 0.4]] * 20 + [[0.45, 0.55]] * 20, dtype=torch.float64)
    whole = (p.log() + joined(near, p)).log_softmax(-1)
    assert energy(whole, p.log(), near) > energy(p.log(), p.log(), near) + 100
    falls = torch.tensor(settle(p, near, Lame()).energies).diff()
    assert (falls <= 1e-11).all() and falls.sum() < -100


@pytest.mark.parametrize("seed", range(4))
def test_where_it_ends_is_a_fixed_point_and_brute_force_finds_nothing_lower_near_it(seed):
    p, features = problem(seed)
    found = assign(p, features, EXACT)
    w = matrix(features, 5)
    torch.testing.assert_close(found.probabilities, (p.log() + w @ found.probabilities).softmax(-1), atol=1e-7, rtol=0)
    z, least = minimised(found.probabilities.log(), p, w)
    assert found.energies[-1] == pytest.approx(least, abs=1e-9)
    torch.testing.assert_close(found.probabilities, z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_where_the_objective_has_one_minimum_brute_force_from_anywhere_ends_there_too(seed):
    p, features = problem(seed)
    found = assign(p, features, Lame(neighbours=1, tolerance=1e-15, max_steps=20_000))
    w = matrix(features, 1)
    assert torch.linalg.eigvalsh(w)[-1] <= 2, "F is convex up to here: z log z curves by 2 along changes that sum to 0"
    for start in (torch.zeros_like(p), torch.randn(p.shape, dtype=torch.float64), p.log()):
        z, least = minimised(start, p, w)
        assert found.energies[-1] == pytest.approx(least, abs=1e-8)
        torch.testing.assert_close(found.probabilities, z, atol=1e-5, rtol=0)


def test_two_groups_that_features_tell_apart_get_one_answer_each():
    chance = torch.Generator().manual_seed(0)
    side = torch.arange(40) % 2
    features = torch.nn.functional.one_hot(side, 2).double() + 0.05 * torch.randn(40, 2, generator=chance).double()
    right = 0.65 * torch.nn.functional.one_hot(side, 2).double() + 0.175
    wrong = right.flip(1)
    p = torch.where((torch.rand(40, 1, generator=chance) < 0.2), wrong, right)
    assert (p.argmax(-1) == side).double().mean() < 1
    assert (assign(p, features, Lame()).probabilities.argmax(-1) == side).all()


def test_one_sample_alone_keeps_its_answer_and_order_does_not_matter():
    p, features = problem(1)
    torch.testing.assert_close(assign(p[:1], features[:1], Lame()).probabilities, p[:1])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(assign(p[order], features[order], Lame()).probabilities,
                               assign(p, features, Lame()).probabilities[order])


def test_the_number_of_steps_is_bounded_and_it_is_said_when_that_was_too_few():
    p, features = problem(0)
    found = assign(p, features, Lame(tolerance=1e-300, max_steps=3))
    assert len(found.energies) == 4 and not found.converged
