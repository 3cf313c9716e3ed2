"""Classes of points are kept as the mask of a cloud when the row's mask is the file itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from domains.pointcloud.ingest import Points, read
from domains.sample import ManifestRow, Refused
from tests.domains.pointcloud.test_ingest import cloud, write_las

PLAIN = Points(size=(64,), points_per_sample=512, min_points=16, scale="metres")


def masked(path: Path, mask: Path | None = None) -> ManifestRow:
    return ManifestRow(path, path.name, "g", "", "", mask_path=mask or path)


def side(points: np.ndarray) -> np.ndarray:
    """2 for points that lie east of the middle, else 5: as a file would class them."""
    return np.where(points[:, 0] > 0, 2, 5)


def write(path: Path, points: np.ndarray, suffix: str) -> Path:
    """A file of the format with a class for each point."""
    path = path.with_suffix(suffix)
    table = np.column_stack([points, side(points)])
    match suffix:
        case ".las":
            write_las(path, points, side(points))
        case ".ply":
            lines = "\n".join(" ".join(f"{value:.9g}" for value in line) for line in table)
            path.write_text(f"ply\nformat ascii 1.0\nelement vertex {len(points)}\nproperty double x\n"
                            f"property double y\nproperty double z\nproperty int label\nend_header\n{lines}\n")
        case ".xyz":
            lines = "\n".join(" ".join(f"{value:.9g}" for value in line) for line in table)
            path.write_text(f"# x y z classification\n{lines}\n")
        case ".npy":
            np.save(path, table)
    return path


@pytest.mark.parametrize("suffix", [".las", ".ply", ".xyz", ".npy"])
@pytest.mark.parametrize("sample", ["random", "farthest"])
def test_a_point_keeps_its_class_wherever_it_is_stored(tmp_path, suffix, sample):
    points = cloud(400)
    points[:, 0] -= points[:, 0].mean()
    path = write(tmp_path / "a", points, suffix)
    settings = dataclasses.replace(PLAIN, sample=sample, columns=("x", "y", "z", "class") if suffix == ".npy" else ())
    (piece,) = read(masked(path), settings)
    assert piece.mask is not None and piece.mask.dtype == np.uint8
    far = np.abs(piece.values[:, 0]) > 0.01   # LAS rounds places
    assert (piece.mask == side(piece.values))[far].all() and set(piece.mask) == {2, 5}


def test_tiles_of_a_scene_keep_the_classes_of_their_points(tmp_path):
    points = np.round(cloud(4000) + [50, 50, 0], 3)   # as LAS rounds them
    write_las(tmp_path / "a.las", points, np.where(points[:, 1] >= 50, 6, 2))
    pieces = read(masked(tmp_path / "a.las"), dataclasses.replace(PLAIN, tile_metres=2.0))
    assert len(pieces) > 3
    for piece in pieces:
        low = piece.facts["bounds"][1]
        assert set(piece.mask) == ({6} if low >= 50 else {2})


def test_without_a_mask_nothing_is_kept_and_the_points_are_the_same(tmp_path):
    path = write(tmp_path / "a", cloud(), ".las")
    (plain,), (kept,) = read(dataclasses.replace(masked(path), mask_path=None), PLAIN), read(masked(path), PLAIN)
    assert plain.mask is None and np.array_equal(plain.values, kept.values)


def test_classes_that_are_not_there_or_elsewhere_are_refused(tmp_path):
    np.savetxt(tmp_path / "bare.xyz", cloud())
    with pytest.raises(Refused, match="no class of its points"):
        read(masked(tmp_path / "bare.xyz"), PLAIN)
    path = write(tmp_path / "a", cloud(), ".las")
    with pytest.raises(Refused, match="its mask is another file"):
        read(masked(path, tmp_path / "bare.xyz"), PLAIN)
    (tmp_path / "mesh.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    with pytest.raises(Refused, match="no class of its points"):
        read(masked(tmp_path / "mesh.off"), PLAIN)
    odd = np.column_stack([cloud(), np.full(200, 2.5)])
    np.savetxt(tmp_path / "odd.xyz", odd, header="x y z class", comments="# ")
    with pytest.raises(Refused, match="found 200 numbers that are none"):
        read(masked(tmp_path / "odd.xyz"), PLAIN)
