"""What may be done to a scene without changing what it shows. Everything runs on the device, for the whole batch, and
every sample's outcome depends on its own draws alone.

Legend: B batch, C bands, H W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from domains.mask_moves import by_layers

MAX_BANDS = 32
"""Most bands that can be jittered: there is a draw for each. Hyperspectral cubes would need another way."""
NUM_DRAWS = 3 + 4 + 1 + MAX_BANDS
"""Two flips and the transpose; crop area, shape, row and column; gain; one shift per band."""
MAJORITY = 0.5
"""A pixel of the resized crop is known when at least this share of the weight behind it is."""


@dataclass(frozen=True)
class Augment:
    """Each part can be switched off. The defaults follow SatMAE's crop, and add what a view from above allows."""

    flip: bool = True
    """Mirror up-down and left-right, each for half of the samples: from above no side is up."""
    rotate: bool = True
    """Quarter turns, through a transpose of half of the samples; needs square samples."""
    crop: tuple[float, float] | None = (0.2, 1.0)
    """Smallest and largest area of the random resized crop, as a share of the sample. None: no crop."""
    crop_shape: float = 4 / 3
    """Longest side ratio of the crop before it is resized to the sample's."""
    gain: float = 0.0
    """All bands of a sample are multiplied by 1 +- this, as another sun height would. In normalised units."""
    shift: float = 0.0
    """Each band is shifted by +- this many standard deviations, as haze and calibration would."""

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop: found {self.crop}, expected two rising shares above 0 and up to 1.")
        if self.crop_shape < 1:
            raise ValueError(f"crop_shape: found {self.crop_shape}, expected at least 1 (square).")
        if not 0 <= self.gain < 1 or self.shift < 0:
            raise ValueError(f"gain and shift: found {self.gain} and {self.shift}, "
                             "expected 0 <= gain < 1 and shift >= 0.")


def augment(x: Tensor, known: Tensor | None, draws: Tensor, settings: Augment,
            names: Sequence[str] = ()) -> tuple[Tensor, Tensor | None]:
    """Args:
        x: B C H W, 0 where unknown. known: B C H W bool, or None when all is.
        draws: B NUM_DRAWS uniforms in [0, 1).
        names: the bands of x, which are all treated alike.

    Returns:
        x and known after the same moves.
    """
    sure = torch.ones_like(x, dtype=torch.bool) if known is None else known
    if settings.flip:
        x, sure = (_choose(draws[:, 0], each.flip(-1), each) for each in (x, sure))
        x, sure = (_choose(draws[:, 1], each.flip(-2), each) for each in (x, sure))
    if settings.rotate:
        _require_square(x)
        # With the two flips, a transpose gives all eight ways to lay a square; alone it is the mirrored quarter turn.
        x, sure = (_choose(draws[:, 2], each.transpose(-1, -2), each) for each in (x, sure))
    if settings.crop is not None:
        x, sure = _resized_crop(x, sure, draws[:, 3:7], settings)
    if settings.gain or settings.shift:
        x = torch.where(sure, _jitter(x, draws[:, 7:], settings), 0.0)
    return x, None if known is None else sure


def move_mask(classes: Tensor, num_classes: int, draws: Tensor, settings: Augment) -> Tensor:
    """The masks of scenes, B H W uint8, after the moves that `augment` makes with these draws."""
    still = replace(settings, gain=0.0, shift=0.0)
    return by_layers(classes, num_classes, lambda x, known: augment(x, known, draws, still))


def _choose(draw: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` for the samples whose draw is below one half."""
    return torch.where((draw < 0.5)[:, None, None, None], yes, no)


def _require_square(x: Tensor) -> None:
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"rotate: found samples of {x.shape[-2]} x {x.shape[-1]}, expected square ones. "
                         "Remedy: set `rotate: false` or a square `size`.")


def _resized_crop(x: Tensor, known: Tensor, draws: Tensor, settings: Augment) -> tuple[Tensor, Tensor]:
    """A random box of each sample, resized to the sample's own shape by bilinear weights over known pixels."""
    assert settings.crop is not None
    area = settings.crop[0] + draws[:, 0] * (settings.crop[1] - settings.crop[0])
    ratio = torch.exp((2 * draws[:, 1] - 1) * math.log(settings.crop_shape))
    height = (area / ratio).sqrt().clamp(max=1.0)
    width = (area * ratio).sqrt().clamp(max=1.0)
    # grid_sample counts from -1 to 1; the box's centre moves within what its size leaves free.
    theta = x.new_zeros(x.shape[0], 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, (2 * draws[:, 3] - 1) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, (2 * draws[:, 2] - 1) * (1 - height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    both = torch.cat([x, known.to(x.dtype)], dim=1)  # x is 0 where unknown, so its sample is a sum over the known
    both = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    total, share = both.chunk(2, dim=1)
    enough = share >= MAJORITY
    return torch.where(enough, total / share.clamp(min=MAJORITY), 0.0), enough


def _jitter(x: Tensor, draws: Tensor, settings: Augment) -> Tensor:
    bands = x.shape[1]
    if bands > MAX_BANDS:
        raise ValueError(f"gain and shift: found {bands} bands, expected at most {MAX_BANDS}. Remedy: set both to 0.")
    gain = 1 + settings.gain * (2 * draws[:, :1] - 1)
    shift = settings.shift * (2 * draws[:, 1:1 + bands] - 1)
    return x * gain[:, :, None, None] + shift[:, :, None, None]
