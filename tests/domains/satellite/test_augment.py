"""Augmentation moves values and what is known of them together, and no sample looks at its neighbours."""

import pytest
import torch

from domains.satellite.augment import MAX_BANDS, NUM_DRAWS, Augment, augment

OFF = Augment(flip=False, rotate=False, crop=None)


def batch(count: int = 16, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(count, 3, size, size, generator=generator) > 0.2
    x = torch.randn(count, 3, size, size, generator=generator) * known
    return x, known, torch.rand(count, NUM_DRAWS, generator=generator)


@pytest.mark.parametrize("settings", [Augment(), Augment(gain=0.2, shift=0.3), Augment(crop=None), OFF])
def test_a_sample_comes_out_the_same_alone_and_in_any_batch(settings: Augment) -> None:
    x, known, draws = batch()
    together, sure = augment(x, known, draws, settings)
    alone, sure_alone = augment(x[5:6], known[5:6], draws[5:6], settings)
    assert sure is not None and sure_alone is not None
    assert torch.equal(together[5], alone[0]) and torch.equal(sure[5], sure_alone[0])
    again, _ = augment(x.flip(0), known.flip(0), draws.flip(0), settings)
    assert torch.equal(again.flip(0), together)


def test_switched_off_it_changes_nothing() -> None:
    x, known, draws = batch()
    out, sure = augment(x, known, draws, OFF)
    assert torch.equal(out, x) and sure is known


def test_flips_and_turns_reach_all_eight_ways_to_lay_a_square_and_lose_nothing() -> None:
    square = torch.arange(16.0).reshape(1, 1, 4, 4)
    draws = torch.zeros(8, NUM_DRAWS)
    draws[:, :3] = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]) * 0.9
    out, none = augment(square.expand(8, -1, -1, -1), None, draws, Augment(crop=None))
    assert none is None and len({tuple(way.flatten().tolist()) for way in out}) == 8
    assert (out.flatten(1).sort(1).values == torch.arange(16.0)).all()


@pytest.mark.parametrize("settings", [Augment(), Augment(gain=0.5, shift=0.5), Augment(crop=(0.2, 0.2))])
def test_unknown_values_stay_0_and_never_colour_known_ones(settings: Augment) -> None:
    known = torch.ones(32, 1, 16, 16, dtype=torch.bool)
    known[:, :, 4:9, 2:11] = False
    x = torch.where(known, 3.0, 0.0)
    draws = torch.rand(32, NUM_DRAWS, generator=torch.Generator().manual_seed(1))
    out, sure = augment(x, known, draws, settings)
    assert sure is not None and sure.any() and not sure.all() and (out[~sure] == 0).all()
    if not settings.shift:
        assert torch.allclose(out[sure], torch.tensor(3.0), atol=1e-4)


def test_a_crop_of_everything_is_the_sample_itself() -> None:
    x, known, draws = batch()
    draws[:, 4] = 0.5
    out, sure = augment(x, known, draws, Augment(flip=False, rotate=False, crop=(1.0, 1.0)))
    assert torch.allclose(out, x, atol=1e-4) and sure is not None and torch.equal(sure, known)


def test_a_crop_shows_its_share_of_the_scene_in_place() -> None:
    ramp = torch.linspace(0, 1, 64).repeat(64, 1)[None, None]
    draws = torch.rand(200, NUM_DRAWS, generator=torch.Generator().manual_seed(2))
    out, _ = augment(ramp.expand(200, -1, -1, -1), None, draws, Augment(flip=False, rotate=False, crop=(0.25, 0.25)))
    width = (out[:, 0, 0, -1] - out[:, 0, 0, 0])
    assert 0.4 < width.min() and width.max() < 0.6 and out.min() >= 0 and out.max() <= 1
    assert out[:, 0, 0, 0].min() < 0.1 and out[:, 0, 0, -1].max() > 0.9


def test_jitter_shifts_bands_apart_and_only_where_there_is_data() -> None:
    x, known = torch.zeros(4, 2, 8, 8), torch.ones(4, 2, 8, 8, dtype=torch.bool)
    known[:, :, 0] = False
    draws = torch.rand(4, NUM_DRAWS, generator=torch.Generator().manual_seed(3))
    out, _ = augment(x, known, draws, Augment(flip=False, rotate=False, crop=None, shift=0.2))
    assert (out[:, :, 0] == 0).all() and not torch.equal(out[:, 0, 1], out[:, 1, 1]) and out.abs().max() <= 0.2


def test_settings_and_samples_that_do_not_fit_are_refused() -> None:
    draws = torch.rand(1, NUM_DRAWS)
    with pytest.raises(ValueError, match="rotate: found samples of 8 x 6, expected square"):
        augment(torch.zeros(1, 1, 8, 6), None, draws, Augment())
    with pytest.raises(ValueError, match=f"expected at most {MAX_BANDS}"):
        augment(torch.zeros(1, MAX_BANDS + 1, 4, 4), None, draws, Augment(gain=0.1))
    for wrong in ({"crop": (0.0, 1.0)}, {"crop": (0.9, 0.5)}, {"crop_shape": 0.5}, {"gain": 1.0}, {"shift": -0.1}):
        with pytest.raises(ValueError, match="expected"):
            Augment(**wrong)  # type: ignore[arg-type]
