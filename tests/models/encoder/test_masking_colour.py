"""Colour-noise masks: each colour keeps the sizes that it is named for, on grids, per band and among points."""

import itertools

import pytest
import torch

from models.encoder.chance import Chance, chance_of
from models.encoder.masking import RandomMasking, check_masking
from models.encoder.masking_colour import ColourNoiseMasking
from models.encoder.patches import Patches, take
from models.encoder.tokenizers import Bands, Grid, Groups

COLOURS = ["red", "green", "blue", "purple"]


def chance(step: int = 0, batch: int = 64) -> Chance:
    return chance_of(0, step, 0, torch.arange(batch), torch.zeros(batch, dtype=torch.int64))


def on_grid(grid: tuple[int, ...], batch: int = 64) -> Patches:
    place = torch.tensor(list(itertools.product(*(range(n) for n in grid)))).float().expand(batch, -1, -1)
    return Patches(torch.zeros(batch, place.shape[1], 1), place, None, grid)


def spectrum(masking: ColourNoiseMasking, grid: tuple[int, ...]) -> tuple[float, float, float]:
    """Mean power of the pattern of hidden patches at low, middle and high frequencies."""
    cut = on_grid(grid, 256)
    hidden = torch.zeros(256, cut.place.shape[1]).scatter_(1, masking(cut, chance(batch=256)).hidden, 1.0)
    axes = tuple(range(1, 1 + len(grid)))
    power = torch.fft.fftn((hidden - hidden.mean(1, keepdim=True)).reshape(-1, *grid), dim=axes).abs().square().mean(0)
    radius = torch.stack(torch.meshgrid(*(torch.fft.fftfreq(n) for n in grid), indexing="ij")).norm(dim=0)
    bands = (radius > 0) & (radius < 0.11), (radius > 0.15) & (radius < 0.3), radius > 0.42
    return tuple(float(power[band].mean()) for band in bands)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("grid", [(32, 32), (24, 40), (16, 16, 16)])
def test_the_power_of_the_noise_is_that_of_the_filter(grid, colour):
    masking, batch = ColourNoiseMasking(colour=colour), 256 if len(grid) == 2 else 64
    field = masking.noise(on_grid(grid, batch), chance(batch=batch)).reshape(batch, *grid)
    for axis, size in enumerate(grid):
        field = field * torch.hann_window(size, dtype=torch.float64).reshape(-1, *[1] * (len(grid) - 1 - axis))
    power = torch.fft.fftn(field, dim=tuple(range(1, 1 + len(grid)))).abs().square().mean(0)
    frequency = torch.stack(torch.meshgrid(*(torch.fft.fftfreq(n) for n in grid), indexing="ij"))
    narrow, wide = (torch.exp(-2 * (torch.pi * s * frequency.norm(dim=0)).square()) for s in (0.75, 1.5))
    wanted = {"red": narrow, "blue": 1 - narrow, "green": narrow - wide, "purple": 1 - narrow + wide}[colour].square()
    away_from_zero = frequency.norm(dim=0) > 3 / min(grid)  # a window smears the lowest frequencies
    measured, wanted = power[away_from_zero] / power.max(), wanted[away_from_zero]
    measured = measured * (wanted.sum() / measured.sum())
    order = wanted.argsort()
    measured, wanted = (torch.stack([part.mean() for part in values[order].chunk(12)]) for values in (measured, wanted))
    torch.testing.assert_close(measured, wanted.double(), rtol=0.1, atol=0.03)


@pytest.mark.parametrize("grid", [(16, 16), (12, 20), (12, 12, 12)])
def test_green_masks_are_band_pass_red_low_pass_blue_high_pass_and_purple_band_stop(grid):
    """Cutting at a threshold spreads power over all frequencies, so a mask shows less of a band than its noise does."""
    low, middle, high = spectrum(ColourNoiseMasking(colour="green"), grid)
    assert middle > 1.5 * low and middle > 3 * high
    low, middle, high = spectrum(ColourNoiseMasking(colour="red"), grid)
    assert low > 1.8 * middle > 3.6 * high
    low, middle, high = spectrum(ColourNoiseMasking(colour="blue"), grid)
    assert high > 1.5 * middle > 1.8 * low
    low, middle, high = spectrum(ColourNoiseMasking(colour="purple"), grid)
    assert low > 1.2 * middle and high > 1.4 * middle


def test_wider_gaussians_hide_larger_pieces():
    def alike(sigma: float) -> float:
        cut = on_grid((16, 16))
        mask = ColourNoiseMasking(colour="red", sigma=sigma, wide_sigma=9)(cut, chance())
        hidden = torch.zeros(64, 256).scatter_(1, mask.hidden, 1.0).reshape(-1, 16, 16)
        return float((hidden[:, 1:] == hidden[:, :-1]).float().mean())
    assert alike(0.3) < alike(1.0) < alike(2.5)


