"""A sheet of test samples with true and predicted outlines: the worst, the middle and the best of the chosen model, and
what it finds where nothing is. Beside it the model that it is compared with, on the same samples.

Legend: K classes that are not background, H W pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from domains.contract import Contract
from domains.sample import UNKNOWN_CLASS
from pipelines import report
from pipelines.scoring import overlap
from pipelines.scoring.answers import masks
from pipelines.scoring.assessment import Arm, Unseen
from pipelines.scoring.evaluation_record import Evaluation
from pipelines.training.batches import Source, domain_code
from pipelines.training.true_masks import true_mask
from pipelines.weights.tuned_checkpoints import load_tuned

EACH = 2
"""Samples of each sort."""
PANEL = 1.75
"""Inches of a picture's side."""
TRUTH, CALLED = "#00E5FF", "#FF7A00"
"""Outlines where there is one class; several classes have a colour each."""
CLASSES = ("#FF7A00", "#00C2FF", "#7CFC00", "#FF4FD8", "#FFE600", "#B58CFF", "#8C5A2B")
VEIL = (0.6, 0.0, 0.6, 0.45)
"""Over pixels whose class nobody knows."""


class Chosen(NamedTuple):
    """A sample to be shown."""

    at: int
    """Place among the test rows."""
    why: str
    """"worst", "middle", "best", "nothing there"."""


