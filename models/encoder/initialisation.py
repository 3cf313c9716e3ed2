"""First weights of self-attention that look like those of a trained transformer.

Legend: E width, h heads, k width of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.transformer import Block, Encoder

Initialisation = Literal["xavier", "mimetic"]
"""How random weights are drawn: xavier for every layer, as MAE does; or that with attention as `mimetic_initialisation`
has it."""
QUERY_KEY = (0.7, 0.7)
"""Share of noise and of the identity in what a head compares tokens by."""
VALUE_OUTPUT = (0.4, -0.4)
"""Likewise in what attention adds to a token: it takes some of the token away."""


def initialise(encoder: nn.Module, how: Initialisation, seed: int) -> None:
    """Go over the weights of a new encoder, which is built with xavier.

    Raises:
        ValueError: mimetic, and the encoder is no plain transformer.
    """
    if how == "xavier":
        return
    if not isinstance(encoder, Encoder):
        raise ValueError(f"initialisation {how}: found an encoder of kind {type(encoder).__name__}, expected a plain "
                         "transformer: what it imitates was seen in these. Leave `initialisation` out.")
    mimetic_initialisation(encoder, torch.Generator().manual_seed(seed))


@torch.no_grad()
def mimetic_initialisation(encoder: Encoder, generator: torch.Generator,
                           query_key: tuple[float, float] = QUERY_KEY,
                           value_output: tuple[float, float] = VALUE_OUTPUT) -> None:
    """Overwrite the attention weights of every block (Trockman & Kolter 2023, "Mimetic Initialization of Self-Attention
    Layers", arXiv 2305.09828, section 3).

    In trained vision transformers the product of query and key weights is near a multiple of the identity, and the
    product of value and output weights near a negative one. So each head's product, E E, is set to the nearest matrix
    of rank k to noise * Z + identity * I, and the block's value-output product to such a sum itself, with Z of
    independent normal numbers of variance 1/E, new for each. A product is shared out equally: both factors get the
    roots of its singular values.

    Args:
        generator: on the CPU; all numbers come from it, block by block, heads before the value-output product.
        query_key, value_output: (noise, identity) of the two kinds of product.

    Raises:
        ValueError: a block has other attention than a plain one (an adapter was added).
    """
    for block in encoder.blocks:
        if not isinstance(block, Block) or not isinstance(block.attention.qkv, nn.Linear):
            raise ValueError(f"found a block of kind {type(block).__name__} whose attention is not plain, expected the "
                             "encoder as it was built. Initialise before adapters are added.")
        attention = block.attention
        width = encoder.width // attention.num_heads
        query, key, value = attention.qkv.weight.chunk(3)                   # E E each, views; rows: heads times k
        for head in range(attention.num_heads):
            rows = slice(head * width, (head + 1) * width)
            left, right = _factors(encoder.width, *query_key, generator)
            query[rows], key[rows] = left[:width], right[:width]            # q'k sums over the k rows
        left, right = _factors(encoder.width, *value_output, generator)
        value.copy_(left)
        attention.proj.weight.copy_(right.T)


def _factors(width: int, noise: float, identity: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two matrices E E with left' right = noise * Z + identity * I; their first k rows give the nearest product of
    rank k (Eckart & Young)."""
    normal = torch.randn(width, width, generator=generator) / width ** 0.5
    u, s, vh = torch.linalg.svd(noise * normal + identity * torch.eye(width))
    root = s.sqrt()[:, None]
    return root * u.T, root * vh
