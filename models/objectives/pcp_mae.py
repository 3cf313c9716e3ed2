"""Masked autoencoding of points that predicts the centres of hidden groups (PCP-MAE, Zhang et al. 2024).

Point-MAE's decoder is given these centres, and they alone already say much about a shape. Here the encoder predicts
where a hidden group lies, out of what the group holds and what is seen; the decoder is given that guess.

Legend: B batch, V visible, H hidden, S = V + H, E width of the encoder and the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.masking import Masking, RandomMasking, check_masking
from models.encoder.patches import Features, Mask, Patches, take
from models.encoder.positions import WavePositions, Waves
from models.encoder.tokenizers import Groups
from models.encoder.transformer import Encoder, EncoderSettings, init_linear, mean_of_valid
from models.objectives.decoders import DecoderSettings, TransformerDecoder, both_valid
from models.objectives.learnt_token import LearntToken
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import ChamferReadout, build_readout, mean_over_samples


@dataclass(frozen=True)
class PCPMAESettings:
    """Predict where hidden groups lie, then what they hold, given that guess."""

    kind: Literal["pcp_mae"] = "pcp_mae"
    masking: Masking = field(default_factory=lambda: RandomMasking(ratio=0.6))
    """Which groups are hidden: random, block or colour_noise."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """What stands between features and prediction. It shares the encoder's position code, so its width is the
    encoder's and it takes no `positions`."""
    readout: ChamferReadout = field(default_factory=ChamferReadout)
    """What is predicted of the points."""
    centre_weight: float = 0.1
    """Weight of the error of the predicted centres beside that of the points."""
    detach: bool = True
    """Keep the points' error from changing the predicted centres, so that these stay centres."""

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        if not isinstance(encoder.tokenizer, Groups):
            raise ValueError(f"objective pcp_mae predicts centres of groups of points, found tokenizer "
                             f"{encoder.tokenizer.kind}. A grid's places are known beforehand: take drop_positions.")
        check_masking(self.masking, encoder.tokenizer)
        if not isinstance(encoder.positions, Waves) or encoder.class_token:
            found = "none" if encoder.positions is None else encoder.positions.kind
            raise ValueError(f"objective pcp_mae: found positions {found} and class_token "
                             f"{str(encoder.class_token).lower()}, expected positions: {{kind: waves}}, whose sines "
                             "and cosines are what is predicted, and class_token: false.")
        if self.decoder.width != encoder.shape.width or self.decoder.positions or self.decoder.class_position:
            raise ValueError(f"objective pcp_mae: found a decoder of width {self.decoder.width} or with positions of "
                             f"its own, expected width {encoder.shape.width} and none: it shares the encoder's code.")


class PCPMAE(nn.Module):
    """Patchify, mask, encode seen groups, predict centres of hidden ones, decode with these, read out."""

    def __init__(self, settings: PCPMAESettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking, self.centre_weight, self.detach = settings.masking, settings.centre_weight, settings.detach
        self.no_place = LearntToken(encoder.width)
        self.centre = nn.Sequential(nn.Linear(encoder.width, encoder.width), nn.LayerNorm(encoder.width), nn.ReLU(),
                                    nn.Linear(encoder.width, encoder.width))
        self.centre.apply(init_linear)
        self.decoder = TransformerDecoder(settings.decoder, encoder)
        self.decoder.place_code = encoder.place_code
        self.readout = build_readout(settings.readout, settings.decoder.width, encoder)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B M 3, known None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        features, centres = self.encode(patches, mask)
        target = self.code.waves(take(patches.place, mask.hidden))           # B H E
        return {"reconstruction": self.readout(self.decode(features, centres, patches, mask), x, patches, mask),
                "centres": self.centre_weight * mean_over_samples((centres - target).square(), None, mask.hidden_valid)}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the points themselves; a picture puts them at the true centres."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        decoded = self.decode(*self.encode(patches, mask), patches, mask)
        return Reconstruction(patches, mask, self.readout.predict(decoded, patches, mask))

    @property
    def code(self) -> WavePositions:
        """The position code that encoder and decoder share."""
        assert isinstance(self.encoder.place_code, WavePositions), "checked by the settings"
        return self.encoder.place_code

    def encode(self, patches: Patches, mask: Mask) -> tuple[Features, Tensor]:
        """Features of the seen groups, and predicted sines and cosines of the hidden ones' centres, B H E.

        One pass through the encoder's own blocks: seen groups look at seen ones only, as if they were alone; hidden
        ones, whose place is not told, look at all.
        """
        num_seen = mask.visible.shape[1]
        index = torch.cat([mask.visible, mask.hidden], 1)                    # B S
        x = self.encoder.tokenizer.embed(take(patches.values, index), take(patches.place, index))    # B S E
        code = torch.cat([self.code(take(patches.place, mask.visible)), self.no_place(*mask.hidden.shape)], 1)
        is_seen = torch.arange(index.shape[1], device=x.device) < num_seen
        looks_at = (is_seen[None, :] | ~is_seen[:, None]).expand(len(x), -1, -1)                     # B S S
        real = both_valid(mask)
        x, _ = self.encoder.transform(x, code, looks_at if real is None else looks_at & real[:, None])
        tokens = x[:, :num_seen]
        summary = mean_of_valid(tokens, mask.visible_valid)
        return Features(tokens, summary, valid=mask.visible_valid), self.centre(x[:, num_seen:])

    def decode(self, features: Features, centres: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H E: hidden tokens, each at the centre that was predicted for it."""
        x, code, valid = self.decoder.begin(features, patches, mask)
        guessed = self.code.network(centres.detach() if self.detach else centres)                    # B H E
        code = torch.cat([code[:, :mask.visible.shape[1]], guessed.to(code.dtype)], 1)
        decoded: Tensor = self.decoder.norm(self.decoder.run(x, code, valid)[:, -mask.hidden.shape[1]:])
        return decoded
