"""Small encoders for the tests of adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from models.encoder.patches import Features, Patches
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings, Shape

WIDTH, DEPTH = 20, 3


def make(kind: str = "image", **settings) -> tuple[Encoder, Patches]:
    """An encoder in eval mode whose norms and biases are not at their start, and patches for it."""
    torch.manual_seed(0)
    tokenizer = Groups(num_groups=8, group_size=4, widths=(8, 8, 8)) if kind == "points" else Grid(patch=(4, 4))
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=Shape(WIDTH, DEPTH, 4), **settings), 3).eval()
    with torch.no_grad():
        for value in encoder.blocks.parameters():
            value += 0.1 * torch.randn_like(value)
    x = torch.randn(2, 32, 3) if kind == "points" else torch.randn(2, 3, 12, 16)
    return encoder, encoder.tokenizer.patchify(x)


def everything(features: Features) -> Tensor:
    """Patches, then prompts where there are some: B V+X E."""
    return features.tokens if features.extra is None else torch.cat([features.tokens, features.extra], 1)