def test_the_larger_the_pieces_the_farther_a_hidden_patch_lies_from_what_is_seen():
    cut = on_grid((14, 14))

    def away(masking: ColourNoiseMasking | RandomMasking) -> float:
        mask = masking(cut, chance())
        return float(torch.cdist(take(cut.place, mask.hidden), take(cut.place, mask.visible)).amin(-1).mean())
    blue, green, red = (away(ColourNoiseMasking(ratio=0.75, colour=colour)) for colour in ("blue", "green", "red"))
    assert blue < away(RandomMasking(ratio=0.75)) < green < red


def cloud(batch: int = 64) -> Patches:
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(batch, 64, 3, generator=generator)
    return Patches(torch.zeros(batch, 64, 1), place / place.norm(dim=-1, keepdim=True))


def shared_fate(masking: ColourNoiseMasking, cut: Patches) -> float:
    """How often the centre nearest to a hidden one is hidden too."""
    count = cut.place.shape[1]
    hidden = torch.zeros(len(cut.place), count).scatter_(1, masking(cut, chance()).hidden, 1.0)
    apart = torch.cdist(cut.place, cut.place) + 1e6 * torch.eye(count)
    return float((hidden.gather(1, apart.argmin(-1)) * hidden).sum() / hidden.sum())


def test_among_points_red_hides_neighbours_together_and_blue_does_not():
    fate = {colour: shared_fate(ColourNoiseMasking(ratio=0.5, colour=colour, sigma=1.0, wide_sigma=2.0), cloud())
            for colour in COLOURS}
    assert fate["red"] > 0.7 and 0.4 < fate["blue"] < 0.6 and fate["green"] > fate["purple"]


@pytest.mark.parametrize("colour", ["red", "green"])
def test_among_points_noise_is_as_alike_at_a_distance_as_the_filters_make_it(colour):
    """White noise under the difference of two Gaussians has the covariance of their convolutions, each a Gaussian."""
    narrow, wide, batch = 0.75, 1.5, 1500
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3)                # neighbours are 1 apart
    points = Patches(torch.zeros(batch, 64, 1), lattice.expand(batch, -1, -1))
    field = ColourNoiseMasking(colour=colour, sigma=narrow, wide_sigma=wide).noise(points, chance(0, batch))
    alike = torch.corrcoef(field.T)[0]                                      # 64: with the corner

    def covariance(distance: torch.Tensor, *widths: float) -> torch.Tensor:
        mean_square = sum(width**2 for width in widths) / 2
        return mean_square**-1.5 * torch.exp(-distance.square() / (4 * mean_square))

    def expected(distance: torch.Tensor) -> torch.Tensor:
        red = covariance(distance, narrow, narrow)
        return red if colour == "red" else (red - 2 * covariance(distance, narrow, wide)
                                            + covariance(distance, wide, wide))
    apart = lattice.double().norm(dim=1)
    torch.testing.assert_close(alike, expected(apart) / expected(0 * apart), rtol=0, atol=0.1)
    assert float(alike[apart > 2.5].mean()) == pytest.approx(0.0 if colour == "red" else -0.05, abs=0.03)


@pytest.mark.parametrize("colour", COLOURS)
def test_masks_among_points_do_not_depend_on_the_unit_of_length(colour):
    cut, masking = cloud(), ColourNoiseMasking(colour=colour)
    large = cut._replace(place=cut.place * 1000.0)
    assert torch.equal(masking(cut, chance()).hidden, masking(large, chance()).hidden)


def test_each_band_has_a_noise_of_its_own():
    field = ColourNoiseMasking(colour="red", per_band=True).noise(on_grid((3, 12, 12)), chance()).reshape(64, 3, 144)
    field = field - field.mean(-1, keepdim=True)
    alike = torch.corrcoef(field.transpose(0, 1).reshape(3, -1))
    assert (alike - torch.eye(3)).abs().max() < 0.1


@pytest.mark.parametrize("cut", [on_grid((8, 8)), on_grid((4, 4, 4)), cloud()], ids=["image", "volume", "points"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_sample_s_mask_depends_on_its_own_key_alone(cut, colour):
    masking = ColourNoiseMasking(colour=colour)
    whole = masking(cut, chance())
    half = Patches(cut.values[32:], cut.place[32:], None, cut.grid)
    other = chance_of(0, 0, 0, torch.arange(32, 64), torch.zeros(32, dtype=torch.int64))
    assert torch.equal(masking(half, other).hidden, whole.hidden[32:])
    assert not torch.equal(masking(cut, chance(1)).hidden, whole.hidden)


def test_every_patch_is_hidden_equally_often():
    cut = on_grid((8, 8), 500)
    counts = sum(torch.bincount(ColourNoiseMasking(ratio=0.5)(cut, chance(step, 500)).hidden.flatten(), minlength=64)
                 for step in range(6))
    assert (counts / 3000 - 0.5).abs().max() < 0.05


def test_settings_that_mean_nothing_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="0 < sigma < wide_sigma"):
        ColourNoiseMasking(sigma=2.0, wide_sigma=1.0)
    with pytest.raises(ValueError, match="found per_band false, expected true for tokenizer bands"):
        check_masking(ColourNoiseMasking(), Bands())
    for tokenizer in (Grid(), Groups()):
        with pytest.raises(ValueError, match="do not begin with a band"):
            check_masking(ColourNoiseMasking(per_band=True), tokenizer)
