"""One encoder at several patch sizes (FlexiViT, Beyer et al. 2023, section 3).

The kernel stays stored at the size that the encoder's settings name. At another size it is resized anew in every step,
and places are counted in units of the stored size, so that sines and cosines say the same of the same spot; a table of
positions is resized to the grid, as it is for another image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from models.encoder.chance import Chance
from models.encoder.positions import GridPositions
from models.encoder.tokenizers import Bands, BandTokenizer, Grid, GridTokenizer
from models.encoder.transformer import Encoder, EncoderSettings

_SIZE = 81  # stream of chance

PatchSizes = tuple[tuple[int, ...], ...]
"""Pixels (y, x) or voxels (z, y, x) each."""


def drawn_size(sizes: PatchSizes, chance: Chance) -> tuple[int, ...]:
    """One of the sizes, each as likely, the same on all ranks and micro-batches of a step: shapes must agree."""
    return sizes[int(chance.shared_uniform(_SIZE) * len(sizes))]


def cut_at(encoder: nn.Module, patch: Sequence[int]) -> None:
    """From now on this encoder cuts patches of this size. Decoders and readouts keep the size that they were built for,
    so objectives that reconstruct go on only at the stored size.

    Raises:
        ValueError: no transformer on grid or bands, or another number of axes.
    """
    tokenizer = encoder.tokenizer
    if not isinstance(encoder, Encoder) or not isinstance(tokenizer, GridTokenizer | BandTokenizer):
        raise ValueError(f"found a {type(encoder).__name__} with a {type(tokenizer).__name__}, expected a transformer "
                         "on grid or bands: only these have a kernel that can be resized.")
    if len(patch) != len(tokenizer.stored):
        raise ValueError(f"patch: found {list(patch)}, expected {len(tokenizer.stored)} sizes, as the encoder's "
                         f"{list(tokenizer.stored)} has.")
    tokenizer.patch = tuple(patch)
    step = tuple(size / stored for size, stored in zip(patch, tokenizer.stored, strict=True))
    for module in encoder.place_code.modules():
        if isinstance(module, GridPositions):
            module.step = None if tokenizer.patch == tokenizer.stored else step


@contextmanager
def patches_of(encoder: nn.Module, patch: Sequence[int]) -> Iterator[None]:
    """Within, the encoder cuts at this size; afterwards at the one before."""
    tokenizer = encoder.tokenizer
    before = tokenizer.patch if isinstance(tokenizer, GridTokenizer | BandTokenizer) else ()
    cut_at(encoder, patch)
    try:
        yield
    finally:
        cut_at(encoder, before)


def check_sizes(sizes: PatchSizes, encoder: object, size: Sequence[int]) -> None:
    """Whether an encoder can cut samples of `size` into patches of these sizes. Raises ValueError where not.

    Args:
        encoder: its settings.
        size: pixels or voxels along each axis of a sample.
    """
    if not isinstance(encoder, EncoderSettings) or not isinstance(encoder.tokenizer, Grid | Bands):
        kind = getattr(getattr(encoder, "tokenizer", encoder), "kind", type(encoder).__name__)
        raise ValueError(f"patch sizes: found {kind}, expected a transformer on grid or bands: only these have a "
                         "kernel that can be resized.")
    for patch in sizes:
        if len(patch) != len(size) or min(patch) < 1 or any(a % b for a, b in zip(size, patch, strict=True)):
            raise ValueError(f"patch sizes: found {list(patch)}, expected {len(size)} sizes that divide the samples' "
                             f"{list(size)}. Take others, or ingest at another size.")
