"""How radiographs and CT volumes are to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from domains.medical.film import Fit


@dataclass(frozen=True)
class XRay:
    """How radiographs are read: DICOM, PNG or JPEG to one grey channel."""

    kind: Literal["xray"] = "xray"
    """Tells the settings of the kinds apart."""
    size: tuple[int, int] = (224, 224)
    """Height and width of the stored films."""
    fit: Fit = "letterbox"
    """letterbox: keep the whole film, with margins that count as unknown. crop: cut the longer side."""
    contrast: Literal["voi", "percentile"] = "voi"
    """voi: the window or table that a DICOM file carries for viewing, and percentiles where it carries none.
    percentile: always percentiles. 8-bit PNG and JPEG are taken as they are."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Grey runs from the first to the second of these percentiles of the exposed pixels."""
    allow_burned_in_text: bool = False
    """Take films whose header says that text is burned into the picture. It may name the patient."""
    burned_in: Literal["refuse", "flag", "ignore"] = "flag"
    """What to do about films that look as if lines of text were burned into them. flag: take them, with the fact
    `text_lines`, and count them. refuse: quarantine them. ignore: do not look, which saves about 2 ms a film. Not all
    text is found (docs/reliability.md), so nothing here makes films anonymous."""
    foreground: Literal["none", "exposed"] = "none"
    """exposed: cut off the black border that the collimator or a scanner left, before the film is brought to `size`;
    the fact `foreground` keeps the box (first row, row after the last, and likewise columns)."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 8:
            raise ValueError(f"size: found {self.size}, expected height and width of at least 8. Set size: [224, 224].")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles: found {self.percentiles}, expected two rising numbers from 0 to 100. "
                             "Set percentiles: [0.5, 99.5].")


@dataclass(frozen=True)
class CT:
    """How CT volumes are read: DICOM series and NIfTI to Hounsfield units on one grid and orientation."""

    kind: Literal["ct"] = "ct"
    """Tells the settings of the kinds apart."""
    size: tuple[int, int, int] = (96, 96, 96)
    """What a model gets, in voxels towards superior, posterior and left. Crops of larger volumes are cut while
    training; smaller ones are padded with unknown."""
    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    """Millimetres per stored voxel, in the same order."""
    scale: float = 1.0
    """HU = scale * number + offset, after the file's own slope and intercept."""
    offset: float = 0.0
    """See scale. -1000 for files that hold HU + 1000."""
    window: tuple[float, float] = (-1000.0, 1000.0)
    """HU are clipped to this range when they are normalised, not when they are stored. [-175, 250] suits abdominal
    organs, [-1000, 400] lungs."""
    cube: tuple[float, ...] = ()
    """Store a cube with edges of this many millimetres ([32]), or a block of three edges ([4, 24, 24]), instead of the
    whole volume. All are equally large, whatever the file's extent, which can betray the label. What lies outside the
    file is unknown, and that can betray it too: where files were cut close to a lesion, choose edges that nearly all
    of them fill (the fact `known` of each sample says how much of it was)."""
    cube_at: Literal["mask", "centre"] = "mask"
    """Where the cube's middle lies: at the mask's centre of mass, for which every row needs a mask, or in the middle of
    the file."""
    foreground: Literal["none", "body"] = "none"
    """body: store the box around what is denser than air (with a margin) instead of the whole volume: no air, no table.
    The fact `foreground` keeps it in voxels of the oriented file (first and one after the last, per axis). Masks are
    cut alike."""
    gantry_tilt: Literal["refuse", "straighten"] = "refuse"
    """What becomes of a DICOM series whose slices lean because the gantry was tilted. straighten: each slice is shifted
    within its plane until all lie above each other (domains/medical/volume.py); the fact `tilt_degrees` says how far
    they leaned."""
    check_units: bool = True
    """Stop when the numbers do not look like HU. Switch off for data without air, such as heads cut out of their
    surroundings."""
    max_voxels: int = 512 * 512 * 1024
    """Larger volumes are refused: these are a whole body at 2 mm, and take 1.1 GB as floats. For more, raise
    `limits.memory_gb` as well."""

    def __post_init__(self) -> None:
        if self.max_voxels < 1:
            raise ValueError(f"max_voxels: found {self.max_voxels}, expected at least 1.")
        if len(self.size) != 3 or min(self.size) < 4:
            raise ValueError(f"size: found {self.size}, expected three numbers of voxels of at least 4. "
                             "Set size: [96, 96, 96].")
        if len(self.spacing) != 3 or not all(0.05 <= step <= 20 for step in self.spacing):
            raise ValueError(f"spacing: found {self.spacing}, expected three numbers from 0.05 to 20 mm. "
                             "Set spacing: [1.5, 1.5, 1.5].")
        if self.scale == 0:
            raise ValueError("scale: found 0, expected the number that turns stored numbers into HU. Set scale: 1.")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window: found {self.window}, expected two rising numbers of HU. "
                             "Set window: [-1000, 1000].")
        if len(self.cube) not in (0, 1, 3) or not all(edge > 0 for edge in self.cube):
            raise ValueError(f"cube: found {self.cube}, expected one edge or three, in mm. Set cube: [32].")
        if self.cube and self.foreground != "none":
            raise ValueError(f"foreground: found {self.foreground} together with cube, expected one of them: a cube "
                             "has its own place and size. Remove cube, or set foreground: none.")
        if self.cube and any(n > count for n, count in zip(self.size, self.cube_shape, strict=True)):
            raise ValueError(f"cube: found {self.cube} mm, which is {self.cube_shape} voxels of {self.spacing} mm, "
                             f"expected at least size {self.size}. Enlarge cube, or make size or spacing smaller.")

    @property
    def cube_shape(self) -> tuple[int, ...]:
        """Voxels along each edge of the cube."""
        edges = self.cube * 3 if len(self.cube) == 1 else self.cube
        return tuple(max(1, round(edge / step)) for edge, step in zip(edges, self.spacing, strict=True))


Settings = XRay | CT
