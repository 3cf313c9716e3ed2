"""Functions that edit an encoder so that its weights suit other data: another patch size, other channels, another grid.

None of them invents anything. A kernel is resized so that it answers of a resized patch what it answered of the patch;
a channel gets the kernel of the one that means the same; a channel that nobody knows is refused, or begins with zeros,
which is to say without a say.

Legend: E width, C channels of the weights, J channels of the data, P values per patch, T rows of a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.encoder.band_groups import BandGroupTokenizer
from models.encoder.grid_2d_3d import Grid2D3DTokenizer
from models.encoder.patch_resize import resize_kernel
from models.encoder.positions import TablePositions, resize_rows
from models.encoder.swin import SwinSettings
from models.encoder.tokenizers import BandTokenizer, GridTokenizer, GroupTokenizer, build_tokenizer

TOLERANCE_NM = 35.0
"""Bands whose centres are at most this far apart may stand for each other. It joins a camera's blue, green and red to a
satellite's, and keeps red apart from the red edge."""
SAME = {"red": "r", "green": "g", "blue": "b", "gray": "grey"}
"""Names that mean the same, in small letters."""
GREY = ("grey", "hu", "intensity")
"""Channels that a colour image could have been made grey to: one number per place and no wavelength."""
COLOURS = {"r", "g", "b"}


class Named(Protocol):
    """What is asked of a channel: a contract's channels have it."""

    @property
    def name(self) -> str:
        """R, B2, grey, HU ..."""

    @property
    def wavelength_nm(self) -> float | None:
        """Centre wavelength of a spectral band."""


@dataclasses.dataclass(frozen=True)
class Match:
    """Which channels of the weights stand for each channel of the data."""

    sources: tuple[tuple[int, ...], ...]
    """For each channel of the data: none, one, or the three colours that a grey one is the sum of."""
    by_name: bool
    """Whether each has its namesake."""
    said: tuple[str, ...]
    """Sentences on what was taken for what."""


def resize_patch(encoder: Any, patch: Sequence[int]) -> list[str]:
    """Patch kernels at another size, by the pseudo-inverse of the resizing (FlexiViT, Beyer et al. 2023, section 3.4):
    exact where patches grow. Nothing else is changed: a table of positions follows the grid by itself, computed
    positions are counted in the new patches.

    Args:
        patch: (y, x) or (z, y, x); of an encoder for images and volumes it is the length that tells which.

    Returns:
        Sentences on what was resized.

    Raises:
        ValueError: groups of points, or another number of axes.
    """
    tokenizer, new = encoder.tokenizer, tuple(int(size) for size in patch)
    if isinstance(tokenizer, GroupTokenizer):
        raise ValueError("patch: found groups of points, expected patches of a grid. Leave the patch out.")
    field = "cube" if isinstance(tokenizer, Grid2D3DTokenizer) and len(new) == 3 else "patch"
    old = tuple(getattr(tokenizer, field))
    if len(new) != len(old) or min(new) < 1:
        raise ValueError(f"patch: found {list(new)}, expected {len(old)} sizes of at least 1, as the weights' "
                         f"{list(old)} has.")
    weights = _kernels(tokenizer, len(new))
    grouped = isinstance(tokenizer, BandGroupTokenizer)
    resized = [_by_band(weight, old, new) if grouped else resize_kernel(weight, old, new) for weight in weights]
    _rebuild_tokenizer(encoder, {field: new}, encoder.num_channels)
    with torch.no_grad():
        for weight, value in zip(_kernels(encoder.tokenizer, len(new)), resized, strict=True):
            weight.copy_(value)
    return [f"patch kernels resized from {_by(old)} to {_by(new)}"]


def resize_positions(encoder: Any, grid: Sequence[int]) -> list[str]:
    """Tables of positions with as many axes as `grid`, resized to it once, as they would be in every step otherwise:
    bicubic in 2-D, trilinear in 3-D. A table that its family resizes in a way of its own (ChannelViT) stays as it is,
    and so do computed positions.

    Returns:
        Sentences on what was resized.
    """
    said, wanted = [], tuple(int(size) for size in grid)
    for module in encoder.modules():
        if (isinstance(module, TablePositions) and not module.settings.channelvit_resize
                and len(module.settings.grid) == len(wanted) and module.settings.grid != wanted):
            old = module.settings
            rows = resize_rows(module.rows.detach(), old.grid, wanted)                  # T E
            module.rows = nn.Parameter(rows, requires_grad=module.rows.requires_grad)
            module.settings = dataclasses.replace(old, grid=wanted)
            encoder.settings = _with_table(encoder.settings, old, module.settings)
            how = "bicubic" if len(wanted) == 2 else "trilinear"
            said.append(f"table of positions resized from {_by(old.grid)} to {_by(wanted)} ({how})")
    return said


