"""What every family's translation is made with: a reader that keeps account of each tensor, and what comes out.

A translation moves tensors; it never computes new numbers, and it never guesses what weights cannot tell (the number of
heads, groups of bands, the size of a window): that comes from the file's own `args`, from a published model of the same
width and depth, or from the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

TIMM_BLOCK = {"norm1": "norm1", "attn.qkv": "attention.qkv", "attn.proj": "attention.proj", "norm2": "norm2",
              "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}
"""A transformer block as timm names it, and so MAE, ChannelViT, SatMAE, Point-MAE and Hi-End-MAE."""


class CannotImport(ValueError):
    """A file cannot be read as what it was taken for. The text says found, expected, remedy."""


@dataclass(frozen=True)
class Published:
    """A file after unwrapping: its tensors under bare names, and what else it says about itself."""

    tensors: dict[str, Tensor]
    """Contiguous, on CPU, without prefixes such as `module.`."""
    args: dict[str, Any] = field(default_factory=dict)
    """The run's command line where the file holds it (`argparse.Namespace`): plain values only."""
    given: dict[str, Any] = field(default_factory=dict)
    """What the user has said: `--set num_heads=6`."""
    wrappers: tuple[str, ...] = ()
    """Levels and prefixes that were taken off, outermost first."""


@dataclass(frozen=True)
class Channels:
    """What the weights' input channels mean, as far as the family fixes it."""

    names: tuple[str, ...]
    """R, G, B; B2, B3 ...; HU; x, y, z."""
    wavelengths_nm: tuple[float | None, ...] = ()
    """Centre wavelengths; empty: none."""
    unit: str = ""
    """Of the values before they are standardised."""
    mean: tuple[float, ...] = ()
    """Subtracted per channel; empty: 0."""
    std: tuple[float, ...] = ()
    """Divided by per channel; empty: 1."""
    low: tuple[float, ...] = ()
    """Values are clipped to [low, high] first; empty: 0."""
    high: tuple[float, ...] = ()
    """Upper end of the clip range; empty: 1."""


@dataclass(frozen=True)
class Translation:
    """What a file holds, in our terms."""

    family: str
    """Name of the family's file here."""
    licence: str
    """Of the published weights, as known."""
    settings: dict[str, Any]
    """Settings objects by part: `encoder` always, `objective` and `head` where the file has them."""
    num_channels: int
    """Channels that the encoder takes; 3 for points."""
    weights: dict[str, dict[str, Tensor]]
    """Tensors by part and our name within it; the parts of an objective are called after its children."""
    names: dict[str, list[str]]
    """Their name -> our names (part.name); more than one where a tensor is cut up."""
    size: tuple[int, ...]
    """Size of the input that the file was trained on: pixels, voxels, or number of points."""
    channels: Channels
    kind: str = "image"
    """Kind of data: image (photographs), xray, ct, multispectral, points."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Their name -> why it is of no use here."""
    missing: tuple[str, ...] = ()
    """Their names that the family promises and the file lacks."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: what was assumed, and from where."""


class Reader:
    """Takes tensors out of a file one by one, so that none is forgotten and none is used twice unseen."""

    def __init__(self, file: Published) -> None:
        self.file = file
        self.weights: dict[str, dict[str, Tensor]] = {}
        self.names: dict[str, list[str]] = {}
        self.dropped: dict[str, str] = {}
        self.missing: list[str] = []
        self.notes: list[str] = []

    def has(self, name: str) -> bool:
        """Whether the file holds this tensor."""
        return name in self.file.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that the family cannot do without. Raises CannotImport."""
        if name not in self.file.tensors:
            some = ", ".join(list(self.file.tensors)[:5])
            raise CannotImport(f"found no tensor {name!r} (the file begins with {some}), expected it in this family. "
                               "Give --family another name, or leave it out so that the file's names decide.")
        return tuple(self.file.tensors[name].shape)

    def move(self, theirs: str, part: str, ours: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Their tensor becomes our `part`.`ours`, through `change` (a reshape, a slice, a permutation)."""
        if theirs not in self.file.tensors:
            self.missing.append(theirs)
            return
        value = self.file.tensors[theirs]
        self.weights.setdefault(part, {})[ours] = (value if change is None else change(value)).contiguous()
        self.names.setdefault(theirs, []).append(f"{part}.{ours}")

    def move_layer(self, theirs: str, part: str, ours: str, change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Weight (through `change`) and, where the file has one, bias of a layer."""
        self.move(f"{theirs}.weight", part, f"{ours}.weight", change)
        if self.has(f"{theirs}.bias"):
            self.move(f"{theirs}.bias", part, f"{ours}.bias")

    def move_norm(self, theirs: str, part: str, ours: str) -> None:
        """A batch norm: weight, bias and running statistics."""
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            self.move(f"{theirs}.{name}", part, f"{ours}.{name}")

    def move_blocks(self, theirs: str, part: str, ours: str = "blocks",
                    table: Mapping[str, str] = TIMM_BLOCK, depth: int | None = None) -> int:
        """All blocks `theirs`.0, .1 ..., or the first `depth` where other things are numbered on behind them; returns
        how many there were."""
        depth = self.count(theirs) if depth is None else depth
        for i in range(depth):
            for name, own in table.items():
                self.move_layer(f"{theirs}.{i}.{name}", part, f"{ours}.{i}.{own}")
        return depth

    def count(self, prefix: str) -> int:
        """How many numbered children `prefix`.0, .1 ... the file has. Raises CannotImport when one is left out."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        numbers = {int(found[1]) for name in self.file.tensors if (found := pattern.match(name))}
        if numbers != set(range(len(numbers))):
            raise CannotImport(f"found {prefix} with the numbers {sorted(numbers)}, expected them without a gap. "
                               "The file is cut short or was edited.")
        return len(numbers)

    def drop(self, prefix: str, reason: str) -> None:
        """Leave a tensor, or all whose name begins with `prefix`, behind on purpose."""
        for name in self.left():
            if name.startswith(prefix):
                self.dropped[name] = reason

    def left(self) -> Iterator[str]:
        """Their names that were neither moved nor dropped."""
        return iter([name for name in self.file.tensors if name not in self.names and name not in self.dropped])

    def setting(self, name: str, meaning: str, preset: Any = None) -> Any:
        """Something that weights do not tell: what the user gave, else what the file's own command line has under this
        name, else the preset, else a refusal that says what to give."""
        if name in self.file.given:
            return self.file.given[name]
        if self.file.args.get(name) is not None:
            self.notes.append(f"{name} = {self.file.args[name]}: of the file's own args.")
            return self.file.args[name]
        if preset is None:
            raise CannotImport(f"weights do not tell {meaning}, and no published model has this size. "
                               f"Give it: --set {name}=...")
        self.notes.append(f"{name} = {preset}: of the published model with this width and depth.")
        return preset
