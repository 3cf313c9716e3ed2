"""Draws the pictures of the README from the reports of `make repro`: `python scripts/readme_pictures.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TRACKS = {"xray": "X-ray", "ct": "CT", "parcels": "multispectral", "shapes": "point cloud"}
STEPS = ("input", "visible", "restored")
HEADER, ROWS = 24, 6
"""Pixels of the heading of a sheet of reconstructions, and its samples."""
MARGIN = 7
"""Pixels around a cell that belong to the sheet."""
SHOWN = {"xray": (1, 0), "ct": (1, 2), "parcels": (0, 1), "shapes": (4, 3)}
"""Samples of each sheet that are shown."""
PLANES = {"ct": 3}
"""Planes side by side in a cell; the first one is shown."""


def cells(track: str) -> list[list[np.ndarray]]:
    """The chosen samples of a track's sheet, each as what was put in, what was seen and what came back."""
    sheet = np.asarray(Image.open(ROOT / f"reports/pretrain/{track}/reconstruction.png").convert("RGB"))[HEADER:]
    high, wide = sheet.shape[0] / ROWS, sheet.shape[1] / len(STEPS)
    shown = wide / PLANES.get(track, 1)
    return [[sheet[round(row * high) + MARGIN:round((row + 1) * high) - MARGIN,
                   round(step * wide) + MARGIN:round(step * wide + shown) - MARGIN]
             for step in range(len(STEPS))] for row in SHOWN[track]]


def restored(path: Path) -> None:
    """Two samples of every track: input, visible patches, what the model restores."""
    matplotlib.rcParams["font.size"] = 9
    figure = Figure(figsize=(11, 2.25), dpi=140, layout="constrained")
    for part, (track, title) in zip(figure.subfigures(1, len(TRACKS)), TRACKS.items(), strict=True):
        part.suptitle(title, fontsize=10)
        for axes, sample in zip(part.subplots(2, len(STEPS)), cells(track), strict=True):
            for one, step, cell in zip(axes, STEPS, sample, strict=True):
                one.imshow(cell, interpolation="nearest")
                one.set_axis_off()
                if one.get_subplotspec().is_first_row():
                    one.set_title(step, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    folder = ROOT / "docs/pictures"
    folder.mkdir(parents=True, exist_ok=True)
    restored(folder / "restored.png")
    shutil.copyfile(ROOT / "reports/verdict/xray/curves.png", folder / "verdict.png")
