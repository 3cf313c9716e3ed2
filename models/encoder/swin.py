"""The Swin transformer of Swin UNETR (Hatamizadeh et al. 2022), built of MONAI's blocks: windows instead of a global
view, half the resolution and twice the width after each stage.

It plays the part of `Encoder` and drops no patch: a map with holes has no windows. So it goes with objectives that hide
values, not tokens.

Legend: B batch, C channels, N patches, V cells of the last map, E width of a stage, K axes of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.patches import Features, Mask, Patches
from models.encoder.tokenizers import Grid, GridTokenizer
from models.encoder.transformer import mean_of_valid

STAGES = 4
"""As many as MONAI's class has."""
CORNERS = {
    "current": {2: ("00", "10", "01", "11"), 3: ("000", "100", "010", "001", "110", "101", "011", "111")},
    "legacy": {2: ("00", "10", "01", "11"), 3: ("000", "100", "010", "001", "101", "010", "001", "111")},
}
"""In which order the neighbours that are merged into one token stand in it: their parities along each axis. MONAI's
releases before 1.5 take two neighbours of a volume twice and leave two out; weights trained so need it so."""


@dataclass(frozen=True)
class SwinSettings:
    """A Swin encoder of four stages, as far as it does not follow from the data."""

    kind: Literal["swin"] = "swin"
    patch: tuple[int, ...] = (2, 2, 2)
    """Patch size in pixels (y, x) or voxels (z, y, x); as many numbers as the data has axes."""
    feature_size: int = 48
    """Numbers per patch; each stage doubles them, so that tokens have 16 times as many."""
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks in each stage; every second one shifts its windows by half."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads in each stage; they share its width equally."""
    window: tuple[int, ...] = (7, 7, 7)
    """Size of the windows in tokens of a stage; smaller where the map is."""
    mlp_ratio: float = 4.0
    """Hidden width of each block's MLP, in widths of its stage."""
    merging: Literal["legacy", "current"] = "current"
    """How neighbours are put together between stages: as in MONAI since 1.5 (current), or before (legacy), which
    all published Swin UNETR weights were trained with. The shapes of weights are the same."""
    drop_path: float = 0.0
    """Share of samples whose residual branch is skipped in the last block while training; grows linearly from 0."""
    dropout: float = 0.0
    """Share of activations dropped after attention and in the MLP while training."""

    def __post_init__(self) -> None:
        axes = len(self.tokenizer.patch)
        if len(self.window) != axes or min(self.window) < 1:
            raise ValueError(f"window: found {list(self.window)}, expected {axes} sizes of at least 1, one for each "
                             "axis of `patch`.")
        if len(self.depths) != STAGES or len(self.num_heads) != STAGES or min(*self.depths, *self.num_heads) < 1:
            raise ValueError(f"depths {list(self.depths)} and num_heads {list(self.num_heads)}: expected {STAGES} "
                             "numbers of at least 1 each, one for each stage.")
        uneven = [(width, heads) for width, heads in zip(self.widths, self.num_heads, strict=True) if width % heads]
        if uneven:
            raise ValueError(f"feature_size {self.feature_size} makes stages of the widths {list(self.widths)}; "
                             f"{uneven[0][0]} is not a multiple of its num_heads {uneven[0][1]}.")

    @property
    def tokenizer(self) -> Grid:
        """How samples are cut into patches. Raises ValueError for a patch that is none."""
        return Grid(patch=self.patch)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width inside each stage."""
        return tuple(self.feature_size << stage for stage in range(STAGES))


class Merging(nn.Module):
    """The 2 x 2 (x 2) neighbours of a map become one token, twice as wide as each (Swin, Liu et al. 2021, section
    3.1). Written here and not taken from MONAI, whose wiring has changed under one name."""

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm], spatial_dims: int, order: str) -> None:
        super().__init__()
        self.corners = [tuple(map(int, corner)) for corner in CORNERS[order][spatial_dims]]
        self.norm = norm_layer(len(self.corners) * dim)
        self.reduction = nn.Linear(len(self.corners) * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x B *grid E -> B *half 2E; odd sizes are filled up with zeros at their end."""
        filled = [amount for size in reversed(x.shape[1:-1]) for amount in (0, size % 2)]
        x = functional.pad(x, (0, 0, *filled))
        parts = [x[(slice(None), *(slice(first, None, 2) for first in corner))] for corner in self.corners]
        return self.reduction(self.norm(torch.cat(parts, -1)))               # B *half 2^K E -> B *half 2E


