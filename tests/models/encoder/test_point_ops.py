"""Farthest points, neighbours and Chamfer distance against brute force in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.encoder.point_ops import chamfer_l2, farthest_point_sampling, nearest_neighbours


def cloud(batch: int, num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, num, 3, generator=torch.Generator().manual_seed(seed))


def brute_force_farthest(points: np.ndarray, num: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < num:
        gaps = ((points[:, None] - points[None, chosen]) ** 2).sum(-1).min(1)
        gaps[chosen] = -1
        chosen.append(int(gaps.argmax()))
    return chosen


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
