"""Fixed positions against the formulas of the papers, in float64."""

import itertools
import math

import pytest
import torch

from models.encoder.positions import GridPositions


def waves(position: int, dim: int) -> list[float]:
    """Vaswani et al. 2017, section 3.5, with sines and cosines apart as in MAE: angles position / 10000^(i / (dim/2)).
    """
    angles = [position / 10000 ** (i / (dim // 2)) for i in range(dim // 2)]
    return [*map(math.sin, angles), *map(math.cos, angles)]


@pytest.mark.parametrize(("dim", "grid"), [(16, (3, 5)), (24, (2, 3, 4)), (26, (2, 3, 4))])
@pytest.mark.parametrize("first_axis_first", [False, True])
def test_sines_and_cosines_are_those_of_the_paper_the_last_axis_first_as_in_mae(dim, grid, first_axis_first):
    places = list(itertools.product(*map(range, grid)))
    share = dim // (2 * len(grid)) * 2
    expected = []
    for place in places:
        axes = place if first_axis_first else place[::-1]               # MAE puts the column first
        code = [value for position in axes for value in waves(position, share)]
        expected.append(code + [0.0] * (dim - len(code)))
    code = GridPositions(dim, len(grid), first_axis_first)(torch.tensor(places, dtype=torch.float32)[None], grid)
    torch.testing.assert_close(code[0].double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
