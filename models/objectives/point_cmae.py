"""Contrastive masked autoencoding (Point-CMAE, Ren et al. 2024): one sample under two masks, each restored by a decoder
of its own; what both decoders say about a patch that neither view has seen should agree.

Legend: B batch, N patches, V visible, H hidden, E width of the encoder, D width of the decoders.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from models.encoder.batch_norm import SyncedBatchNorm1d
from models.encoder.chance import Chance
from models.encoder.masking import Masking, RandomMasking, with_all_channels
from models.encoder.patches import Features, Mask, Patches, take
from models.encoder.transformer import Encoder, EncoderSettings, init_linear
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings, Reconstruction
from models.objectives.readouts import ChamferReadout, ReadoutSettings, build_readout, mean_over_samples


@dataclass(frozen=True)
class PointCMAESettings:
    """Restore a sample twice, under two masks, and agree on what was hidden in both."""

    kind: Literal["point_cmae"] = "point_cmae"
    masking: Masking = field(default_factory=lambda: RandomMasking(ratio=0.6))
    """Which patches are hidden; it is drawn twice."""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """Each view's decoder; weights are not shared."""
    readout: ReadoutSettings = field(default_factory=ChamferReadout)
    """What is predicted; weights are not shared either."""
    agreement: Literal["same_patch", "all_pairs"] = "same_patch"
    """same_patch: a patch hidden in both views should look alike in both, as the paper says. all_pairs: it should look
    like *every* patch of the other view, which is what the released code computes."""
    agreement_weight: float = 0.001
    """Weight of the agreement beside the two reconstructions. The release multiplies these by 1000 instead."""
    summary_widths: tuple[int, ...] = ()
    """Widths of a projection of the class tokens, which the release carries and uses in no loss (256, 256): for its
    files. It is not trained here. Empty: there is none."""

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        MaskedAutoencoderSettings(masking=self.masking, decoder=self.decoder, readout=self.readout).fits(encoder)
        if encoder.class_token:
            raise ValueError("objective point_cmae has a class token for each view, which is thrown away afterwards: "
                             "found class_token: true, expected false.")


class View(nn.Module):
    """What belongs to one of the two masks."""

    def __init__(self, settings: PointCMAESettings, encoder: Encoder) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.class_position = nn.Parameter(torch.zeros(1, 1, encoder.width))
        self.decoder = TransformerDecoder(settings.decoder, encoder)
        self.readout = build_readout(settings.readout, settings.decoder.width, encoder)
        for token in (self.class_token, self.class_position):
            nn.init.normal_(token, std=0.02)


