"""Views are pure functions of each sample's own draws, keep shape where they should, and can be switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from domains.pointcloud.augment import NUM_DRAWS, Augment, augment

OFF = Augment(scale=(1.0, 1.0), translate=0.0)
EVERYTHING = Augment(turn=0.5, jitter=0.01)


def clouds(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 50, 3, generator=torch.Generator().manual_seed(0))


def draws(batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, NUM_DRAWS, generator=torch.Generator().manual_seed(1))


def test_everything_off_changes_nothing() -> None:
    x, known = augment(clouds(), None, draws(), OFF)
    assert torch.equal(x, clouds()) and known is None


def test_a_view_does_not_depend_on_the_batch() -> None:
    together, _ = augment(clouds(), None, draws(), EVERYTHING)
    for i in range(4):
        alone, _ = augment(clouds()[i:i + 1], None, draws()[i:i + 1], EVERYTHING)
        assert torch.equal(alone[0], together[i])


def test_the_same_draws_give_the_same_view_and_others_another() -> None:
    first, _ = augment(clouds(), None, draws(), EVERYTHING)
    again, _ = augment(clouds(), None, draws(), EVERYTHING)
    other, _ = augment(clouds(), None, draws().flip(0), EVERYTHING)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_defaults_stretch_each_axis_by_two_thirds_to_three_halves_and_shift_by_a_fifth() -> None:
    corners = torch.tensor([[[0.0, 0, 0], [1, 1, 1]]]).expand(500, 2, 3)
    x, _ = augment(corners, None, draws(500), Augment())
    shift, scale = x[:, 0], x[:, 1] - x[:, 0]
    assert -0.2 <= shift.min() < -0.19 and 0.19 < shift.max() <= 0.2
    assert 2 / 3 - 1e-5 <= scale.min() < 0.68 and 1.48 < scale.max() <= 1.5 + 1e-5
    assert torch.corrcoef(torch.cat([shift, scale], 1).T).fill_diagonal_(0).abs().max() < 0.2


def test_a_turn_keeps_heights_and_distances() -> None:
    x, _ = augment(clouds(), None, draws(), Augment(scale=(1.0, 1.0), translate=0.0, turn=0.5))
    torch.testing.assert_close(x[..., 2], clouds()[..., 2])
    torch.testing.assert_close(torch.cdist(x, x), torch.cdist(clouds(), clouds()), atol=5e-3, rtol=1e-4)
    assert not torch.allclose(x, clouds(), atol=0.1)


def test_jitter_is_normal_noise_of_the_given_size_without_pattern() -> None:
    still = torch.zeros(200, 300, 3)
    x, _ = augment(still, None, draws(200), Augment(scale=(1.0, 1.0), translate=0.0, jitter=0.1))
    assert x.mean().abs() < 0.002 and (x.std() - 0.1).abs() < 0.002 and x.abs().max() <= 0.3 + 1e-6
    within = (x.abs() < 0.1).float().mean()
    assert (within - 0.683).abs() < 0.01
    flat = x.flatten(1)
    assert torch.corrcoef(flat[:20]).fill_diagonal_(0).abs().max() < 0.2  # samples are unrelated
    assert (flat[:, :-1] * flat[:, 1:]).mean().abs() < 2e-4  # and so are neighbouring numbers


def test_draws_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="draws: found"):
        augment(clouds(), None, draws()[:, :3], EVERYTHING)


@pytest.mark.parametrize("wrong", [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"turn": 0.6}, {"translate": -1.0},
                                   {"jitter": -0.1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: found"):
        Augment(**wrong)


NAMES = ("x", "y", "z", "nx", "ny", "nz", "intensity")


def test_normals_stay_normal_to_the_surface_and_other_features_as_they_are() -> None:
    """Points of a plane through the origin, whose normal is known for every view from three of its points."""
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(4, 2, 3, generator=generator)
    points = torch.randn(4, 50, 2, generator=generator) @ along
    normal = torch.nn.functional.normalize(torch.linalg.cross(along[:, 0], along[:, 1]), dim=-1)
    x = torch.cat([points, normal[:, None].expand(-1, 50, -1), torch.rand(4, 50, 1, generator=generator)], -1)
    view, _ = augment(x, None, draws(), Augment(turn=0.5), NAMES)
    moved = view[..., :3] - view[:, :1, :3]
    torch.testing.assert_close((moved * view[..., 3:6]).sum(-1), torch.zeros(4, 50), atol=1e-4, rtol=0)
    torch.testing.assert_close(view[..., 3:6].norm(dim=-1), torch.ones(4, 50))
    assert torch.equal(view[..., 6], x[..., 6]) and not torch.allclose(view[..., 3:6], x[..., 3:6], atol=0.05)


def test_what_is_unknown_stays_zero_in_every_view() -> None:
    x, known = torch.randn(4, 50, 7), torch.ones(4, 50, 7, dtype=torch.bool)
    known[:, 30:], known[:, ::3, 3:6] = False, False
    view, told = augment(x.masked_fill(~known, 0.0), known, draws(), EVERYTHING, NAMES)
    assert told is not None and torch.equal(told, known)
    assert bool((view[~known] == 0).all()) and bool(view.isfinite().all())


def test_features_do_not_change_the_view_of_the_places() -> None:
    x = torch.cat([clouds(), torch.rand(4, 50, 4)], -1)
    assert torch.equal(augment(x, None, draws(), EVERYTHING, NAMES)[0][..., :3],
                       augment(clouds(), None, draws(), EVERYTHING)[0])
