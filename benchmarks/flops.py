"""How many operations a training step cannot do without, and what limit a rate of matrix products sets.

A multiplication with its addition counts as two. Matrix products alone: norms, activations and softmax move memory and
are not counted. Backward costs twice the forward, except that nothing is needed for the gradient of the input itself.
`measured` counts what torch does; tests compare the two.

Legend: N patches, V visible, S sequence, P values per patch, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.encoder.mask_lists import num_visible
from models.encoder.transformer import Shape
from models.objectives.decoders import DecoderSettings


@dataclass(frozen=True)
class Step:
    """Operations of one sample."""

    forward: float
    train: float
    """Forward, backward; the optimiser has no matrix products."""


def blocks(tokens: int, shape: Shape) -> float:
    """Forward operations of a transformer: projections, MLP four times the width, attention."""
    width = shape.width
    return shape.depth * (24.0 * tokens * width**2 + 4.0 * tokens**2 * width)


def mae(shape: Shape, num_patches: int, num_values: int, ratio: float = 0.75, decoder: DecoderSettings | None = None,
        kept: float = 1.0, embed: float | None = None) -> Step:
    """A masked autoencoder on N patches of P values, one class token; `kept` is the share of patches that are not
    dropped, as when channels are sampled. What decodes or predicts only what it must.

    Args:
        embed: forward operations of the embedding of one sample; None: a linear layer on the visible patches.
    """
    decoder = decoder or DecoderSettings()
    count = int(num_patches * kept)
    seen = num_visible(count, ratio)
    narrow = Shape(decoder.width, decoder.depth, decoder.num_heads)
    first = 2.0 * seen * num_values * shape.width if embed is None else embed
    rest = (blocks(seen + 1, shape) + 2.0 * (seen + 1) * shape.width * decoder.width + blocks(count + 1, narrow)
            + 2.0 * (count - seen) * decoder.width * num_values)
    return Step(first + rest, 3 * (first + rest) - first)


def point_mae(shape: Shape, groups: int, group_size: int, ratio: float = 0.6, depth: int = 4,
              widths: tuple[int, int, int] = (128, 256, 512)) -> Step:
    """Point-MAE: the PointNet and the network of places on visible groups, no class token, a decoder as wide as the
    encoder. Neighbours and distances are counted as nothing."""
    seen = num_visible(groups, ratio, "down")
    first, second, third = widths
    points = float(seen * group_size)
    net = 2 * points * (3 * first + first * second + 2 * second * third + third * shape.width)
    places = 2.0 * (seen + groups) * (3 * 128 + 128 * shape.width)
    rest = (places + blocks(seen, shape) + blocks(groups, Shape(shape.width, depth, shape.num_heads))
            + 2.0 * (groups - seen) * shape.width * 3 * group_size)
    return Step(net + rest, 3 * (net + rest) - 2 * points * 3 * first)


def measured(step: Callable[[], object]) -> float:
    """Operations that torch counts while `step` runs, with attention as two products, since the fused one is not
    counted on a CPU and is counted with its recomputation on a GPU."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())
