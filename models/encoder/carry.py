"""An encoder of images as the trunk of an encoder of points: blocks, norms and the code of places stay, the tokenizer
is new ("Any2Point", Tang et al. 2024)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from models.encoder.positions import Projections, SinCos, Table
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import Encoder, EncoderSettings

FIRST_WEIGHTS = 0
"""Seed of the new tokenizer: always the same, so that the trunk that adapters were put on is found again."""


def carry_to_points(encoder: Encoder, asked: EncoderSettings, size: Sequence[int], num_channels: int) -> Encoder:
    """A new encoder of groups of points.

    Args:
        encoder: of images, with a grid tokenizer.
        asked: its `tokenizer` is taken; its size must be the encoder's.
        size: pixels (y, x) of the images.
        num_channels: x, y, z and features of each point.

    Raises:
        ValueError: the size differs, or what is there cannot be looked at in planes.
    """
    held = encoder.settings
    if not isinstance(held.tokenizer, Grid) or len(held.tokenizer.patch) != 2:
        raise ValueError(f"found a start with tokenizer {held.tokenizer.kind}, expected grid with two sizes: places in "
                         "space are projected to planes. Start from weights of images.")
    if asked.shape != held.shape:
        raise ValueError(f"encoder.size: found {asked.shape}, expected {held.shape}, which the start has. Write that.")
    if held.positions is not None and not isinstance(held.positions, SinCos | Table):
        raise ValueError(f"found positions {held.positions.kind} in the start, expected sin_cos or table: there is "
                         "nothing to project to. Start from other weights.")
    assert isinstance(asked.tokenizer, Groups), "the caller looks"
    high, wide = (held.positions.grid if isinstance(held.positions, Table) else
                  [pixels // patch for pixels, patch in zip(size, held.tokenizer.patch, strict=True)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FIRST_WEIGHTS)
        new = Encoder(dataclasses.replace(held, tokenizer=asked.tokenizer, embed_hidden=False,
                                          positions=Projections(grid=(high, wide), plane=held.positions)), num_channels)
    state = new.state_dict()
    for name, value in encoder.state_dict().items():
        own = name.replace("place_code.", "place_code.plane.", 1) if name.startswith("place_code.") else name
        if not name.startswith("tokenizer."):
            state[own] = value
    new.load_state_dict(state)
    return new.train(encoder.training)
