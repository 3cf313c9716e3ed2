"""Readouts: what is predicted for each hidden patch, and how far off it is.

A loss is a mean per sample first and over samples second, so that it is the same on one rank and on several. Only known
values of hidden patches are scored.

Legend: B batch, N patches, H hidden, P values per patch, D width of the decoder, k points per group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models.encoder.patches import Mask, Patches, take
from models.encoder.point_ops import chamfer_l2
from models.encoder.transformer import Encoder, init_linear


@dataclass(frozen=True)
class PixelReadout:
    """Mean squared error of the values of a patch (MAE, section 3, "reconstruction target")."""

    kind: Literal["pixels"] = "pixels"
    normalise_patch: bool = False
    """Predict each patch relative to its own mean and standard deviation: better features, pictures that need the
    true mean to be shown."""


@dataclass(frozen=True)
class ChamferReadout:
    """Chamfer distance between predicted and true points of a group, squared, both ways summed (Point-MAE, eq. 4)."""

    kind: Literal["chamfer"] = "chamfer"


ReadoutSettings = PixelReadout | ChamferReadout


class Pixels(nn.Module):
    """A linear layer to the values of a patch."""

    reads_everything = False
    """Whether `decoded` is to hold the class token and the visible patches too."""

    def __init__(self, settings: PixelReadout, width: int, encoder: Encoder) -> None:
        super().__init__()
        self.normalise = settings.normalise_patch
        self.project = nn.Linear(width, encoder.tokenizer.num_values)
        init_linear(self.project)

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        target, known = _hidden(patches, mask)                               # B H P; B H P bool or None
        if self.normalise:
            mean, std = _statistics(target, known)
            target = (target - mean) / std
        error = (self.project(decoded) - target).square()
        return mean_over_samples(error, known, mask.hidden_valid)

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H P in the input's units. With normalise_patch the true mean and scale of the patch are borrowed, so
        that a picture can be shown: it then says nothing about brightness."""
        predicted = self.project(decoded)
        if self.normalise:
            mean, std = _statistics(*_hidden(patches, mask))
            predicted = predicted * std + mean
        return predicted


class Chamfer(nn.Module):
    """A linear layer to the points of a group."""

    reads_everything = False

    def __init__(self, settings: ChamferReadout, width: int, encoder: Encoder) -> None:
        super().__init__()
        self.project = nn.Linear(width, encoder.tokenizer.num_values)

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        target, _ = _hidden(patches, mask)
        points = (*target.shape[:2], -1, 3)                                  # B H k 3
        distance = chamfer_l2(self.project(decoded).reshape(points), target.reshape(points))        # B H
        return mean_over_samples(distance[..., None], None, mask.hidden_valid)

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H P, points relative to their centre."""
        return self.project(decoded)


Readout = Pixels | Chamfer


def build_readout(settings: ReadoutSettings, width: int, encoder: Encoder) -> Readout:
    """The module that these settings describe."""
    match settings:
        case PixelReadout():
            return Pixels(settings, width, encoder)
        case ChamferReadout():
            return Chamfer(settings, width, encoder)


def mean_over_samples(error: Tensor, known: Tensor | None, hidden_valid: Tensor | None) -> Tensor:
    """error B H P -> the mean over samples of the mean over their scored values. A sample with nothing to score
    counts as 0."""
    if known is None and hidden_valid is None:
        return error.mean()
    weight = error.new_ones(error.shape) if known is None else known.to(error.dtype)
    if hidden_valid is not None:
        weight = weight * hidden_valid[..., None].to(error.dtype)
    return ((error * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).mean()


def _hidden(patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
    known = None if patches.known is None else take(patches.known, mask.hidden)
    return take(patches.values, mask.hidden), known


def _statistics(target: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of each patch over its known values, B H 1 each, as MAE's code has them."""
    if known is None:
        return target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()
    weight = known.to(target.dtype)
    count = weight.sum(-1, keepdim=True)
    mean = (target * weight).sum(-1, keepdim=True) / count.clamp(min=1)
    var = ((target - mean).square() * weight).sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return mean, (var + 1e-6).sqrt()
