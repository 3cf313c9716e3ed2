"""Masked autoencoding (He et al. 2022) on any patches: MAE in 2-D and 3-D, ChannelViT's sampling under
reconstruction, Point-MAE.

Legend: B batch, C channels, N patches, H hidden, P values per patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.masking import Masking, RandomMasking, check_masking, with_all_channels
from models.encoder.patches import Mask, Patches
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.hierarchical_decoder import HierarchicalDecoder, HierarchicalDecoderSettings
from models.objectives.readouts import PixelReadout, ReadoutSettings, build_readout, check_readout

AnyDecoderSettings = DecoderSettings | HierarchicalDecoderSettings
AnyDecoder = TransformerDecoder | HierarchicalDecoder


@dataclass(frozen=True)
class MaskedAutoencoderSettings:
    """Hide patches, predict them from the rest."""

    kind: Literal["masked_autoencoder"] = "masked_autoencoder"
    masking: Masking = field(default_factory=RandomMasking)
    """Which patches are hidden: random, block, channels, consistent, colour_noise or cells."""
    decoder: AnyDecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction: transformer (MAE) or hierarchical (Hi-End-MAE)."""
    readout: ReadoutSettings = field(default_factory=PixelReadout)
    """What is predicted: pixels, group_pixels or chamfer."""

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_readout(self.readout, encoder.tokenizer)
        check_masking(self.masking, encoder.tokenizer)
        if isinstance(self.decoder, HierarchicalDecoderSettings):
            self.decoder.fits(encoder)


class Reconstruction(NamedTuple):
    """What a picture is drawn from."""

    patches: Patches
    mask: Mask
    predicted: Tensor
    """B H P, in the input's units."""
    cut_from: tuple[Tensor, Tensor | None] | None = None
    """x and known that the patches were cut from, where these are not the input but a smaller copy of it."""
    finest: Tensor | None = None
    """B C H W in the input's units: a prediction of the whole input, where there is one beside the patches'."""


class MaskedAutoencoder(nn.Module):
    """Patchify, mask, encode, decode, read out."""

    def __init__(self, settings: MaskedAutoencoderSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking = settings.masking
        self.decoder = build_decoder(settings.decoder, encoder)
        self.readout = build_readout(settings.readout, settings.decoder.width, encoder)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        features = self.encoder(patches, mask, self.decoder.taps)
        decoded = self.decoder(features, patches, mask, self.readout.reads_everything)
        return {"reconstruction": self.readout(decoded, x, patches, mask)}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the prediction itself. Every channel is kept: a picture of some of its bands would show
        colours that nobody predicted."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        features = self.encoder(patches, mask, self.decoder.taps)
        decoded = self.decoder(features, patches, mask, self.readout.reads_everything)
        return Reconstruction(patches, mask, self.readout.predict(decoded, patches, mask))


def build_decoder(settings: AnyDecoderSettings, encoder: Encoder) -> AnyDecoder:
    """The module that these settings describe, behind this encoder."""
    match settings:
        case DecoderSettings():
            return TransformerDecoder(settings, encoder)
        case HierarchicalDecoderSettings():
            return HierarchicalDecoder(settings, encoder)
