"""The types that a domain's reader, the store and the stages hand to each other.

Legend: B batch, C channels, D H W voxels or pixels, M points, F values per point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from domains.placement import Placement

Fact = str | int | float | list[int] | list[float] | list[str]

UNKNOWN_CLASS = 255
"""The value in a mask that means "nobody has looked here"; it is masked from every loss and score."""

DTYPES = ("uint8", "int16", "uint16", "float16", "float32")
"""What prepared data may hold."""


def mask_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a mask that belongs to values of `shape`: M for points M F, else all but the channels."""
    return shape[:1] if len(shape) == 2 else shape[1:]


def nearest_integer(values: np.ndarray) -> np.ndarray:
    """Whole numbers, ties going up, and so what lies less than a thousandth below a tie.

    Resampling by simple ratios makes many exact ties, and processors that sum in another order put some of them a
    rounding error to either side. With this rule they all store the same number.
    """
    shifted = np.asarray(values + (0.5 + 1e-3))
    return np.asarray(np.floor(shifted, out=shifted))


class Refused(Exception):
    """A reader's reason for not taking a file. The text must hold no header value beyond numbers and format names,
    because it is written to quarantine.csv and to the logs, where patient data must never go."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One line of a manifest, after the run's column names have been applied."""

    path: Path
    """Absolute path of the file, or of the folder of a DICOM series or of a band-per-file scene."""
    key: str
    """The path relative to the data folder: what the row is called everywhere."""
    group: str
    """The unit that a split never cuts: patient, scene or block, object."""
    split: str
    """train, val, test or unlabelled; empty where the manifest leaves the choice to us."""
    source: str
    """Where the row comes from (hospital, sensor, campaign); empty when there is one only."""
    mask_path: Path | None = None
    """A mask on the same grid, where there is one."""
    columns: dict[str, str] = field(default_factory=dict)
    """Every other column of the manifest as text; an empty text means unknown, never negative."""
    part: int = 0
    """Which part of its file is asked for, where that is too large to be held whole (see Part); 0 everywhere else."""
    within: Path | None = None
    """The folder that links beside and below `path` may not leave. None: links are followed wherever they lead."""
    sha256: str = ""
    """Of the file's bytes, for a reader that needs it; empty where nobody has hashed them yet."""
    content: bytes | None = field(default=None, repr=False, compare=False)
    """The file's bytes, where whoever hashed them holds all of them: a reader that takes them from here opens nothing,
    and what it reads is what was hashed. None for folders, large files, and where nobody has."""


@dataclass(frozen=True)
class Piece:
    """One sample as it will be stored: small numbers on the training grid.

    A reader returns one or several pieces per manifest row (an image cut into tiles gives several).
    """

    values: np.ndarray
    """C H W, C D H W or M F, of dtype uint8, int16, uint16, float16 or float32. Where the contract names an `unknown`
    value, that value marks pixels that hold no data (nodata, padding, a band that the file lacks)."""
    mask: np.ndarray | None = None
    """H W, D H W or M of uint8 classes, UNKNOWN_CLASS where unknown."""
    facts: dict[str, Fact] = field(default_factory=dict)
    """What a report may say of the sample: spacing, original shape, bounds, CRS code, orientation. Numbers and codes
    only: these reach index.parquet, logs and MLflow."""
    suffix: str = ""
    """Tells the pieces of one file apart ("@r0c64"); appended to the row's key."""
    placement: Placement | None = None
    """Where it lies in the file, for grids; None where that cannot be told. Not stored."""
    rows: np.ndarray | None = None
    """M int64, for points: which of the file's points these are, from 0; None unless asked for. Stays in the process
    that reads."""


@dataclass(frozen=True)
class Part:
    """Some of the samples of a file that is too large to be held whole; a reader is asked again for the next part.

    With the first part a reader vouches for the rest: it has decoded all of it, so that a file is taken or refused as
    a whole.
    """

    pieces: list[Piece]
    """May be empty: a part of a scene without data."""
    more: bool
    """Whether another part follows."""


TaskKind = Literal["single_label", "multi_label", "regression", "segmentation"]


@dataclass(frozen=True)
class Task:
    """What is to be predicted, and which manifest columns say it."""

    kind: TaskKind
    """single_label: one column, one class of several. multi_label: one column per finding, 0 or 1 each.
    regression: one column per number. segmentation: a class per pixel, voxel or point, which masks say."""
    columns: tuple[str, ...] = ()
    """The manifest columns. single_label takes exactly one. segmentation takes none; or one that lists, in a row, the
    classes that were looked for in it ("Brainstem SpinalCord", separated by spaces, commas or semicolons): the others
    may lie in what the mask calls background."""
    classes: tuple[str, ...] = ()
    """single_label: the class names in order. Empty: the sorted values that the training split holds. segmentation: the
    background's name first, then the others, in the order of `values`; required."""
    values: tuple[int, ...] = ()
    """segmentation: the number that each class has in mask files, the background's first. Empty: 0, 1, 2 and so on.
    Places with a number that is not named are unknown."""
    sources: tuple[str, ...] = ()
    """Take labels from these sources only; rows of other sources count as unlabelled. Empty: all."""
    where: dict[str, str] = field(default_factory=dict)
    """Take labels only from rows whose column has this value ({nir_valid: '1.0'}); other rows count as unlabelled."""

    def __post_init__(self) -> None:
        if self.kind == "segmentation":
            self._check_classes_of_masks()
            return
        if self.values:
            raise ValueError(f"`values` belongs to segmentation tasks; this one is {self.kind}. Remove it.")
        if not self.columns:
            raise ValueError("a task needs at least one label column; found none. Name it under `columns`.")
        if self.kind == "single_label" and len(self.columns) != 1:
            raise ValueError(f"a single_label task takes one column; found {len(self.columns)}: "
                             f"{', '.join(self.columns)}. Use kind: multi_label for several findings.")
        if self.kind != "single_label" and self.classes:
            raise ValueError(f"`classes` belongs to single_label tasks; this one is {self.kind}. Remove it.")

    def _check_classes_of_masks(self) -> None:
        if not 2 <= len(self.classes) <= UNKNOWN_CLASS or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: found {list(self.classes)}, expected different names, the background's first "
                             "and at least one more: what masks mark must have a name.")
        if self.values and (len(self.values) != len(self.classes) or len(set(self.values)) < len(self.values)
                            or not all(0 <= value < UNKNOWN_CLASS for value in self.values)):
            raise ValueError(f"values: found {list(self.values)} for {len(self.classes)} classes, expected a number "
                             f"from 0 to {UNKNOWN_CLASS - 1} for each, and no number twice.")
        if len(self.columns) > 1:
            raise ValueError(f"columns: found {len(self.columns)} for a segmentation task, expected none, or the one "
                             "that lists which classes were looked for in a row.")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what is told apart, in order: of masks all classes but the background."""
        match self.kind:
            case "single_label":
                return self.classes
            case "segmentation":
                return self.classes[1:]
        return self.columns

    def class_of(self) -> np.ndarray:
        """256 uint8: the class of every number that a mask may hold, UNKNOWN_CLASS where it has none."""
        table = np.full(256, UNKNOWN_CLASS, np.uint8)
        table[list(self.values or range(len(self.classes)))] = np.arange(len(self.classes))
        return table