class PointCMAE(nn.Module):
    """Patchify and embed once; then mask, encode, decode and read out twice, and compare the decoders' features."""

    def __init__(self, settings: PointCMAESettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking, self.agreement = settings.masking, settings.agreement
        self.agreement_weight = settings.agreement_weight
        self.first, self.second = View(settings, encoder), View(settings, encoder)
        self.project_summary = summary_projection((encoder.width, *settings.summary_widths))

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        masks = self.masking(patches, chance), self.masking(patches, chance.branch(1))
        return self.losses(x, patches, masks)

    def losses(self, x: Tensor, patches: Patches, masks: tuple[Mask, Mask]) -> dict[str, Tensor]:
        """The named losses under two given masks."""
        embedded = self.embed(patches)
        views, features = (self.first, self.second), []
        reconstruction = x.new_zeros(())
        for view, mask in zip(views, masks, strict=True):
            sequence = view.decoder.sequence(self.encode(view, embedded, patches, mask), patches, mask)     # B V+H D
            features.append(sequence)
            reconstruction = reconstruction + view.readout(decoded_of(view, sequence, mask), x, patches, mask)
        agreement = disagreement(features[0], features[1], masks, patches.place.shape[1], self.agreement)
        return {"reconstruction": reconstruction, "agreement": self.agreement_weight * agreement}

    def embed(self, patches: Patches) -> Tensor:
        """-> B N E. Every patch, once for both views, which together hide few; batch norms then see all."""
        return self.encoder.tokenizer.embed(patches.values, patches.place)

    def encode(self, view: View, embedded: Tensor, patches: Patches, mask: Mask) -> Features:
        """What one view sees, with its class token in front, through the shared encoder. embedded B N E."""
        code = self.encoder.place_code(take(patches.place, mask.visible), patches.grid)         # B V E
        batch = len(code)
        x = torch.cat([view.class_token.expand(batch, -1, -1).to(embedded.dtype), take(embedded, mask.visible)], 1)
        code = torch.cat([view.class_position.expand(batch, -1, -1).to(code.dtype), code], 1)
        valid = None if mask.visible_valid is None else nn.functional.pad(mask.visible_valid, (1, 0), value=True)
        x, _ = self.encoder.transform(x, code, valid)                        # B 1+V E
        return Features(x[:, 1:], x[:, 0], valid=mask.visible_valid)

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """What the first view predicts under the first mask, every channel kept."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        features = self.encode(self.first, self.embed(patches), patches, mask)
        decoded = decoded_of(self.first, self.first.decoder.sequence(features, patches, mask), mask)
        return Reconstruction(patches, mask, self.first.readout.predict(decoded, patches, mask))


def decoded_of(view: View, sequence: Tensor, mask: Mask) -> Tensor:
    """What a view's readout is given out of B V+H D: B H D, or all of it where the readout reads everything."""
    decoded: Tensor = view.decoder.norm(sequence if view.readout.reads_everything
                                        else sequence[:, -mask.hidden.shape[1]:])
    return decoded


def summary_projection(widths: tuple[int, ...]) -> nn.Module:
    """Linear layers with batch norm and ReLU between them, frozen; the identity for one width."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [SyncedBatchNorm1d(before), nn.ReLU()] if i else []
        layers.append(nn.Linear(before, after))
    projection = nn.Sequential(*layers) if layers else nn.Identity()
    projection.apply(init_linear)
    return projection.requires_grad_(False)


def disagreement(first: Tensor, second: Tensor, masks: tuple[Mask, Mask], count: int,
                 agreement: Literal["same_patch", "all_pairs"]) -> Tensor:
    """1 - cosine of what two decoders say about patches that neither view has seen (Point-CMAE, section 3).

    Args:
        first, second: B V+H D each, in the order [visible, hidden] of its mask, before the decoder's last norm.
        count: N.
        agreement: same_patch is a mean per sample, then over samples. all_pairs is a mean over all pairs of the batch,
            as in the release.

    Returns:
        Scalar; 0 where no patch is hidden in both.
    """
    (one, _, hidden_one), (two, there, hidden_two) = (in_place(sequence.float(), mask, count) for sequence, mask in zip(
        (first, second), masks, strict=True))
    one, two, both = normalize(one, dim=-1), normalize(two, dim=-1), hidden_one & hidden_two
    if agreement == "same_patch":
        return mean_over_samples(1 - (one * two).sum(-1, keepdim=True), None, both)
    pairs = both[:, :, None] & there[:, None]                                # B N N
    with torch.autocast(one.device.type, enabled=False):  # 1 - cosine is small, and bfloat16 has three digits
        cosine = one @ two.transpose(1, 2)
    return ((1 - cosine) * pairs).sum() / pairs.sum().clamp(min=1)


def in_place(sequence: Tensor, mask: Mask, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """A decoder's tokens at the places of their patches.

    Args:
        sequence: B V+H D, in the order [visible, hidden].
        count: N.

    Returns:
        B N D, 0 for dropped patches; B N bool, which are not dropped; B N bool, which are hidden.
    """
    valid = [torch.ones_like(index, dtype=torch.bool) if flags is None else flags for index, flags in (
        (mask.visible, mask.visible_valid), (mask.hidden, mask.hidden_valid))]
    hidden = [torch.zeros_like(valid[0]), valid[1]]
    # Filler goes to a place beyond the last one, which is cut off
    index = torch.cat([mask.visible, mask.hidden], 1).masked_fill(~torch.cat(valid, 1), count)     # B V+H
    placed = sequence.new_zeros(len(index), count + 1, sequence.shape[-1])
    placed = placed.scatter(1, index[..., None].expand_as(sequence), sequence)
    nowhere = torch.zeros(len(index), count + 1, dtype=torch.bool, device=index.device)
    there, asked = nowhere.scatter(1, index, torch.cat(valid, 1)), nowhere.scatter(1, index, torch.cat(hidden, 1))
    return placed[:, :count], there[:, :count], asked[:, :count]
