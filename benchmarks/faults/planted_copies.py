"""Copies of native files as they turn up in real collections: stored again, resized, brightened, scanned anew.

`TOLD` are alterations that the search for near duplicates is meant to find; `BEYOND` are those of which the recall is
reported without a bar: turned over, cropped, rotated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Alteration = Callable[[Path, Path, np.random.Generator], Path]
"""(file, target without ending, chance) -> the file written."""


# ---- films ----

def _film(change: Callable[[Any, np.random.Generator], Any], ending: str = ".png", **options: Any) -> Alteration:
    def alter(path: Path, target: Path, rng: np.random.Generator) -> Path:
        from PIL import Image
        with Image.open(path) as image:
            grey = image.convert("L")
        out = target.with_suffix(ending)
        change(grey, rng).save(out, **options)
        return out
    return alter


def _levels(function: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Callable[[Any, Any], Any]:
    def change(image: Any, rng: np.random.Generator) -> Any:
        from PIL import Image
        levels = function(np.asarray(image, np.float32), rng)
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return change


def _cropped(share: float) -> Callable[[Any, Any], Any]:
    def change(image: Any, _: Any) -> Any:
        x, y = int(image.width * share), int(image.height * share)
        return image.crop((x, y, image.width - x, image.height - y))
    return change


def _labelled(levels: np.ndarray, _: Any) -> np.ndarray:
    levels = levels.copy()
    height, width = levels.shape
    levels[height // 20:height // 8, width // 20:width // 4] = 255
    return levels


FILMS: dict[str, Alteration] = {
    "JPEG, quality 40": _film(lambda image, _: image, ".jpg", quality=40),
    "JPEG, quality 75": _film(lambda image, _: image, ".jpg", quality=75),
    "half the size": _film(lambda image, _: image.resize((image.width // 2, image.height // 2))),
    "brighter, less contrast": _film(_levels(lambda v, _: 0.7 * v + 50)),
    "noise of 5 grey levels": _film(_levels(lambda v, rng: v + rng.normal(0, 5, v.shape))),
}
FILMS_BEYOND: dict[str, Alteration] = {
    "gamma 0.6": _film(_levels(lambda v, _: 255 * (v / 255) ** 0.6)),
    "a label burned in": _film(_levels(_labelled)),
    "mirrored": _film(lambda image, _: image.transpose(0)),
    "turned by 90 degrees": _film(lambda image, _: image.transpose(2)),
    "rotated by 3 degrees": _film(lambda image, _: image.rotate(3)),
    "cropped by 2 %": _film(_cropped(0.02)),
    "cropped by 5 %": _film(_cropped(0.05)),
    "cropped by 10 %": _film(_cropped(0.10)),
    "inverted": _film(_levels(lambda v, _: 255 - v)),
}


# ---- CT ----

def _volume(change: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
            ) -> Alteration:
    def alter(path: Path, target: Path, rng: np.random.Generator) -> Path:
        import nibabel
        image: Any = nibabel.load(path)  # type: ignore[attr-defined]
        values, affine = change(np.asarray(image.dataobj, np.float32), image.affine.copy(), rng)
        out = target.with_suffix(".nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.round(values).astype(np.int16), affine), out)  # type: ignore[attr-defined]
        return out
    return alter


def _coarser(values: np.ndarray, affine: np.ndarray, _: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every second voxel of rows and columns, as means of two by two."""
    x, y = values.shape[0] // 2 * 2, values.shape[1] // 2 * 2
    halved = values[:x, :y].reshape(x // 2, 2, y // 2, 2, -1).mean(axis=(1, 3))
    affine[:3, 3] += affine[:3, :2].sum(axis=1) / 2
    affine[:3, :2] *= 2
    return halved, affine


def _stored_backwards(values: np.ndarray, affine: np.ndarray, _: Any) -> tuple[np.ndarray, np.ndarray]:
    affine[:3, 3] += affine[:3, 0] * (values.shape[0] - 1)
    affine[:3, 0] *= -1
    return values[::-1], affine


CT: dict[str, Alteration] = {
    "half the resolution": _volume(_coarser),
    "first axis stored backwards": _volume(_stored_backwards),
    "noise of 20 HU, 10 HU more": _volume(lambda v, affine, rng: (v + 10 + rng.normal(0, 20, v.shape), affine)),
}
CT_BEYOND: dict[str, Alteration] = {
    "mirrored": _volume(lambda v, affine, _: (v[::-1], affine)),
    "cropped by 10 %": _volume(lambda v, affine, _: (v[v.shape[0] // 10:, v.shape[1] // 10:], affine)),
}


# ---- multispectral ----

def _tile(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Alteration:
    def alter(path: Path, target: Path, rng: np.random.Generator) -> Path:
        import rasterio
        with rasterio.open(path) as dataset:
            values, profile, names = dataset.read(), dataset.profile, dataset.descriptions
        changed = np.clip(change(values.astype(np.float32), rng), 0, 65534).astype(np.uint16)
        out = target.with_suffix(".tif")
        profile = {"driver": "GTiff", "dtype": "uint16", "count": len(changed), "height": changed.shape[1],
                   "width": changed.shape[2], "crs": profile.get("crs"), "transform": profile["transform"]}
        with rasterio.open(out, "w", **profile) as dataset:
            dataset.write(changed)
            dataset.descriptions = names
        return out
    return alter


TILES: dict[str, Alteration] = {
    "stored in 256 steps": _tile(lambda v, _: np.round(v / v.max() * 255) * v.max() / 255),
    "10 % brighter": _tile(lambda v, _: 1.1 * v),
    "noise of 1 %": _tile(lambda v, rng: v * rng.normal(1, 0.01, v.shape)),
    "half the resolution": _tile(lambda v, _: v.reshape(len(v), v.shape[1] // 2, 2, v.shape[2] // 2, 2).mean((2, 4))),
}
TILES_BEYOND: dict[str, Alteration] = {
    "mirrored": _tile(lambda v, _: v[:, :, ::-1]),
    "turned by 90 degrees": _tile(lambda v, _: np.rot90(v, axes=(1, 2))),
    "cropped by 10 %": _tile(lambda v, _: v[:, v.shape[1] // 10:, v.shape[2] // 10:]),
}


# ---- clouds ----

def _mesh(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Alteration:
    def alter(path: Path, target: Path, rng: np.random.Generator) -> Path:
        from domains.pointcloud.off import read_off
        vertices, faces = read_off(path, 2_000_000)
        lines = [f"{x:.6f} {y:.6f} {z:.6f}" for x, y, z in change(np.asarray(vertices, np.float64), rng)]
        lines += [f"3 {a} {b} {c}" for a, b, c in faces]
        out = target.with_suffix(".off")
        out.write_text("\n".join(["OFF", f"{len(vertices)} {len(faces)} 0", *lines]) + "\n")
        return out
    return alter


def _about_up(degrees: float) -> Callable[[np.ndarray, Any], np.ndarray]:
    turn = np.radians(degrees)
    matrix = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    return lambda vertices, _: vertices @ matrix.T


CLOUDS: dict[str, Alteration] = {
    "sampled anew": _mesh(lambda v, _: v + 1e-4 * np.ptp(v)),
    "in another unit and place": _mesh(lambda v, _: 25.4 * v + 100),
    "vertices moved by 0.2 %": _mesh(lambda v, rng: v + rng.normal(0, 0.002 * np.ptp(v, axis=0).max(), v.shape)),
}
CLOUDS_BEYOND: dict[str, Alteration] = {
    "turned by 90 degrees": _mesh(_about_up(90)),
    "turned by 10 degrees": _mesh(_about_up(10)),
    "mirrored": _mesh(lambda v, _: v * np.array([-1, 1, 1])),
}
