import pytest
import torch
from torch import Tensor

from domains.medical.augment import NUM_DRAWS, Augment, augment

OFF = Augment(crop_scale=(1.0, 1.0))
EVERYTHING = Augment(flip_left_right=0.5, flip_other_axes=0.5, quarter_turns=0.5, intensity_scale=0.2,
                     intensity_shift=0.2)


def draws(batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, NUM_DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 1, 16, 20), (6, 1, 4, 8, 8)])
def test_everything_off_changes_nothing(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    out, known = augment(x, None, draws(6), OFF)
    assert torch.equal(out, x) and known is None


@pytest.mark.parametrize("shape", [(6, 1, 16, 16), (6, 1, 4, 8, 8)])
def test_a_view_depends_on_its_own_draws_alone(shape: tuple[int, ...]) -> None:
    x, u, known = torch.randn(shape), draws(6), torch.rand(shape) < 0.9
    x = x.masked_fill(~known, 0)
    together = augment(x, known, u, EVERYTHING)
    again = augment(x, known, u, EVERYTHING)
    for i in range(6):
        alone = augment(x[i:i + 1], known[i:i + 1], u[i:i + 1], EVERYTHING)
        for a, b, c in zip(alone, together, again, strict=True):
            assert a is not None and b is not None and c is not None
            assert torch.equal(a[0], b[i]) and torch.equal(b, c)


@pytest.mark.parametrize("shape", [(64, 1, 16, 16), (64, 1, 6, 8, 8)])
def test_what_is_unknown_stays_unknown_and_bleeds_into_nothing(shape: tuple[int, ...]) -> None:
    known = torch.ones(shape, dtype=torch.bool)
    known[:, :, :5] = False
    x = torch.full(shape, 7.0).masked_fill(~known, 0.0)
    out, seen = augment(x, known, draws(64), Augment(flip_left_right=0.5, flip_other_axes=0.5, quarter_turns=0.5))
    assert seen is not None and seen.shape == x.shape and seen.any() and not seen.all()
    torch.testing.assert_close(out[seen], torch.full_like(out[seen], 7.0))
    assert (out[~seen] == 0).all()


def test_unknown_is_not_moved_by_an_intensity_shift() -> None:
    known = torch.rand(8, 1, 6, 6) < 0.5
    out, _ = augment(torch.zeros(8, 1, 6, 6), known, draws(8), Augment(crop_scale=(1.0, 1.0), intensity_shift=0.5))
    assert (out[~known] == 0).all() and (out[known] != 0).all()


def test_a_crop_shows_the_box_that_was_drawn() -> None:
    """A film whose two channels hold each pixel's own place says what the crop shows."""
    height, width = 40, 60
    rows = torch.arange(height).float()[:, None].expand(height, width)
    columns = torch.arange(width).float().expand(height, width)
    x = torch.stack([rows, columns]).expand(500, 2, height, width)
    u = draws(500)
    out, _ = augment(x, None, u, Augment(crop_scale=(0.5, 0.8)))
    middle = out[:, :, height // 4:-height // 4, width // 4:-width // 4]  # away from the border, which is clamped
    share_h = (middle[:, 0, -1, 0] - middle[:, 0, 0, 0]) / (middle.shape[2] - 1)
    share_w = (middle[:, 1, 0, -1] - middle[:, 1, 0, 0]) / (middle.shape[3] - 1)
    torch.testing.assert_close(share_h * share_w, 0.5 + 0.3 * u[:, 0], atol=1e-3, rtol=0)
    ratio = share_w / share_h
    assert ratio.min() >= 0.749 and ratio.max() <= 1.334 and ratio.min() < 0.8 and ratio.max() > 1.28
    assert share_h.max() <= 1 and share_w.max() <= 1
    assert out.min() >= 0 and out[:, 0].max() <= height - 1 and out[:, 1].max() <= width - 1
    top = middle[:, 0, 0, 0] - share_h * (height // 4 + 0.5) + 0.5      # upper edge of the box, in pixels
    torch.testing.assert_close(top, (1 - share_h) * height * u[:, 2], atol=1e-2, rtol=0)


def test_the_whole_film_is_the_largest_crop() -> None:
    x = torch.randn(3, 1, 8, 8)
    u = draws(3)
    u[:, 0] = 1 - 1e-7
    out, _ = augment(x, None, u, Augment(crop_scale=(0.5, 1.0)))
    torch.testing.assert_close(out, x, atol=1e-4, rtol=1e-4)


def test_a_mirror_image_turns_the_last_axis_for_the_drawn_share() -> None:
    x = torch.randn(1, 1, 4, 5).expand(2000, 1, 4, 5)
    out, _ = augment(x, None, draws(2000), Augment(crop_scale=(1.0, 1.0), flip_left_right=0.3))
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert ((out == x).flatten(1).all(1) | mirrored).all()
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.04)


def test_no_film_is_mirrored_unless_asked_for() -> None:
    assert Augment().flip_left_right == 0


def test_quarter_turns_reach_all_four_and_keep_slices() -> None:
    x = torch.randn(1, 1, 2, 4, 4).expand(400, 1, 2, 4, 4)
    out, _ = augment(x, None, draws(400), Augment(quarter_turns=1.0))
    turned = torch.stack([(out == torch.rot90(x, k, (-2, -1))).flatten(1).all(1) for k in range(4)]).float()
    assert (turned.sum(0) == 1).all() and (turned.mean(1) > 0.15).all()


def test_volumes_are_not_cropped_here() -> None:
    x = torch.randn(4, 1, 4, 8, 8)
    assert torch.equal(augment(x, None, draws(4), Augment(crop_scale=(0.5, 0.6)))[0], x)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a square"):
        augment(torch.zeros(1, 1, 2, 4, 6), None, draws(1), Augment(quarter_turns=0.5))
    with pytest.raises(ValueError, match="draws: found"):
        augment(torch.zeros(2, 1, 4, 4), None, draws(1), OFF)
    for wrong in ({"crop_scale": (0.0, 1.0)}, {"crop_scale": (0.5, 1.5)}, {"crop_ratio": (2.0, 1.0)},
                  {"flip_left_right": 1.5}, {"intensity_scale": 1.0}):
        with pytest.raises(ValueError, match="found"):
            Augment(**wrong)  # type: ignore[arg-type]
