"""Masked autoencoding of a small copy of the image, and from its prediction the image itself at finer scales (SatMAE++,
Noman et al. 2024).

Legend: B batch, C bands, H W rows and columns of the input, h w of its small copy, N patches, V visible, S hidden,
P values per patch, D width of the decoder, F feature maps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, leaky_relu

from models.encoder.chance import Chance
from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.masking import Masking, RandomMasking, with_all_channels
from models.encoder.patches import Mask, Patches, take
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import (
    AnyDecoderSettings,
    MaskedAutoencoderSettings,
    Reconstruction,
    build_decoder,
)
from models.objectives.readouts import (
    GroupPixelReadout,
    GroupPixels,
    PixelReadout,
    Pixels,
    build_readout,
    mean_over_samples,
)

MAJORITY = 0.5
"""A pixel of the smaller copy is known when at least this share of the weight behind it is."""
RESIDUAL = 0.5
"""Weight of the two convolutions beside the feature maps that they refine."""


@dataclass(frozen=True)
class MultiScaleSettings:
    """Hide patches of a small copy; predict them, and the whole image at each finer scale up to the input's."""

    kind: Literal["multiscale"] = "multiscale"
    masking: Masking = field(default_factory=RandomMasking)
    """Which patches of the small copy are hidden."""
    decoder: AnyDecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction."""
    readout: PixelReadout | GroupPixelReadout = field(default_factory=PixelReadout)
    """What is predicted at the small scale: pixels, or group_pixels for groups of bands."""
    num_scales: int = 2
    """How often the prediction is doubled; the encoder sees the input at 1 / 2 ** num_scales of its size. SatMAE++: 2
    for Sentinel-2, 1 for RGB."""
    width: int | None = None
    """Feature maps between the scales; null: four per band."""
    share: float = 0.4
    """Weight of the finer scales in the loss, which are averaged; the small scale has the rest."""

    def __post_init__(self) -> None:
        if self.num_scales < 1 or not 0 < self.share < 1:
            raise ValueError(f"num_scales and share: found {self.num_scales} and {self.share}, expected at least 1 and "
                             "a share between 0 and 1. Without finer scales it is kind: masked_autoencoder.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        MaskedAutoencoderSettings(masking=self.masking, decoder=self.decoder, readout=self.readout).fits(encoder)
        patch = getattr(encoder.tokenizer, "patch", ())
        if len(patch) != 2 or isinstance(encoder.tokenizer, Grid2D3D):
            raise ValueError(f"objective multiscale is for images, found tokenizer {encoder.tokenizer.kind} with patch "
                             f"{list(patch)}. Take kind: masked_autoencoder.")


class Scale(NamedTuple):
    """The input at one size."""

    x: Tensor
    """B C h w, 0 where unknown."""
    known: Tensor | None
    """B C h w bool; None when all is."""


class MapNorm(nn.LayerNorm):
    """Normalises the feature maps at each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """B F h w -> B F h w"""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Doubling(nn.Module):
    """Feature maps at twice the size, refined by two convolutions, and the image that they show."""

    def __init__(self, width: int, num_bands: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1)
        self.up_norm = MapNorm(width, eps=1e-6)
        self.first = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.second = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm = MapNorm(width, eps=1e-6)
        self.image = nn.Conv2d(width, num_bands, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """B F h w -> B F 2h 2w, B C 2h 2w"""
        x = leaky_relu(self.up_norm(self.up(x)))
        x = self.norm(x + RESIDUAL * self.second(self.first(x).relu()))
        return x, self.image(x)


class Upscale(nn.Module):
    """From an image to larger ones, each twice the size of the one before."""

    def __init__(self, num_bands: int, width: int, num_scales: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(num_bands, width, kernel_size=1)
        self.norm = MapNorm(width, eps=1e-6)
        self.steps = nn.ModuleList(Doubling(width, num_bands) for _ in range(num_scales))

    def forward(self, image: Tensor) -> list[Tensor]:
        """B C h w -> B C 2h 2w, B C 4h 4w ..."""
        maps, out = self.norm(gelu(self.widen(image))), []
        for step in self.steps:
            maps, larger = step(maps)
            out.append(larger)
        return out


class Attempt(NamedTuple):
    """What one forward has made of the small copy."""

    patches: Patches
    mask: Mask
    decoded: Tensor
    """B S D: tokens of the hidden patches."""
    finer: list[Tensor]
    """B C 2h 2w, B C 4h 4w ..."""
    predicted: Tensor | None
    """B C h w bool: pixels of patches that were seen or asked for; None when every patch was."""


class MultiScaleAutoencoder(nn.Module):
    """Shrink, patchify, mask, encode, decode, read out, and enlarge what was read out."""

    def __init__(self, settings: MultiScaleSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder, self.masking = encoder, settings.masking
        self.num_scales, self.share = settings.num_scales, settings.share
        self.decoder = build_decoder(settings.decoder, encoder)
        readout = build_readout(settings.readout, settings.decoder.width, encoder)
        assert isinstance(readout, Pixels | GroupPixels), "the settings allow no other"
        self.readout = readout
        bands = encoder.num_channels
        self.upscale = Upscale(bands, settings.width or 4 * bands, settings.num_scales)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C H W, known likewise bool or None -> named losses, scalars. Raises ValueError where the size cannot be
        halved as often as there are scales."""
        small, *finer = self.scales(x, known)
        made = self.attempt(small, self.masking, chance)
        error = self.readout(made.decoded, small.x, made.patches, made.mask)
        return self.weighted(error, self.distance(made, finer))

    def weighted(self, error: Tensor, distance: Tensor) -> dict[str, Tensor]:
        """The two losses, each with its weight."""
        return {"reconstruction": (1 - self.share) * error, "finer_scales": self.share * distance}

    def distance(self, made: Attempt, finer: list[Scale]) -> Tensor:
        """Mean over the finer scales of the mean absolute error of the whole image."""
        return torch.stack([_distance(image, target, made.predicted)
                            for image, target in zip(made.finer, finer, strict=True)]).mean()

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the predictions themselves, with every band kept."""
        small = self.scales(x, known)[0]
        made = self.attempt(small, with_all_channels(self.masking), chance)
        predicted = self.readout.predict(made.decoded, made.patches, made.mask)
        return Reconstruction(made.patches, made.mask, predicted, (small.x, small.known), made.finer[-1])

    def scales(self, x: Tensor, known: Tensor | None) -> list[Scale]:
        """x B C H W -> the input at each size, smallest first, the input itself last."""
        step = 2 ** self.num_scales
        if any(size % step for size in x.shape[2:]):
            raise ValueError(f"found images of {list(x.shape[2:])} pixels, expected sizes that {step} divides: the "
                             f"encoder sees one {step}th of them. Choose another `size`, or fewer `num_scales`.")
        return [_shrink(x, known, step >> i) for i in range(self.num_scales + 1)]

    def attempt(self, small: Scale, masking: Masking, chance: Chance) -> Attempt:
        """Predict the small copy from some of its patches, and enlarge the prediction."""
        patches = self.encoder.tokenizer.patchify(small.x, small.known)
        mask = masking(patches, chance)
        return self.decode(patches, mask, small.x.shape[2:])

    def decode(self, patches: Patches, mask: Mask, size: torch.Size) -> Attempt:
        """The same with the mask given; size: h, w."""
        features = self.encoder(patches, mask, self.decoder.taps)
        decoded = self.decoder(features, patches, mask, everything=True)     # B (1)+V+S D
        seen_and_asked = torch.cat([mask.visible, mask.hidden], 1)           # B V+S
        guess = self._guess(decoded[:, -seen_and_asked.shape[1]:], take(patches.place, seen_and_asked))
        values, made = _put_back(guess, mask, patches.values.shape[1])       # B N P, B N bool
        tokenizer: Any = self.encoder.tokenizer                             # of images: the settings allow no other
        image = tokenizer.unpatchify(values, size)                          # B C h w
        predicted = None if made is None else tokenizer.unpatchify(made[..., None].expand_as(values), size)
        return Attempt(patches, mask, decoded[:, -mask.hidden.shape[1]:], self.upscale(image), predicted)

    def _guess(self, decoded: Tensor, place: Tensor) -> Tensor:
        """decoded B L D, place B L K -> B L P as the readout says it, normalised where its targets are."""
        return (self.readout.guess(decoded, place) if isinstance(self.readout, GroupPixels)
                else self.readout.project(decoded))


def _shrink(x: Tensor, known: Tensor | None, step: int) -> Scale:
    """B C H W at one `step`th of its size by bilinear weights over known pixels."""
    if step == 1:
        return Scale(x, known)
    size = [n // step for n in x.shape[2:]]
    if known is None:
        return Scale(interpolate(x, size=size, mode="bilinear", align_corners=False), None)
    total = interpolate(torch.where(known, x, 0.0), size=size, mode="bilinear", align_corners=False)
    weight = interpolate(known.to(x.dtype), size=size, mode="bilinear", align_corners=False)
    enough = weight >= MAJORITY
    return Scale(torch.where(enough, total / weight.clamp(min=MAJORITY), 0.0), enough)


def _put_back(guess: Tensor, mask: Mask, count: int) -> tuple[Tensor, Tensor | None]:
    """guess B V+S P in the order [visible, hidden] -> B N P in the order of the patches, 0 where there is none, and
    which have one, B N bool; None when all have. Filler at the end of a list goes nowhere."""
    index = torch.cat([mask.visible, mask.hidden], 1)
    batch = len(index)
    if mask.visible_valid is None and mask.hidden_valid is None and index.shape[1] == count:
        return take(guess, index.argsort(1)), None
    valid = torch.cat([torch.ones_like(at, dtype=torch.bool) if real is None else real for at, real in (
        (mask.visible, mask.visible_valid), (mask.hidden, mask.hidden_valid))], 1)
    index = torch.where(valid, index, count)                                # filler into a place that is cut off
    values = guess.new_zeros(batch, count + 1, guess.shape[2])
    values = values.scatter(1, index[..., None].expand_as(guess), guess)
    made = torch.zeros(batch, count + 1, dtype=torch.bool, device=index.device).scatter(1, index, valid)
    return values[:, :count], made[:, :count]


def _distance(image: Tensor, target: Scale, predicted: Tensor | None) -> Tensor:
    """Mean absolute error over known pixels of patches that had a prediction: image and target B C H W, predicted
    B C h w at the small scale -> scalar."""
    scored = target.known
    if predicted is not None:
        larger = interpolate(predicted.to(image.dtype), size=image.shape[2:], mode="nearest") > 0
        scored = larger if scored is None else scored & larger
    error = (image - target.x).abs().flatten(2)                              # B C H*W
    return mean_over_samples(error, None if scored is None else scored.flatten(2), None)
