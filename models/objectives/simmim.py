"""Masked modelling with mask tokens in the encoder (SimMIM, Xie et al. 2022).

The encoder sees the whole sequence: tokens of the patches that are seen, and one learnt token at every hidden place.
What it makes of the latter is read out by a single linear layer; there is no decoder.

Legend: B batch, V visible, H hidden, E width of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.masking import Masking, check_masking, with_all_channels
from models.encoder.masking_cells import CellMasking
from models.encoder.patches import Mask, Patches, take
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.decoders import both_valid
from models.objectives.learnt_token import LearntToken
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import (
    ChamferReadout,
    GroupPixelReadout,
    PixelReadout,
    build_readout,
    check_readout,
)


@dataclass(frozen=True)
class SimMIMSettings:
    """Hide patches from an encoder that is told where they are, predict them with a linear layer."""

    kind: Literal["simmim"] = "simmim"
    masking: Masking = field(default_factory=CellMasking)
    """Which patches are hidden. The paper hides cells of 32 pixels, since small hidden pieces are guessed from their
    neighbours; points take random or block."""
    readout: PixelReadout | GroupPixelReadout | ChamferReadout = field(
        default_factory=lambda: PixelReadout(error="absolute"))
    """What is predicted: pixels (the paper's: error: absolute), group_pixels or chamfer."""

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_readout(self.readout, encoder.tokenizer)
        check_masking(self.masking, encoder.tokenizer)


class SimMIM(nn.Module):
    """Patchify, mask, encode with mask tokens, read out."""

    def __init__(self, settings: SimMIMSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking = settings.masking
        self.mask_token = LearntToken(encoder.width)
        self.readout = build_readout(settings.readout, encoder.width, encoder)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        return {"reconstruction": self.readout(self.restore(patches, mask), x, patches, mask)}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the prediction itself; every channel is kept."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        return Reconstruction(patches, mask, self.readout.predict(self.restore(patches, mask), patches, mask))

    def restore(self, patches: Patches, mask: Mask) -> Tensor:
        """-> B H E: what the encoder makes of the mask tokens."""
        seen, seen_code = self.encoder.embed(patches, mask.visible)          # B V E
        code = self.encoder.place_code(take(patches.place, mask.hidden), patches.grid)               # B H E
        tokens = torch.cat([seen, self.mask_token(*mask.hidden.shape).to(seen.dtype)], 1)            # B V+H E
        features = self.encoder.encode(tokens, torch.cat([seen_code, code], 1), both_valid(mask))
        return features.tokens[:, seen.shape[1]:]
