"""How meshes and point clouds are to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from domains.pointcloud.cloud import CHANNELS

COLUMNS = ("x", "y", "z", *(channel for channels in CHANNELS.values() for channel in channels), "class")
"""What a column of numbers may be called."""


@dataclass(frozen=True)
class Points:
    """How meshes and point clouds are read."""

    kind: Literal["points"] = "points"
    """Tells the settings of the kinds apart."""
    size: tuple[int, ...] = (1024,)
    """How many points a model gets of each sample: [1024]."""
    points_per_sample: int = 8192
    """At most this many points are stored of each sample; training takes `size` of them anew each time. A cloud that
    has fewer is stored as it is."""
    sample: Literal["random", "farthest"] = "random"
    """Which points are stored. random: drawn at random from a cloud and by area from a mesh, in random order. farthest:
    each the farthest from all before it, in that order, so that they cover the shape evenly, thin parts and sparse ones
    too; evaluation takes the first `size`, which are the farthest points of that number, and training an even walk
    through all. Of a mesh they are chosen among four times as many by area, of a cloud among its first 262,144 drawn.
    """
    features: tuple[Literal["normals", "intensity", "colour"], ...] = ()
    """What is kept of each point besides its place, as further channels. normals: unit vectors, of a mesh those of its
    triangles. intensity, colour: shares of full scale, 0 to 1. A file that lacks one counts as unknown in it. Weights
    and data must have the same ones."""
    full_intensity: float = 65535.0
    """What a scanner writes for full intensity. LAS asks for 65535; many files run to 255 or 4095. Bytes always run to
    255, and floats that stay below 1 are shares already."""
    columns: tuple[str, ...] = ()
    """What the columns of text files and of .npy arrays are: [x, y, z, nx, ny, nz, red, green, blue, intensity, class]
    in the files' order, "-" for those to be passed over. Empty: what a first line of the file says, else x, y, z
    first."""
    fill: Literal["repeat", "unknown"] = "repeat"
    """What a cloud with fewer points than `size` is filled up with. repeat: its own points, each equally often, as
    published protocols do; groups of neighbours then hold copies. unknown: nothing; there are fewer groups of such a
    cloud. With features it is always unknown."""
    min_points: int = 64
    """Files, and tiles of them, with fewer finite points are refused."""
    scale: Literal["unit_sphere", "metres"] = "unit_sphere"
    """unit_sphere: scale is taken out, centroid to 0 and farthest point to 1; stored as float16, whose rounding of
    0.0005 is under a fiftieth of the distance between neighbours among 8,192 points on a sphere. metres: size carries
    meaning and is kept; stored as float32, since float16 would round a building to 3 cm."""
    metres_per_unit: float = 1.0
    """Length of the files' unit: 0.001 for millimetres, 0.3048 for feet."""
    y_up_sources: tuple[str, ...] = ()
    """Sources whose files have y pointing up, as many design programs do; they are turned so that z does."""
    tile_metres: float = 0.0
    """Cut each file into square tiles with this side, seen from above, for scenes too large for one sample; on a grid
    of multiples of the side, so that two surveys of one place are cut alike. Facts keep where each lies. 0: whole."""
    drop_noise: bool = True
    """LAS, LAZ: leave out points flagged as withheld or classed as noise (7, 18)."""
    max_points: int = 50_000_000
    """Files that hold, or promise, more points than this are refused: 50 million take 1.2 GB as coordinates."""

    def __post_init__(self) -> None:
        if len(self.size) != 1 or self.size[0] < 1:
            raise ValueError(f"size: found {self.size}, expected one number of points. Set size: [1024].")
        if self.points_per_sample < self.size[0]:
            raise ValueError(f"points_per_sample: found {self.points_per_sample}, expected at least size, "
                             f"{self.size[0]}. Store more points, or ask for fewer.")
        if self.min_points < 1:
            raise ValueError(f"min_points: found {self.min_points}, expected at least 1.")
        if not 0 < self.metres_per_unit < float("inf"):
            raise ValueError(f"metres_per_unit: found {self.metres_per_unit}, expected a positive length. "
                             "Set 0.001 for millimetres, 1 for metres.")
        if len(set(self.features)) != len(self.features):
            raise ValueError(f"features: found {list(self.features)}, expected each once.")
        if not 0 < self.full_intensity < float("inf"):
            raise ValueError(f"full_intensity: found {self.full_intensity}, expected a positive number. Set 65535, "
                             "4095 or 255.")
        _check_columns(self.columns)
        if not 0 <= self.tile_metres < float("inf"):
            raise ValueError(f"tile_metres: found {self.tile_metres}, expected a side in metres, or 0 for no tiles.")

    @property
    def metric(self) -> bool:
        """Whether lengths count."""
        return self.scale == "metres" or self.tile_metres > 0


def _check_columns(columns: tuple[str, ...]) -> None:
    named = [name for name in columns if name != "-"]
    strangers = sorted(set(named) - set(COLUMNS))
    if strangers or len(set(named)) != len(named) or (columns and not {"x", "y", "z"} <= set(named)):
        raise ValueError(f"columns: found {list(columns)}, expected x, y and z and any of {', '.join(COLUMNS[3:])}, "
                         'each once, and "-" for a column to be passed over.')
