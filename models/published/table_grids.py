"""How the rows of a published table of positions lie on their grid: weights alone tell only how many there are.

Legend: C channels, D H W voxels or pixels, T patches, E width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.encoder.transformer import Encoder
from models.published.translation import CannotImport, Reader


def grid_of_rows(read: Reader, count: int, axes: int, name: str = "grid") -> tuple[int, ...]:
    """Patches along each axis: what the user has given, else a square or a cube.

    Args:
        count: rows of the table, without those of class tokens.
        axes: 2 for images, 3 for volumes.
        name: of the setting by which a user gives it (`--set grid=[8,12]`).

    Raises:
        CannotImport: nothing was given and the rows make no square or cube, or what was given has not as many cells.
    """
    given = read.file.given.get(name)
    side = round(count ** (1 / axes))
    if given is None and side**axes == count:
        read.notes.append(f"{name} = {[side] * axes}: {count} positions were taken for a "
                          f"{'square' if axes == 2 else 'cube'}.")
        return (side,) * axes
    given = read.setting(name, f"how the {count} positions lie along {axes} axes")
    grid = tuple(int(size) for size in given) if isinstance(given, list | tuple) else (int(given),)
    if len(grid) != axes or math.prod(grid) != count:
        raise CannotImport(f"--set {name}: found {list(grid)}, expected {axes} numbers whose product is {count}, the "
                           "number of positions in the file.")
    return grid


def rows_for(size: Sequence[int], encoder: Encoder, place_code: nn.Module) -> Tensor:
    """1 T E: the codes of all patches of an input of that size, as a table for others to read."""
    patches = encoder.tokenizer.patchify(torch.zeros(1, encoder.num_channels, *size))
    codes: Tensor = place_code(patches.place, patches.grid)
    return codes
