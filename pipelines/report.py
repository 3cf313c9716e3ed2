"""Pictures and tables of what a stage did. Nothing here changes a result: a machine without matplotlib or pillow trains
and scores as well, and is told once what it goes without.

Every file is written whole or not at all. Pictures are made without pyplot, which keeps global state that a training
process must not share with whatever else draws in it.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domains.publish import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours: told apart with any colour vision, in the order in which arms come."""
DPI = 120
CELL = 160
"""Pixels of the longer side of a picture in a grid."""
GAP, CAPTION = 6, 18
LABEL = 90
"""Letters of a line below or above a plot of rows: what its width holds."""
BACKGROUND, INK = (24, 24, 24), (230, 230, 230)

Row = tuple[str, float | None, float | None, float | None]
"""Name, value, low, high."""

_said: set[str] = set()


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows as fixed-width text; numbers are right-aligned, what is missing is a dash. Empty without rows."""
    if not rows:
        return ""
    names = list(columns) or list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    right = [all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows) for name in names]
    widths = [max(len(line[i]) for line in [names, *cells]) for i in range(len(names))]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(text.rjust(width) if align else text.ljust(width)
                               for text, width, align in zip(line, widths, right, strict=True)).rstrip()
                     for line in lines)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV; columns in the order in which they first occur, empty where a row lacks one."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Plain values as JSON. A NaN is a fault of the caller: strict readers refuse it."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def loss_curve(path: Path, history: Sequence[Mapping[str, float]], title: str = "") -> bool:
    """Every loss over the steps, one line each, the sum among them; health numbers have other scales and stay out.

    Args:
        history: points {"step": 10, "loss": 0.7, ...} in order; points without a loss are passed over.

    Returns:
        Whether a picture was written: False without matplotlib, or without two points.
    """
    points = [point for point in history if "loss" in point]
    if len(points) < 2 or not can_draw():
        return False
    names = [name for name in dict.fromkeys(name for point in points for name in point)
             if name not in ("step", "learning_rate")]
    parts = [name for name in names if name != "loss"]
    shown = ["loss"] if len(parts) <= 1 else names  # a single part is the sum
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for i, name in enumerate(shown):
        steps, values = zip(*((point["step"], point[name]) for point in points if name in point), strict=True)
        axes.plot(steps, values, color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title)
    if len(shown) > 1:
        axes.legend(frameon=False)
    return save_figure(figure, path)


def reconstructions(path: Path, rows: Sequence[Sequence[np.ndarray]],
                    titles: Sequence[str] = ("input", "visible", "visible and restored", "restored, finest")) -> bool:
    """A grid of pictures, one sample per line, under the titles of its columns.

    Args:
        rows: uint8 H W 3 each (or H W, grey); they may differ in size.
    """
    if not rows or not can_draw("PIL"):
        return False
    from PIL import Image, ImageDraw

    pictures = [[_enlarged(picture) for picture in row] for row in rows]
    widths = [max(row[k].width for row in pictures) for k in range(len(pictures[0]))]
    heights = [max(picture.height for picture in row) for row in pictures]
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1) + CAPTION),
                      BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    top = CAPTION + GAP
    for row, height in zip(pictures, heights, strict=True):
        left = GAP
        for k, picture in enumerate(row):
            sheet.paste(picture, (left, top))
            if top == CAPTION + GAP and k < len(titles):
                pen.text((left, GAP), titles[k], INK)
            left += widths[k] + GAP
        top += height + GAP
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_bytes(path, content.getvalue())
    return True


def forest(path: Path, rows: Sequence[Row], label: str, title: str = "", zero: bool = False) -> bool:
    """One line per row: a dot with its interval, rows from the top.

    Args:
        rows: (name, value, low, high); a value of None is written as "not estimable", an interval of None is left out.
        zero: draw the line of no difference.
    """
    if not rows or not can_draw():
        return False
    figure = new_figure(7.2, 1.2 + 0.34 * len(rows))
    axes = figure.subplots()
    for i, (_, value, low, high) in enumerate(rows):
        if value is None:
            axes.text(0.5, i, "not estimable", transform=axes.get_yaxis_transform(), ha="center", va="center")
            continue
        if low is not None and high is not None:
            axes.plot([low, high], [i, i], color=COLOURS[0], linewidth=2, solid_capstyle="butt")
        # A hollow dot has no interval: nothing is said of how far it can be trusted.
        axes.plot([value], [i], "o", color=COLOURS[0], markerfacecolor=COLOURS[0] if low is not None else "white")
    if zero:
        axes.axvline(0, color="0.5", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # Below and above the whole figure: long names of rows leave the axes too narrow for either.
    figure.supxlabel(textwrap.fill(label, LABEL), fontsize="medium")
    figure.suptitle(textwrap.fill(title, LABEL), fontsize="large")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    return save_figure(figure, path)


def curves(path: Path, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[str, str],
           title: str = "") -> bool:
    """Named curves inside the unit square with its diagonal: ROC by arm."""
    if not lines or not can_draw():
        return False
    figure = new_figure(4.8, 4.6)
    axes = _unit_square(figure, labels, title)
    for i, (name, (x, y)) in enumerate(lines.items()):
        axes.plot(x, y, color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.6)
    axes.legend(frameon=False, loc="lower right")
    return save_figure(figure, path)


def reliability(path: Path, bins: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], title: str = "") -> bool:
    """Share right over mean confidence, one dot per bin, its area by the rows in it.

    Args:
        bins: name -> (mean confidence, share right, rows) of the bins that hold any.
    """
    if not bins or not can_draw():
        return False
    figure = new_figure(4.8, 4.6)
    axes = _unit_square(figure, ("confidence", "share right"), title)
    for i, (name, (certain, right, count)) in enumerate(bins.items()):
        colour, areas = COLOURS[i % len(COLOURS)], 10 + 160 * count / max(1, count.sum())
        axes.plot(certain, right, color=colour, linewidth=1, alpha=0.6)
        axes.scatter(certain, right, s=areas, color=colour, label=name)
    axes.legend(frameon=False, loc="upper left", markerscale=0.7)
    return save_figure(figure, path)


def scatter(path: Path, clouds: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[str, str],
            title: str = "", equal: bool = True) -> bool:
    """Points by name, such as predicted over true numbers of a regression; `equal`: with the line on which both are."""
    if not clouds or not can_draw():
        return False
    figure = new_figure(4.8, 4.6)
    axes = figure.subplots()
    every = np.concatenate([np.concatenate(pair) for pair in clouds.values()])
    if equal:
        axes.plot([every.min(), every.max()], [every.min(), every.max()], color="0.5", linewidth=1, linestyle="--")
    for i, (name, (x, y)) in enumerate(clouds.items()):
        axes.scatter(x, y, s=12, alpha=0.5, color=COLOURS[i % len(COLOURS)], label=name)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title)
    axes.legend(frameon=False)
    return save_figure(figure, path)


def strips(path: Path, columns: Mapping[str, np.ndarray], label: str, title: str = "") -> bool:
    """One dot per sample between 0 and 1, a strip for each name, with a bar at the median. NaN is left out."""
    if not any(np.isfinite(values).any() for values in columns.values()) or not can_draw():
        return False
    figure = new_figure(6.4, 1.3 + 0.62 * len(columns))
    axes = figure.subplots()
    for i, (name, values) in enumerate(columns.items()):
        shown = values[np.isfinite(values)]
        # A fixed spread: the same numbers give the same picture.
        lift = 0.26 * np.cos(2.4 * np.arange(len(shown)))
        axes.scatter(shown, i + lift, s=13, alpha=0.45, linewidths=0, color=COLOURS[i % len(COLOURS)], label=name)
        axes.plot([np.median(shown)] * 2, [i - 0.36, i + 0.36], color=COLOURS[i % len(COLOURS)], linewidth=2.2)
    axes.set_yticks(range(len(columns)), list(columns))
    axes.set_ylim(len(columns) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"{label}; bar: median")
    axes.set_title(title)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    return save_figure(figure, path)


def can_draw(library: str = "matplotlib") -> bool:
    """Whether pictures can be made; where not, that is printed once in a process."""
    if importlib.util.find_spec(library) is not None:
        return True
    if library not in _said:
        _said.add(library)
        name = {"PIL": "pillow"}.get(library, library)
        print(f"no pictures: {name} is not installed. To have them: pip install 'lacuna[tracking]'")
    return False


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _unit_square(figure: Figure, labels: tuple[str, str], title: str) -> Any:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title)
    return axes


def save_figure(figure: Figure, path: Path) -> bool:
    """Write it as PNG; True, so that a drawing function can end with it."""
    content = io.BytesIO()
    # No date and no version of the library: equal numbers give an equal file, which DVC then keeps once.
    figure.savefig(content, format="png", metadata={"Software": None})
    write_bytes(path, content.getvalue())
    return True


def _enlarged(picture: np.ndarray) -> Any:
    """A pillow image with its longer side near CELL; enlarged pixels stay square, so that a small picture is not taken
    for a blurred one."""
    from PIL import Image

    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise ValueError(f"picture: found {picture.dtype} of shape {picture.shape}, expected uint8 H W 3 or H W.")
    image = Image.fromarray(picture).convert("RGB")
    scale = max(1, round(CELL / max(image.size[1], 1)))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