def fit_channels(encoder: Any, theirs: Sequence[Named], ours: Sequence[Named]) -> Match:
    """Kernels for the data's channels, each from the channel of the weights that means the same: see match_channels.

    Raises:
        ValueError: a channel of the data that the weights do not know; bands that are tokens of their own (tell those
            which channels they get: `tokenizer.read_channels`).
    """
    match = match_channels(theirs, ours)
    unknown = [channel.name for channel, source in zip(ours, match.sources, strict=True) if not source]
    if unknown:
        raise ValueError(strangers(unknown, theirs))
    if match.sources != tuple((i,) for i in range(len(theirs))):
        set_channels(encoder, match.sources)
    return match


def set_channels(encoder: Any, sources: Sequence[Sequence[int]]) -> None:
    """Kernels of J channels out of those of C: channel j gets the sum of the kernels of `sources`[j], zeros where that
    is empty. A sum answers of one value what the single kernels answer of that value repeated.

    Raises:
        ValueError: bands that are tokens of their own, or groups of points.
    """
    tokenizer = encoder.tokenizer
    if not isinstance(tokenizer, GridTokenizer | Grid2D3DTokenizer):
        raise ValueError(f"channels: found a tokenizer of kind {type(tokenizer).__name__}, expected a grid with all "
                         "channels inside one token: only there has every channel a kernel of its own.")
    axes = (2, 3) if isinstance(tokenizer, Grid2D3DTokenizer) else (len(tokenizer.patch),)
    old = [weight.detach().unflatten(1, (-1, tokenizer.num_channels)) for count in axes
           for weight in _kernels(tokenizer, count)]                                    # E P C each
    _rebuild_tokenizer(encoder, {}, len(sources))
    new = [weight for count in axes for weight in _kernels(encoder.tokenizer, count)]
    with torch.no_grad():
        for weight, kernel in zip(new, old, strict=True):
            mixed = [kernel[..., list(several)].sum(-1) for several in sources]         # of none: zeros
            weight.copy_(torch.stack(mixed, -1).flatten(1))                             # E P*J


def match_channels(theirs: Sequence[Named], ours: Sequence[Named]) -> Match:
    """For each channel of the data, the channel of the weights that means the same.

    By name, unless the wavelengths contradict it (Landsat's B5 is not Sentinel's). Then by the nearest wavelength
    within TOLERANCE_NM. A single grey channel is taken for the colours R, G and B that are all equal. A single channel
    that the weights have no name for is the data's single channel. A channel of the weights stands for one of the data
    at most: nothing is repeated over bands.

    Raises:
        ValueError: two channels of the data are near the same one of the weights, and nothing says which it is.
    """
    named = {_key(channel.name): i for i, channel in enumerate(theirs)}
    found: dict[int, int] = {}
    for j, channel in enumerate(ours):
        i = named.get(_key(channel.name))
        if i is not None and i not in found.values() and _near(channel, theirs[i]) is not False:
            found[j] = i
    by_name = len(found) == len(ours)
    said = _by_wavelength(theirs, ours, found)
    sources: tuple[tuple[int, ...], ...] = tuple((found[j],) if j in found else () for j in range(len(ours)))
    if sources == ((),) and len(theirs) == 1 and theirs[0].name.startswith("channel "):
        sources, said = ((0,),), [f"{ours[0].name} is the weights' only channel"]
    if sources == ((),) and set(named) == COLOURS and _key(ours[0].name) in GREY:
        sources = ((0, 1, 2),)
        said = [f"{ours[0].name} gets the sum of the kernels of {', '.join(c.name for c in theirs)}, which is the same "
                "as repeating it in each"]
    unused = [channel.name for i, channel in enumerate(theirs) if not any(i in several for several in sources)]
    if unused and any(sources):
        said.append(f"not in the data: {', '.join(unused)}; the weights see them at their mean everywhere")
    return Match(sources, by_name, tuple(said))


