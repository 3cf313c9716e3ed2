"""Farthest points, neighbours and Chamfer distance against brute force in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.encoder.point_ops import (
    chamfer_l1,
    chamfer_l2,
    farthest_point_sampling,
    nearest_neighbours,
    pointnet2_sampling,
)


def cloud(batch: int, num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, num, 3, generator=torch.Generator().manual_seed(seed))


def brute_force_farthest(points: np.ndarray, num: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < num:
        gaps = ((points[:, None] - points[None, chosen]) ** 2).sum(-1).min(1)
        gaps[chosen] = -1
        chosen.append(int(gaps.argmax()))
    return chosen


def simulated_kernel(points: np.ndarray, num: int) -> list[int]:
    """What the threads of the CUDA operation do, one after the other."""
    count = len(points)
    threads = min(1 << (count.bit_length() - 1), 512)
    x, y, z = points.T
    near_origin = x * x + y * y + z * z <= np.float32(1e-3)
    nearest, chosen = np.full(count, 1e10, np.float32), [0]
    while len(chosen) < num:
        dx, dy, dz = (points - points[chosen[-1]]).T
        best, index = [np.float32(-1)] * threads, [0] * threads
        for i in np.flatnonzero(~near_origin):
            nearest[i] = min(nearest[i], dx[i] * dx[i] + dy[i] * dy[i] + dz[i] * dz[i])
            if nearest[i] > best[i % threads]:
                best[i % threads], index[i % threads] = nearest[i], int(i)
        half = threads // 2
        while half:
            for low in range(half):
                if best[low + half] > best[low]:
                    best[low], index[low] = best[low + half], index[low + half]
            half //= 2
        chosen.append(index[0])
    return chosen


def brute_force_roots(pred: np.ndarray, target: np.ndarray) -> float:
    gaps = ((pred[:, None].astype(np.float64) - target[None].astype(np.float64)) ** 2).sum(-1) ** 0.5
    return float(gaps.min(1).mean() + gaps.min(0).mean()) / 2


def brute_force_chamfer(pred: np.ndarray, target: np.ndarray) -> float:
    gaps = ((pred[:, None].astype(np.float64) - target[None].astype(np.float64)) ** 2).sum(-1)
    return float(gaps.min(1).mean() + gaps.min(0).mean())


@pytest.mark.parametrize("start", [0, 7])
def test_farthest_points_equal_brute_force(start: int) -> None:
    points = cloud(3, 200)
    found = farthest_point_sampling(points, 40, start)
    assert found.tolist() == [brute_force_farthest(sample.numpy(), 40, start) for sample in points]


def test_farthest_points_start_where_each_sample_says() -> None:
    points = cloud(3, 100)
    found = farthest_point_sampling(points, 10, torch.tensor([5, 0, 99]))
    assert found.tolist() == [brute_force_farthest(sample.numpy(), 10, start)
                              for sample, start in zip(points, [5, 0, 99], strict=True)]


def test_farthest_points_take_the_lowest_index_among_equals() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert farthest_point_sampling(corners[None], 5)[0].tolist() == [0, 1, 2, 3, 4]


def test_farthest_points_are_never_chosen_twice_among_duplicates() -> None:
    points = torch.zeros(2, 16, 3)
    points[:, 8:] = 1.0
    found = farthest_point_sampling(points, 16)
    assert all(sorted(row) == list(range(16)) for row in found.tolist())


def test_farthest_points_of_a_sample_do_not_depend_on_its_batch() -> None:
    points = cloud(4, 128)
    together = farthest_point_sampling(points, 32)
    assert all(torch.equal(farthest_point_sampling(points[i:i + 1], 32)[0], together[i]) for i in range(4))


def test_too_few_points_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="found 8 points, expected at least 9"):
        farthest_point_sampling(cloud(1, 8), 9)
    with pytest.raises(ValueError, match="found 8 points, expected at least 9"):
        nearest_neighbours(cloud(1, 2), cloud(1, 8), 9)


def test_neighbours_equal_brute_force_and_come_nearest_first() -> None:
    points = cloud(3, 300)
    centres = points[:, :20]
    found = nearest_neighbours(centres, points, 16)
    gaps = ((centres[:, :, None].double() - points[:, None].double()) ** 2).sum(-1).numpy()
    assert found.numpy().tolist() == np.argsort(gaps, axis=-1, kind="stable")[..., :16].tolist()
    assert torch.equal(found[:, :, 0], torch.arange(20).expand(3, 20))  # each centre is its own nearest point


def test_chamfer_equals_brute_force() -> None:
    pred, target = cloud(4, 5 * 32).view(4, 5, 32, 3), cloud(4, 5 * 24, 1).view(4, 5, 24, 3)
    found = chamfer_l2(pred, target)
    expected = [[brute_force_chamfer(p, t) for p, t in zip(ps, ts, strict=True)]
                for ps, ts in zip(pred.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_chamfer_of_a_group_with_itself_in_any_order_is_zero() -> None:
    group = cloud(1, 32)[None]
    assert chamfer_l2(group, group.flip(2)).item() < 1e-6


def test_chamfer_gradient_equals_the_one_through_differences() -> None:
    pred, target = cloud(2, 96).view(2, 3, 32, 3).requires_grad_(), cloud(2, 96, 1).view(2, 3, 32, 3)
    (fast,) = torch.autograd.grad(chamfer_l2(pred, target).sum(), pred)
    gaps = (pred.unsqueeze(3) - target.unsqueeze(2)).square().sum(-1)
    (plain,) = torch.autograd.grad((gaps.min(3).values.mean(2) + gaps.min(2).values.mean(2)).sum(), pred)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)


def test_chamfer_is_computed_in_float32_under_autocast() -> None:
    pred, target = cloud(2, 64).view(2, 2, 32, 3), cloud(2, 64, 1).view(2, 2, 32, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chamfer_l2(pred, target)
    torch.testing.assert_close(found, chamfer_l2(pred, target), rtol=0, atol=0)


@pytest.mark.parametrize(("available", "num"), [(1, 1), (2, 2), (33, 33), (64, 17), (300, 64), (1024, 32)])
def test_both_rules_equal_brute_force_at_every_size(available: int, num: int) -> None:
    points = cloud(2, available, available)
    assert farthest_point_sampling(points, num).tolist() == [
        brute_force_farthest(sample.numpy(), num, 0) for sample in points]
    assert pointnet2_sampling(points, num).tolist() == [simulated_kernel(sample.numpy(), num) for sample in points]


@pytest.mark.parametrize("available", [17, 100, 600])
def test_ties_and_duplicates_go_as_the_threads_of_the_release_decide(available: int) -> None:
    lattice = torch.randint(1, 4, (2, available, 3), generator=torch.Generator().manual_seed(available)).float()
    found = pointnet2_sampling(lattice, 16)
    assert found.tolist() == [simulated_kernel(sample.numpy(), 16) for sample in lattice]
    assert not torch.equal(found, farthest_point_sampling(lattice, 16))


def test_the_release_passes_over_points_near_the_origin_and_the_textbook_does_not() -> None:
    points = cloud(1, 64)
    points[0, 1:] = torch.nn.functional.normalize(points[0, 1:], dim=-1)
    points[0, 5::9] *= 0.01
    chosen = pointnet2_sampling(points, 40)[0]
    assert not {*range(5, 64, 9)} & set(chosen[1:].tolist())
    assert {*range(5, 64, 9)} & set(farthest_point_sampling(points, 40)[0].tolist())
    assert chosen.tolist() == simulated_kernel(points[0].numpy(), 40)


def test_a_cloud_wholly_at_the_origin_gives_its_first_point_again_and_again() -> None:
    assert pointnet2_sampling(torch.zeros(2, 20, 3), 4).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(("centres", "available", "num"), [(1, 1, 1), (5, 9, 9), (16, 256, 12), (64, 1024, 32)])
def test_neighbours_equal_brute_force_at_every_size(centres: int, available: int, num: int) -> None:
    points = cloud(2, available, available)
    some = points[:, :centres]
    gaps = ((some[:, :, None].double() - points[:, None].double()) ** 2).sum(-1).numpy()
    expected = np.argsort(gaps, axis=-1, kind="stable")[..., :num]
    assert nearest_neighbours(some, points, num).tolist() == expected.tolist()


@pytest.mark.parametrize(("k", "m"), [(1, 1), (8, 3), (12, 40), (32, 32)])
def test_both_chamfer_distances_equal_brute_force_at_every_size(k: int, m: int) -> None:
    pred, target = 0.3 * cloud(2, 3 * k, k).view(2, 3, k, 3), 0.3 * cloud(2, 3 * m, m + 1).view(2, 3, m, 3)
    for found, brute_force in ((chamfer_l2, brute_force_chamfer), (chamfer_l1, brute_force_roots)):
        expected = [[brute_force(p, t) for p, t in zip(ps, ts, strict=True)]
                    for ps, ts in zip(pred.numpy(), target.numpy(), strict=True)]
        np.testing.assert_allclose(found(pred, target).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_the_distance_without_squares_has_a_finite_gradient_where_points_coincide() -> None:
    group = cloud(1, 8)[None].requires_grad_()
    loss = chamfer_l1(group, group.detach()).sum()
    loss.backward()
    assert loss.item() == 0 and bool(group.grad.isfinite().all())


def plain_chamfer(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    gaps = (pred.unsqueeze(-2) - target.unsqueeze(-3)).square().sum(-1)
    return gaps.min(-1).values.mean(-1) + gaps.min(-2).values.mean(-1)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (8, 3), (12, 40), (32, 32)])
def test_both_gradients_of_the_chamfer_distance_are_those_of_differences_in_double(k: int, m: int) -> None:
    pred = (0.3 * cloud(2, 3 * k, k).view(2, 3, k, 3)).requires_grad_()
    target = (0.3 * cloud(2, 3 * m, m + 1).view(2, 3, m, 3)).requires_grad_()
    weight = torch.tensor([[1.0, 2.0, -0.5], [0.0, 3.0, 1.0]])
    found = torch.autograd.grad((weight * chamfer_l2(pred, target)).sum(), (pred, target))
    exact = torch.autograd.grad((weight * plain_chamfer(pred.double(), target.double())).sum(), (pred, target))
    for fast, plain in zip(found, exact, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-7)


def test_the_chamfer_distance_passes_a_numerical_check_of_its_gradient() -> None:
    pred, target = (cloud(1, 10, seed)[None].double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(chamfer_l2, (pred, target))


def test_a_prediction_that_is_not_finite_gives_a_distance_that_is_not() -> None:
    pred = cloud(1, 8)[None].clone()
    pred[0, 0, 3] = torch.nan
    assert not bool(chamfer_l2(pred, cloud(1, 8, 1)[None]).isfinite())
