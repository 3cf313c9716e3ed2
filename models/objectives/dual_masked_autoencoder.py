"""Masked autoencoding with two decoders behind one encoder, each with a readout of its own: Uni4Eye (Cai et al. 2022)
restores the image with one and its gradient map with the other.

Legend: B batch, C channels, D H W voxels or pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.masking import Masking, RandomMasking, check_masking, with_all_channels
from models.encoder.patches import Features, Mask, Patches
from models.encoder.transformer import Encoder, EncoderSettings
from models.objectives.decoders import DecoderSettings
from models.objectives.hierarchical_decoder import HierarchicalDecoderSettings
from models.objectives.masked_autoencoder import AnyDecoderSettings, Reconstruction, build_decoder
from models.objectives.readouts import GradientReadout, PixelReadout, ReadoutSettings, build_readout, check_readout


@dataclass(frozen=True)
class DualMaskedAutoencoderSettings:
    """Hide patches, predict two things about them from the rest."""

    kind: Literal["dual_masked_autoencoder"] = "dual_masked_autoencoder"
    masking: Masking = field(default_factory=lambda: RandomMasking(ratio=0.5))
    """Which patches are hidden: random, block, channels and others."""
    decoder: AnyDecoderSettings = field(default_factory=DecoderSettings)
    """The first decoder: transformer or hierarchical."""
    readout: ReadoutSettings = field(default_factory=PixelReadout)
    """What it predicts. Pictures show this."""
    second_decoder: AnyDecoderSettings = field(default_factory=DecoderSettings)
    """The second decoder."""
    second_readout: ReadoutSettings = field(default_factory=GradientReadout)
    """What that one predicts."""
    second_weight: float = 1.0
    """What the second loss is multiplied with before the two are added."""

    def __post_init__(self) -> None:
        if not self.second_weight > 0:
            raise ValueError(f"second_weight: found {self.second_weight}, expected more than 0. Without a second loss "
                             "the objective is masked_autoencoder.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_masking(self.masking, encoder.tokenizer)
        for decoder, readout in ((self.decoder, self.readout), (self.second_decoder, self.second_readout)):
            check_readout(readout, encoder.tokenizer)
            if isinstance(decoder, HierarchicalDecoderSettings):
                decoder.fits(encoder)


class DualMaskedAutoencoder(nn.Module):
    """Patchify, mask, encode once; decode and read out twice."""

    def __init__(self, settings: DualMaskedAutoencoderSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking, self.weight = settings.masking, settings.second_weight
        self.decoder = build_decoder(settings.decoder, encoder)
        self.readout = build_readout(settings.readout, settings.decoder.width, encoder)
        self.second_decoder = build_decoder(settings.second_decoder, encoder)
        self.second_readout = build_readout(settings.second_readout, settings.second_decoder.width, encoder)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars: `reconstruction` and
        `second_reconstruction`, the latter already weighted."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        first, second = self.encode(patches, mask)
        decoded = self.decoder(first, patches, mask, self.readout.reads_everything)
        again = self.second_decoder(second, patches, mask, self.second_readout.reads_everything)
        return {"reconstruction": self.readout(decoded, x, patches, mask),
                "second_reconstruction": self.weight * self.second_readout(again, x, patches, mask)}

    def encode(self, patches: Patches, mask: Mask) -> tuple[Features, Features]:
        """The same features twice, each with the layers that its decoder has asked for."""
        taps = self.decoder.taps
        features = self.encoder(patches, mask, taps + self.second_decoder.taps)
        layers = features.layers
        return features._replace(layers=layers[:len(taps)]), features._replace(layers=layers[len(taps):])

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """What the first decoder restores, with every channel kept."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        first, _ = self.encode(patches, mask)
        decoded = self.decoder(first, patches, mask, self.readout.reads_everything)
        return Reconstruction(patches, mask, self.readout.predict(decoded, patches, mask))