def strangers(unknown: Sequence[str], theirs: Sequence[Named]) -> str:
    """The sentence about channels that the weights do not know."""
    names = ", ".join(channel.name for channel in theirs)
    return (f"channels: found {', '.join(unknown)}, expected channels that the weights know ({names}), by name or "
            f"within {TOLERANCE_NM:g} nm. Kernels of other channels would mean nothing on them. Leave them out when "
            "ingesting; or import the file again and say what its channels are (--set channels=[...]), or which ones "
            "are to be added that begin with zeros (--new-channels).")


def _by_wavelength(theirs: Sequence[Named], ours: Sequence[Named], found: dict[int, int]) -> list[str]:
    """Add to `found` what is near enough; returns sentences. Raises ValueError where two claim the same."""
    claims: dict[int, list[int]] = {}
    for j, channel in enumerate(ours):
        near = [(_distance(channel, other), i) for i, other in enumerate(theirs) if i not in found.values()
                and _near(channel, other)]
        if j not in found and near:
            claims.setdefault(min(near)[1], []).append(j)
    said = []
    for i, claimants in claims.items():
        if len(claimants) > 1:
            several = " and ".join(ours[j].name for j in claimants)
            raise ValueError(f"channels: found {several}, each within {TOLERANCE_NM:g} nm of {theirs[i].name} of the "
                             "weights, expected one. Say which it is when importing: --set channels=[...] names the "
                             "weights' channels as the data does; leave the other out, or add it with --new-channels.")
        found[claimants[0]] = i
        own = ours[claimants[0]]
        said.append(f"{own.name} ({own.wavelength_nm:g} nm) is taken for {theirs[i].name} "
                    f"({theirs[i].wavelength_nm:g} nm)")
    return said


def _distance(a: Named, b: Named) -> float:
    assert a.wavelength_nm is not None and b.wavelength_nm is not None, "_near has looked"
    return abs(a.wavelength_nm - b.wavelength_nm)


def _near(a: Named, b: Named) -> bool | None:
    """Whether two bands are near each other; None where nobody knows."""
    if a.wavelength_nm is None or b.wavelength_nm is None:
        return None
    return _distance(a, b) <= TOLERANCE_NM


def _key(name: str) -> str:
    return SAME.get(name.lower(), name.lower())


def _by_band(weight: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """E c*P in (band, *patch) order -> E c*P'"""
    width = len(weight)
    return resize_kernel(weight.reshape(-1, old[0] * old[1]), old, new).reshape(width, -1)


def _kernels(tokenizer: Any, axes: int) -> list[Tensor]:
    """Weights of the projections of patches with this many axes."""
    match tokenizer:
        case GridTokenizer() | BandTokenizer():
            return [tokenizer.project.weight]
        case BandGroupTokenizer():
            return [layer.weight for layer in tokenizer.project]  # type: ignore[misc]
        case Grid2D3DTokenizer():
            return [(tokenizer.image if axes == 2 else tokenizer.volume).weight]
    raise AssertionError(f"{type(tokenizer).__name__} has no patches on a grid")


def _rebuild_tokenizer(encoder: Any, changes: dict[str, Any], num_channels: int) -> None:
    """The tokenizer of changed settings in place of the old one, with the old one's biases and fresh kernels; what the
    encoder's settings say follows."""
    old = encoder.tokenizer
    if isinstance(encoder.settings, SwinSettings):
        encoder.settings = dataclasses.replace(encoder.settings, **changes)
        new: Any = GridTokenizer(encoder.settings.patch, num_channels, old.project.out_features)
    else:
        encoder.settings = dataclasses.replace(
            encoder.settings, tokenizer=dataclasses.replace(encoder.settings.tokenizer, **changes))
        new = build_tokenizer(encoder.settings.tokenizer, num_channels, encoder.width)
    if isinstance(old, BandTokenizer | BandGroupTokenizer):
        new.read_channels(old.channels)
    state = new.state_dict()
    new.load_state_dict({name: value if value.shape == state[name].shape else state[name]
                         for name, value in old.state_dict().items()})
    encoder.tokenizer, encoder.num_channels = new.to(next(old.parameters())), num_channels


def _with_table(settings: Any, old: Any, new: Any) -> Any:
    """Settings with a table replaced, wherever among the positions it is."""
    if settings == old:
        return new
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    names = ("positions", "grid", "image", "volume")
    changed = {name: _with_table(getattr(settings, name), old, new) for name in names if hasattr(settings, name)}
    return dataclasses.replace(settings, **{name: value for name, value in changed.items()
                                            if value != getattr(settings, name)})


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
