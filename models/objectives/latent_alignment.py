"""Predicting what the encoder would have made of hidden patches (Context Autoencoder, Chen et al. 2022), without its
tokenizer of images: what is decoded from the prediction are the patches themselves.

Legend: B batch, V visible, H hidden, E width of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.chance import Chance
from models.encoder.masking import Masking, RandomMasking, check_masking, with_all_channels
from models.encoder.patches import Features, Mask, Patches, take
from models.encoder.transformer import Block, Encoder, EncoderSettings, init_linear
from models.objectives.decoders import both_valid
from models.objectives.hierarchical_decoder import CrossAttention
from models.objectives.learnt_token import LearntToken
from models.objectives.masked_autoencoder import Reconstruction
from models.objectives.readouts import (
    ChamferReadout,
    GroupPixelReadout,
    PixelReadout,
    build_readout,
    check_readout,
    mean_over_samples,
)


@dataclass(frozen=True)
class LatentAlignmentSettings:
    """Encode what is seen, regress the codes of what is hidden, decode these."""

    kind: Literal["latent_alignment"] = "latent_alignment"
    masking: Masking = field(default_factory=lambda: RandomMasking(ratio=0.5))
    """Which patches are hidden."""
    regressor_depth: int = 4
    """Blocks from what is seen to codes of what is hidden."""
    decoder_depth: int = 4
    """Blocks from these codes to the patches; they see nothing else."""
    readout: PixelReadout | GroupPixelReadout | ChamferReadout = field(default_factory=PixelReadout)
    """What is decoded: pixels, group_pixels or chamfer."""
    alignment_weight: float = 2.0
    """Weight of the distance between regressed and encoded codes beside the error of what is decoded."""

    def __post_init__(self) -> None:
        if self.regressor_depth < 1 or self.decoder_depth < 0 or self.alignment_weight < 0:
            raise ValueError(f"latent_alignment: found regressor_depth {self.regressor_depth}, decoder_depth "
                             f"{self.decoder_depth} and alignment_weight {self.alignment_weight}, expected at least 1, "
                             "0 and 0.")

    def fits(self, encoder: EncoderSettings) -> None:
        """Raises ValueError for combinations that mean nothing."""
        check_readout(self.readout, encoder.tokenizer)
        check_masking(self.masking, encoder.tokenizer)


class LatentAlignment(nn.Module):
    """Patchify, mask, encode, regress, compare with the encoder's own codes, decode, read out."""

    def __init__(self, settings: LatentAlignmentSettings, encoder: Encoder) -> None:
        super().__init__()
        settings.fits(encoder.settings)
        self.encoder = encoder
        self.masking, self.alignment_weight = settings.masking, settings.alignment_weight
        self.place_code = encoder.tokenizer.place_code(encoder.width, encoder.settings.positions)
        self.regressor = Regressor(settings.regressor_depth, encoder.settings)
        self.decoder = CodeDecoder(settings.decoder_depth, encoder.settings)
        self.readout = build_readout(settings.readout, encoder.width, encoder)

    def forward(self, x: Tensor, known: Tensor | None, chance: Chance) -> dict[str, Tensor]:
        """x B C (D) H W or B M 3, known likewise bool or None -> named losses, scalars."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = self.masking(patches, chance)
        codes = self.regress(patches, mask)
        distance = (codes - self.encode_hidden(patches, mask)).square()      # B H E
        return {"reconstruction": self.readout(self.decode(codes, patches, mask), x, patches, mask),
                "alignment": self.alignment_weight * mean_over_samples(distance, None, mask.hidden_valid)}

    def reconstruct(self, x: Tensor, known: Tensor | None, chance: Chance) -> Reconstruction:
        """The same road, up to the prediction itself; every channel is kept."""
        patches = self.encoder.tokenizer.patchify(x, known)
        mask = with_all_channels(self.masking)(patches, chance)
        decoded = self.decode(self.regress(patches, mask), patches, mask)
        return Reconstruction(patches, mask, self.readout.predict(decoded, patches, mask))

    def regress(self, patches: Patches, mask: Mask) -> Tensor:
        """-> B H E: codes of hidden patches, out of those of seen ones and the places of both."""
        features: Features = self.encoder(patches, mask)
        index = torch.cat([mask.visible, mask.hidden], 1)
        code = self.place_code(take(patches.place, index), patches.grid)     # B V+H E
        out: Tensor = self.regressor(features.tokens, code, both_valid(mask))
        return out

    @torch.no_grad()
    def encode_hidden(self, patches: Patches, mask: Mask) -> Tensor:
        """-> B H E: what the same encoder makes of the hidden patches, when it sees these and nothing else."""
        features: Features = self.encoder(patches, Mask(mask.hidden, mask.visible[:, :0], some(mask.hidden_valid)))
        return features.tokens

    def decode(self, codes: Tensor, patches: Patches, mask: Mask) -> Tensor:
        """-> B H E. What is seen is not at hand, so all that the decoder knows has gone through the codes."""
        code = self.place_code(take(patches.place, mask.hidden), patches.grid)
        out: Tensor = self.decoder(codes + code, some(mask.hidden_valid))
        return out


class Regressor(nn.Module):
    """Blocks in which one query per hidden place attends to what is seen, which stays as it is, and to the queries."""

    def __init__(self, depth: int, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.shape.width
        self.query = LearntToken(width)
        self.blocks = nn.ModuleList(RegressorBlock(settings) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=settings.norm_eps)
        self.blocks.apply(init_linear)

    def forward(self, seen: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        """seen B V E, code B V+H E of seen and hidden places, valid B V+H -> B H E"""
        num_seen = seen.shape[1]
        x = self.query(len(seen), code.shape[1] - num_seen).to(seen.dtype)
        for block in self.blocks:
            x = block(x, seen + code[:, :num_seen], code[:, num_seen:], valid)
        out: Tensor = self.norm(x)
        return out


class RegressorBlock(nn.Module):
    """Pre-norm: attention of the queries to seen tokens and queries, then an MLP."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        width, eps = settings.shape.width, settings.norm_eps
        self.norm1, self.norm_memory = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.cross = CrossAttention(width, settings.shape.num_heads, settings.qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        hidden = settings.mlp_width or 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, seen: Tensor, code: Tensor, valid: Tensor | None) -> Tensor:
        """x B H E, seen B V E with its positions, code B H E, valid B V+H -> B H E"""
        placed = x + code
        memory = self.norm_memory(torch.cat([seen, placed], 1))              # B V+H E
        x = x + self.cross(self.norm1(placed), memory, valid)
        return x + self.mlp(self.norm2(x))


class CodeDecoder(nn.Module):
    """A few blocks of self-attention among the codes of hidden patches."""

    def __init__(self, depth: int, settings: EncoderSettings) -> None:
        super().__init__()
        shape = settings.shape
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.num_heads, mlp_width=settings.mlp_width, qkv_bias=settings.qkv_bias,
                  norm_eps=settings.norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(shape.width, eps=settings.norm_eps)
        self.blocks.apply(init_linear)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """x B H E with its positions, valid B H -> B H E"""
        for block in self.blocks:
            x = block(x, valid)
        out: Tensor = self.norm(x)
        return out


def some(valid: Tensor | None) -> Tensor | None:
    """The same, but all True where a sample has nothing: attention to nothing is not a number. Such a sample is filler
    through and through, and no loss counts it. valid B H bool -> B H bool"""
    return None if valid is None else valid | ~valid.any(1, keepdim=True)
