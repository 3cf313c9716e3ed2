"""Readouts: what is predicted for each hidden patch, and how far off it is.

A loss is a mean per sample first and over samples second, so that it is the same on one rank and on several. Only known
values of hidden patches are scored.

Legend: B batch, N patches, H hidden, P values per patch, D width of the decoder, k points per group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models.encoder.band_groups import BandGroups, BandGroupTokenizer, pick_group
from models.encoder.grid_2d_3d import Grid2D3DTokenizer
from models.encoder.patches import Mask, Patches, take
from models.encoder.point_ops import chamfer_l1, chamfer_l2
from models.encoder.tokenizers import Groups, GroupTokenizer, TokenizerSettings
from models.encoder.transformer import Encoder, init_linear
from models.objectives.gradient_maps import gradient_map


@dataclass(frozen=True)
class PixelReadout:
    """Mean squared error of the values of a patch (MAE, section 3, "reconstruction target")."""

    kind: Literal["pixels"] = "pixels"
    normalise_patch: bool = False
    """Predict each patch relative to its own mean and standard deviation: better features, pictures that need the
    true mean to be shown."""
    biased_variance: bool = False
    """Divide by the number of values when a patch is normalised, as a layer norm does (Hi-End-MAE), not by one less
    (MAE)."""
    error: Literal["squared", "absolute"] = "squared"
    """How far off a value is: its squared difference (MAE), or the difference itself (SimMIM's L1)."""


@dataclass(frozen=True)
class ChamferReadout:
    """Chamfer distance between predicted and true points of a group (Point-MAE, eq. 4)."""

    kind: Literal["chamfer"] = "chamfer"
    distance: Literal["l2", "l1"] = "l2"
    """l2: squared distances, both ways summed, as Point-MAE was trained. l1: distances, both ways averaged."""


@dataclass(frozen=True)
class GroupPixelReadout:
    """Mean squared error of the values of a patch, by a linear layer for each group of bands (SatMAE). Each patch
    counts the same, however many bands its group has."""

    kind: Literal["group_pixels"] = "group_pixels"
    normalise_patch: bool = False
    """Predict each patch relative to the mean and standard deviation of its place, over all bands together."""


@dataclass(frozen=True)
class GradientReadout:
    """Mean squared error of how steep the image is at each pixel of a patch (Uni4Eye's second decoder)."""

    kind: Literal["gradients"] = "gradients"
    normalise_patch: bool = False
    """Predict each patch of the map relative to its own mean and standard deviation."""


ReadoutSettings = PixelReadout | ChamferReadout | GroupPixelReadout | GradientReadout


class Pixels(nn.Module):
    """A linear layer to the values of a patch."""

    reads_everything = False
    """Whether `decoded` is to hold the class token and the visible patches too."""

    def __init__(self, settings: PixelReadout, width: int, encoder: Encoder, num_values: int | None = None) -> None:
        super().__init__()
        self.normalise, self.biased = settings.normalise_patch, settings.biased_variance
        self.absolute = settings.error == "absolute"
        self.project = nn.Linear(width, num_values or encoder.tokenizer.num_values)
        init_linear(self.project)

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        return self.score(self.project(decoded), patches, mask)

    def score(self, predicted: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """predicted B H P -> scalar loss"""
        target, known = self.target(patches, mask)
        return mean_over_samples(self._off(predicted, target), known, mask.hidden_valid)

    def errors(self, decoded: Tensor, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Mean error of each hidden patch over its known values, B H, and which patches have any, B H bool."""
        target, known = self.target(patches, mask)
        error = self._off(self.project(decoded), target)
        if known is None:
            return error.mean(-1), None
        weight = known.to(error.dtype)
        return (error * weight).sum(-1) / weight.sum(-1).clamp(min=1), known.any(-1)

    def _off(self, predicted: Tensor, target: Tensor) -> Tensor:
        difference = predicted - target
        return difference.abs() if self.absolute else difference.square()

    def target(self, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """What is to be predicted, B H P, and which of it is known, B H P bool; None when all is."""
        target, known = _hidden(patches, mask)
        if self.normalise:
            mean, std = _statistics(target, known, self.biased)
            target = (target - mean) / std
        return target, known

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H P in the input's units. With normalise_patch the true mean and scale of the patch are borrowed, so
        that a picture can be shown: it then says nothing about brightness."""
        return self.in_input_units(self.project(decoded), patches, mask)

    def in_input_units(self, predicted: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """predicted B H P -> the same with the patch's own mean and scale, where targets were without."""
        if self.normalise:
            mean, std = _statistics(*_hidden(patches, mask), self.biased)
            predicted = predicted * std + mean
        return predicted


class Chamfer(nn.Module):
    """A linear layer to the places of the points of a group. Features are seen by the encoder, and not predicted."""

    reads_everything = False

    def __init__(self, settings: ChamferReadout, width: int, encoder: Encoder) -> None:
        super().__init__()
        tokenizer = encoder.tokenizer
        assert isinstance(tokenizer, GroupTokenizer), "checked by the objective's settings"
        self.chamfer = chamfer_l1 if settings.distance == "l1" else chamfer_l2
        self.group_size = tokenizer.group_size
        self.project = nn.Linear(width, tokenizer.num_coordinates)

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        distance, _ = self.errors(decoded, patches, mask)
        return mean_over_samples(distance[..., None], None, mask.hidden_valid)

    def errors(self, decoded: Tensor, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Distance of each hidden group, B H, and None: every group has points."""
        target = take(patches.values, mask.hidden)
        target = target.reshape(*target.shape[:2], self.group_size, -1)[..., :3]                     # B H k 3
        return self.chamfer(self.project(decoded).reshape(target.shape), target), None

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H k*3, points relative to their centre."""
        return self.project(decoded)


class GroupPixels(nn.Module):
    """A linear layer per group to the values of its bands. Prediction and target meet within a patch, so a band is
    compared with itself wherever its group stands."""

    reads_everything = False

    def __init__(self, settings: GroupPixelReadout, width: int, encoder: Encoder) -> None:
        super().__init__()
        tokenizer = encoder.tokenizer
        assert isinstance(tokenizer, BandGroupTokenizer), "checked by the objective's settings"
        self.normalise = settings.normalise_patch
        self.num_values, self.sizes = tokenizer.num_values, tokenizer.sizes
        self.project = nn.ModuleList(nn.Linear(width, size) for size in tokenizer.sizes)
        self.project.apply(init_linear)

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        error, scored = self.errors(decoded, patches, mask)
        return mean_over_samples(error[..., None], None if scored is None else scored[..., None], mask.hidden_valid)

    def errors(self, decoded: Tensor, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Mean squared error of each hidden patch over its known values, B H, and which patches have any, B H bool."""
        target, known = _hidden(patches, mask)                               # B H P; B H P bool or None
        if self.normalise:
            mean, std = self._statistics_of_places(patches, mask)
            target = (target - mean) / std
        error = (self.guess(decoded, take(patches.place, mask.hidden)) - target).square()
        if known is None:
            return error.mean(-1), None
        weight = known.to(error.dtype)
        return (error * weight).sum(-1) / weight.sum(-1).clamp(min=1), known.any(-1)

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H P in the input's units. With normalise_patch the true mean and scale of the place are borrowed."""
        predicted = self.guess(decoded, take(patches.place, mask.hidden))
        if self.normalise:
            mean, std = self._statistics_of_places(patches, mask)
            predicted = predicted * std + mean
        return predicted

    def guess(self, decoded: Tensor, place: Tensor) -> Tensor:
        """decoded B H D, place B H 3 -> B H P, 0 beyond the bands of the patch's group."""
        parts = [nn.functional.pad(layer(decoded), (0, self.num_values - size))
                 for layer, size in zip(self.project, self.sizes, strict=True)]
        return pick_group(parts, place[..., :1].long())

    def _statistics_of_places(self, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor]:
        """B H 1 each: of all known values of all groups at the place of each hidden patch, as SatMAE's code has it."""
        num_groups = len(self.project)

        def by_place(values: Tensor) -> Tensor:
            return values.unflatten(1, (num_groups, -1)).transpose(1, 2).flatten(2)                 # B n G*P

        known = None if patches.known is None else by_place(patches.known)
        mean, std = _statistics(by_place(patches.values), known)             # B n 1
        return take(mean.repeat(1, num_groups, 1), mask.hidden), take(std.repeat(1, num_groups, 1), mask.hidden)


class Gradients(nn.Module):
    """Pixels of the gradient map. It is made of the patches, so nothing but they is needed."""

    reads_everything = False

    def __init__(self, settings: GradientReadout, width: int, encoder: Encoder, num_values: int | None = None) -> None:
        super().__init__()
        tokenizer = encoder.tokenizer
        assert not isinstance(tokenizer, GroupTokenizer), "checked by the objective's settings"
        self.pixels = Pixels(PixelReadout(normalise_patch=settings.normalise_patch), width, encoder, num_values)
        # the methods, not the tokenizer: that would be saved a second time
        self.patchify, self.unpatchify = tokenizer.patchify, tokenizer.unpatchify
        self.patch: tuple[int, ...] = tokenizer.patch
        self.cube = tokenizer.cube if isinstance(tokenizer, Grid2D3DTokenizer) else None

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        return self.pixels(decoded, x, self.map_of(patches), mask)

    def errors(self, decoded: Tensor, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Mean error of each hidden patch over its known values, B H, and which patches have any, B H bool."""
        return self.pixels.errors(decoded, self.map_of(patches), mask)

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H P: the map, in input units per pixel."""
        return self.pixels.predict(decoded, self.map_of(patches), mask)

    def map_of(self, patches: Patches) -> Patches:
        """The same patches of the gradient map. It is known where all that it was made of is."""
        assert patches.grid is not None, "every tokenizer but that of points says how many patches there are"
        patch = self.cube if self.cube is not None and len(patches.grid) == 3 else self.patch
        size = [count * step for count, step in zip(patches.grid[-len(patch):], patch, strict=True)]
        known = None if patches.known is None else self.unpatchify(patches.known, size)
        return self.patchify(*gradient_map(self.unpatchify(patches.values, size), known))


class OfEither(nn.Module):
    """A readout for patches of images beside one for patches of volumes, for encoders that take both."""

    reads_everything = False

    def __init__(self, settings: PixelReadout | GradientReadout, width: int, encoder: Encoder) -> None:
        super().__init__()
        tokenizer = encoder.tokenizer
        assert isinstance(tokenizer, Grid2D3DTokenizer)
        kind = Pixels if isinstance(settings, PixelReadout) else Gradients
        self.image = kind(settings, width, encoder, tokenizer.num_values_of(2))  # type: ignore[arg-type]
        self.volume = kind(settings, width, encoder, tokenizer.num_values_of(3))  # type: ignore[arg-type]

    def forward(self, decoded: Tensor, x: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """decoded B H D -> scalar loss"""
        loss: Tensor = self.one_for(patches)(decoded, x, patches, mask)
        return loss

    def errors(self, decoded: Tensor, patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
        """Mean error of each hidden patch over its known values, B H, and which patches have any, B H bool."""
        return self.one_for(patches).errors(decoded, patches, mask)

    def predict(self, decoded: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H P in the input's units"""
        return self.one_for(patches).predict(decoded, patches, mask)

    def one_for(self, patches: Patches) -> Pixels | Gradients:
        """Which of the two these patches need."""
        return self.image if patches.place.shape[-1] == 2 else self.volume


Readout = Pixels | Chamfer | GroupPixels | Gradients | OfEither


def build_readout(settings: ReadoutSettings, width: int, encoder: Encoder) -> Readout:
    """The module that these settings describe."""
    match settings:
        case PixelReadout() | GradientReadout() if isinstance(encoder.tokenizer, Grid2D3DTokenizer):
            return OfEither(settings, width, encoder)
        case PixelReadout():
            return Pixels(settings, width, encoder)
        case ChamferReadout():
            return Chamfer(settings, width, encoder)
        case GroupPixelReadout():
            return GroupPixels(settings, width, encoder)
        case GradientReadout():
            return Gradients(settings, width, encoder)


def mean_over_samples(error: Tensor, known: Tensor | None, hidden_valid: Tensor | None) -> Tensor:
    """error B H P -> the mean over samples of the mean over their scored values. A sample with nothing to score
    counts as 0."""
    if known is None and hidden_valid is None:
        return error.mean()
    weight = error.new_ones(error.shape) if known is None else known.to(error.dtype)
    if hidden_valid is not None:
        weight = weight * hidden_valid[..., None].to(error.dtype)
    return ((error * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)).mean()


def check_readout(readout: ReadoutSettings, tokenizer: TokenizerSettings) -> None:
    """Raises ValueError where patches of that kind have nothing of the sort to predict."""
    if isinstance(tokenizer, Groups) != isinstance(readout, ChamferReadout):
        raise ValueError(f"readout {readout.kind} does not fit tokenizer {tokenizer.kind}: "
                         "groups of points take chamfer, grids and bands take pixels.")
    if isinstance(readout, GroupPixelReadout) and not isinstance(tokenizer, BandGroups):
        raise ValueError("readout group_pixels needs groups of bands (tokenizer band_groups), found "
                         f"{tokenizer.kind}. Take readout pixels.")


def _hidden(patches: Patches, mask: Mask) -> tuple[Tensor, Tensor | None]:
    known = None if patches.known is None else take(patches.known, mask.hidden)
    return take(patches.values, mask.hidden), known


def _statistics(target: Tensor, known: Tensor | None, biased: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch over its known values, B H 1 each; the variance is unbiased unless it
    is to be otherwise, as MAE's code has it."""
    less = 0 if biased else 1
    if known is None:
        return target.mean(-1, keepdim=True), (target.var(-1, correction=less, keepdim=True) + 1e-6).sqrt()
    weight = known.to(target.dtype)
    count = weight.sum(-1, keepdim=True)
    mean = (target * weight).sum(-1, keepdim=True) / count.clamp(min=1)
    var = ((target - mean).square() * weight).sum(-1, keepdim=True) / (count - less).clamp(min=1)
    return mean, (var + 1e-6).sqrt()