class SwinEncoder(nn.Module):
    """Embeds every patch, and hands the map from stage to stage."""

    def __init__(self, settings: SwinSettings, num_channels: int) -> None:
        super().__init__()
        self.settings, self.num_channels = settings, num_channels
        self.width = 2 * settings.widths[-1]
        self.tokenizer = GridTokenizer(settings.tokenizer.patch, num_channels, settings.feature_size)
        self.blocks = _stages(settings)

    def forward(self, patches: Patches, mask: Mask | None = None, layers: Sequence[int] = ()) -> Features:
        """Features of the last map, cell by cell, first axis slowest: B V 16E after a norm without parameters.

        Args:
            mask: must be None or hide nothing.
            layers: stages whose map is wanted too, counted from 0, cell by cell and before the norm; stage i has
                `stage_grid(patches.grid, i)` cells. The map before the first stage is `tokenizer.embed`.
        """
        assert mask is None or mask.hidden.shape[1] == 0, "a Swin encoder drops no patch; `fits` refuses what does"
        assert patches.grid is not None, "patches of a grid tokenizer have one"
        x = self.tokenizer.embed(patches.values).unflatten(1, patches.grid)  # B N E -> B *grid E
        taps = {}
        for i, stage in enumerate(self.blocks):
            x = through(stage, x)                                           # B *grid E -> B *half 2E
            taps[i] = x.flatten(1, -2)                                      # B cells 2E
        tokens = normalised(taps[STAGES - 1])                               # B V 16E
        valid = _cells_with_data(patches)
        return Features(tokens, mean_of_valid(tokens, valid), tuple(taps[i] for i in layers), valid)


def through(stage: Any, x: Tensor) -> Tensor:
    """One stage of MONAI's, x B *grid E -> B *half 2E. Its own forward wants a library (einops) to turn axes that never
    need turning here."""
    swin = _monai()
    window, shift = swin.get_window_size(x.shape[1:-1], stage.window_size, stage.shift_size)
    filled = [-(-size // edge) * edge for size, edge in zip(x.shape[1:-1], window, strict=True)]
    # which tokens of a shifted window are neighbours; without a shift, MONAI's blocks look at no mask
    mask = swin.compute_mask(filled, window, shift, x.device) if any(shift) and len(stage.blocks) > 1 else None
    for block in stage.blocks:
        x = block(x, mask)
    return stage.downsample(x)


def normalised(x: Tensor) -> Tensor:
    """x ... E -> the same, each token with mean 0 and variance 1: what Swin UNETR hands on from every stage."""
    return functional.layer_norm(x, x.shape[-1:])


def stage_grid(grid: Sequence[int], stage: int) -> tuple[int, ...]:
    """Cells along each axis of the map after this stage (from 0), for patches of this grid."""
    return tuple(-(-size // 2 ** (stage + 1)) for size in grid)


def _cells_with_data(patches: Patches) -> Tensor | None:
    """B V bool: cells of the last map under which any value is known; None when all are."""
    usable = patches.usable()
    if usable is None or bool(usable.all()):
        return None
    assert patches.grid is not None
    found = usable.unflatten(1, patches.grid)
    for axis in range(1, found.dim()):
        cells = -(-found.shape[axis] // 2 ** STAGES)
        rest = cells * 2 ** STAGES - found.shape[axis]
        filler = found.new_zeros([rest if i == axis else size for i, size in enumerate(found.shape)])
        found = torch.cat([found, filler], axis).unflatten(axis, (cells, -1)).any(axis + 1)
    return found.flatten(1)


def _stages(settings: SwinSettings) -> nn.ModuleList:
    """The four stages of MONAI's class. Its patch embedding is left: the tokenizer's is the same layer."""
    swin = _monai().SwinTransformer(
        in_chans=1, embed_dim=settings.feature_size, patch_size=settings.patch, window_size=settings.window,
        depths=settings.depths, num_heads=settings.num_heads, mlp_ratio=settings.mlp_ratio, qkv_bias=True,
        drop_rate=settings.dropout, drop_path_rate=settings.drop_path, spatial_dims=len(settings.patch),
        downsample=partial(Merging, order=settings.merging))
    stages = nn.ModuleList(swin.get_submodule(f"layers{i + 1}.0") for i in range(STAGES))
    for module in stages.modules():
        index = getattr(module, "relative_position_index", None)
        if isinstance(index, Tensor):  # follows from the window, so no checkpoint carries it
            module.register_buffer("relative_position_index", index, persistent=False)
    return stages


def _monai() -> ModuleType:
    """MONAI's module, imported by those alone who build a Swin encoder. Raises ImportError with the remedy."""
    try:
        from monai.networks.nets import swin_unetr
    except ImportError as error:
        raise ImportError("monai is missing, whose blocks the Swin encoder is made of. "
                          "Install it with: pip install 'lacuna[medical]'") from error
    module: ModuleType = swin_unetr
    return module