@dataclass(frozen=True)
class View:
    """One plane of a sample."""

    image: npt.NDArray[np.uint8]
    """H W 3."""
    truth: npt.NDArray[np.uint8]
    """H W, UNKNOWN_CLASS where nobody has looked."""
    called: Mapping[str, npt.NDArray[np.int64]]
    """Name of a model -> H W."""
    painted: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Name of a model, or "truth" -> H W 3, for points, whose classes are colours: they have no outlines."""


def mask_sheet(path: Path, evaluation: Evaluation, unseen: Unseen, models: Mapping[str, Path], first: Arm,
               seed: str) -> list[Path]:
    """Draw some test samples. Returns the picture, or nothing where none can be drawn.

    Args:
        models: name -> checkpoint folder; the first one says which samples are shown. first: what its seeds say.
    """
    if not report.can_draw():
        return []
    told = first.predicted[list(first.temperatures).index(seed)]
    chosen = choose(unseen.labels, told)
    called = {name: _called(folder, evaluation.domain, unseen, chosen) for name, folder in models.items()}
    rows = []
    for one in chosen:
        of_model = {name: found[one.at] for name, found in called.items()}
        rows.append((one, views(unseen, evaluation.domain, one.at, of_model), _dice(unseen, one.at, of_model)))
    return [path] if rows and _draw(path, rows, unseen.task.outputs, f"{evaluation.name}: {evaluation.task}") else []


def choose(labels: npt.NDArray[np.float32], told: overlap.Floats) -> list[Chosen]:
    """The samples with the lowest, middle and highest Dice, and that without any class in which most was called.

    Args:
        labels: n K. told: n 3K counts.
    """
    dice = overlap.sample_means(labels, told[None])
    order = [int(i) for i in np.argsort(dice, kind="stable") if np.isfinite(dice[i])]
    middle = max(0, len(order) // 2 - EACH // 2)
    picked: dict[int, str] = {}
    for why, some in (("worst", order[:EACH]), ("best", order[::-1][:EACH][::-1]), ("middle", order[middle:][:EACH])):
        for at in some:
            picked.setdefault(at, why)
    ranked = [Chosen(at, picked[at]) for at in order if at in picked]
    _, clear = overlap.holding(labels, told)
    wrong = np.where(clear.all(axis=1), told[:, 1::3].sum(axis=1), 0)
    return [*ranked, Chosen(int(wrong.argmax()), "nothing there")] if wrong.any() else ranked


def views(unseen: Unseen, domain: str, at: int, called: Mapping[str, npt.NDArray[np.int64]]) -> list[View]:
    """A flat sample as it is; of a volume the slice with most of the truth (of what was called, where there is none),
    and the one across it."""
    prepared, row = unseen.prepared, int(unseen.rows[at])
    values, truth = prepared.values(row), true_mask(prepared, unseen.task_name, row)
    drawing: Any = domain_code(domain).picture
    if prepared.contract.kind == "points":
        painted = {name: _coloured(values, prepared.contract, one, drawing) for name, one in called.items()}
        painted["truth"] = _coloured(values, prepared.contract, truth, drawing)
        return [View(drawing.picture(values, prepared.contract), truth, called, painted)]
    if values.ndim == 3:
        return [View(drawing.picture(values, prepared.contract), truth, called)]
    of_interest = (truth > 0) & (truth != UNKNOWN_CLASS)
    if not of_interest.any():
        of_interest = np.logical_or.reduce([one > 0 for one in called.values()])
    found = []
    for axis in (0, 1):
        index = int(of_interest.sum(axis=tuple({0, 1, 2} - {axis})).argmax())
        found.append(View(drawing.section(values, prepared.contract, axis, index),
                          drawing.plane(truth, prepared.contract, axis, index),
                          {name: drawing.plane(one, prepared.contract, axis, index) for name, one in called.items()}))
    return found


def _coloured(points: np.ndarray, contract: Contract, classes: np.ndarray, drawing: Any) -> npt.NDArray[np.uint8]:
    """A cloud with a colour for each class; background and what nobody knows are grey."""
    palette = np.full((256, 3), 0.72)
    palette[UNKNOWN_CLASS] = 0.9
    for k, colour in enumerate(CLASSES):
        palette[1 + k:UNKNOWN_CLASS:len(CLASSES)] = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    channel = contract.channels[0]
    colours = tuple(replace(channel, name=name) for name in ("red", "green", "blue"))
    picture: npt.NDArray[np.uint8] = drawing.picture(
        np.concatenate([points[:, :3], palette[classes]], axis=1), replace(contract, channels=(
            *contract.channels[:3], *colours)))
    return picture


def _called(folder: Path, domain: str, unseen: Unseen, chosen: list[Chosen]) -> dict[int, npt.NDArray[np.int64]]:
    """Place among the test rows -> the mask that a model draws there."""
    model, contract, _ = load_tuned(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = unseen.rows[[one.at for one in chosen]]
    source = Source(unseen.prepared, contract, domain_code(domain), rows)
    return {one.at: mask for one, (_, mask) in zip(chosen, masks(model, source, device), strict=True)}


def _dice(unseen: Unseen, at: int, called: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, float]:
    truth = true_mask(unseen.prepared, unseen.task_name, int(unseen.rows[at]))
    outputs = len(unseen.task.outputs)
    return {name: float(overlap.sample_means(unseen.labels[[at]], overlap.counts(truth, one, outputs)[None, None])[0])
            for name, one in called.items()}


def _draw(path: Path, rows: list[tuple[Chosen, list[View], dict[str, float]]], outputs: tuple[str, ...],
          title: str) -> bool:
    models = list(rows[0][1][0].called)
    planes = len(rows[0][1])
    in_colours = bool(rows[0][1][0].painted)
    names = ["image", *(["truth"] if len(outputs) > 1 or in_colours else []), *models]
    figure = report.new_figure(0.7 + PANEL * len(names) * planes, 0.9 + PANEL * len(rows))
    panels = figure.subplots(len(rows), len(names) * planes, squeeze=False)
    for number, (line, (one, seen, dice)) in enumerate(zip(panels, rows, strict=True)):
        for at, axes in enumerate(line):
            view, name = seen[at // len(names)], names[at % len(names)]
            axes.imshow(view.painted.get(name, view.image), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if not in_colours:
                _outlines(axes, view, name, len(outputs))
            if np.isfinite(dice.get(name, np.nan)) and at < len(names):
                axes.text(0.03, 0.04, f"{dice[name]:.2f}", transform=axes.transAxes, color="white", fontsize=8,
                          bbox={"facecolor": "black", "alpha": 0.6, "pad": 1.5, "linewidth": 0})
            if number == 0:
                plane = "" if planes == 1 else (", axial", ", coronal")[at // len(names)]
                axes.set_title(f"{name}{plane}", fontsize=9)
        line[0].set_ylabel(one.why, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles=_legend(outputs, in_colours), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return report.save_figure(figure, path)


def _outlines(axes: Any, view: View, name: str, num_outputs: int) -> None:
    """Truth and prediction over each other where there is one class; with several, each in a panel of its own."""
    unknown = view.truth == UNKNOWN_CLASS
    if name != "image" and unknown.any():
        veil = np.zeros((*unknown.shape, 4))
        veil[unknown] = VEIL
        axes.imshow(veil, interpolation="nearest")
    truth = np.where(unknown, 0, view.truth)
    shown = {"image": [], "truth": [truth]}.get(name) if name in ("image", "truth") else [view.called[name]]
    for mask in shown or []:
        for k in range(1, num_outputs + 1):
            _outline(axes, mask == k, CALLED if num_outputs == 1 else CLASSES[(k - 1) % len(CLASSES)])
    if num_outputs == 1 and name != "image":
        _outline(axes, truth == 1, TRUTH)


def _outline(axes: Any, inside: npt.NDArray[np.bool_], colour: str) -> None:
    if inside.any():
        # A margin, so that what touches the edge is closed there.
        height, width = inside.shape
        axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(inside, 1), levels=[0.5],
                     colors=[colour], linewidths=1.2)
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)


def _legend(outputs: tuple[str, ...], in_colours: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = ((("truth", TRUTH), (f"predicted {outputs[0]}", CALLED)) if len(outputs) == 1 and not in_colours else
             [(name, CLASSES[k % len(CLASSES)]) for k, name in enumerate(outputs)])
    return [Line2D([], [], color=colour, label=name) for name, colour in lines]
