"""Masked autoencoding (He et al. 2022) on any patches: MAE in 2-D and 3-D, ChannelViT's sampling under
reconstruction, Point-MAE.

Legend: B batch, C channels, N patches, H hidden, P values per patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.masking import ChannelMasking, Masking, RandomMasking, with_all_channels
from models.encoder.patches import Mask, Patches
from models.encoder.tokenizers import Bands, Groups
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.readouts import ChamferReadout, PixelReadout, ReadoutSettings, build_readout


@dataclass(frozen=True)
class MaskedAutoencoderSettings:
    """Hide patches, predict them from the rest."""

    kind: Literal["masked_autoencoder"] = "masked_autoencoder"
    masking: Masking = field(default_factory=RandomMasking)
    """Which patches are hidden: random, block or channels."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction."""
    readout: ReadoutSettings = field(default_factory=PixelReadout)
    """What is predicted: pixels or chamfer."""

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        points = isinstance(encoder.tokenizer, Groups)
        if points != isinstance(self.readout, ChamferReadout):
            raise ValueError(f"readout {self.readout.kind} does not fit tokenizer {encoder.tokenizer.kind}: "
                             "groups of points take chamfer, grids and bands take pixels.")
        if isinstance(self.masking, ChannelMasking) and not isinstance(encoder.tokenizer, Bands):
            raise ValueError("masking channels needs one token per band (tokenizer bands), "
                             f"found {encoder.tokenizer.kind}.")


class Reconstruction(NamedTuple):
    """What a picture is drawn from."""

    patches: Patches
    mask: Mask
    predicted: Tensor
    """B H P, in the input's units."""


class MaskedAutoencoder(nn.Module):
    """Patchify, mask, encode, decode, read out."""

    def __init__(self, settings: MaskedAutoencoderSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking = settings.masking
        self.decoder = TransformerDecoder(settings.decoder, encoder)
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
