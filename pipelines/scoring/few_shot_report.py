"""What a few-shot run says: a table with both intervals, differences, sentences, one picture.

Legend: N classes of an episode, K support groups per class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.publish import write_text
from domains.sample import Task
from pipelines import report
from pipelines.scoring.episodes import Told, differences
from pipelines.scoring.uncertainty import Estimate

METRICS = ("accuracy", "auroc")
PICTURE = "few_shot.png"
PAIRS = (("pretrained", "scratch"), ("pretrained, tuned", "pretrained"))
"""Which ways are set against which."""
Ends = tuple[float, float, float]
Key = tuple[Any, int]
"""Distance, shots."""


@dataclass(frozen=True)
class Way:
    """One encoder, tuned on episodes or not, and what the nearest class mean of its features reached."""

    told: Mapping[Key, Told]
    """(distance, shots) -> scores."""
    trained: int
    """Weights that were trained for the task, of `weights` in all."""
    weights: int
    tuning: Mapping[str, Any]
    """Validation loss before tuning and at its best, and the step of that; empty: nothing was tuned."""


@dataclass(frozen=True)
class Answer:
    """Everything that a report of one run says."""

    name: str
    task: Task
    num_classes: int
    """N"""
    chance: float
    """Accuracy of guessing."""
    num_episodes: int
    num_groups: int
    """Test groups that were asked about."""
    ways: Mapping[str, Way]
    said: tuple[str, ...] = ()
    """What had to be left out."""

    def lines(self) -> list[dict[str, Any]]:
        """One per way, distance and shots."""
        return [{"way": way, "distance": distance, "shots": shots,
                 **{f"{metric} {what}": text for metric in METRICS for what, text in
                    (("over episodes", ends(told.over_episodes(metric))),
                     ("over groups", told.over_groups(metric).text()))}}
                for way, one in self.ways.items() for (distance, shots), told in one.told.items()]

    def differences(self) -> list[dict[str, Any]]:
        """One per pair of ways, distance and shots: by how much the first is more accurate."""
        out = []
        for better, worse in PAIRS:
            if better in self.ways and worse in self.ways:
                for key, told in self.ways[better].told.items():
                    alone, groups = differences(told, self.ways[worse].told[key], "accuracy")
                    out.append({"difference": f"{better} - {worse}", "distance": key[0], "shots": key[1],
                                "accuracy over episodes": ends(alone, "+"),
                                "accuracy over groups": groups.text(signed=True), "said": _said(groups)})
        return out

    def sentences(self) -> list[str]:
        """What the numbers rest on."""
        one = next(iter(next(iter(self.ways.values())).told.values()))
        said = [f"{self.num_episodes} episodes of {self.num_classes} classes; guessing is right in {self.chance:.3f}.",
                f"All episodes ask about the same {self.num_groups} test groups ({one.num_rows} rows). The interval "
                "over episodes therefore says how well the mean is known for these groups, and shrinks with every "
                "episode; the one over groups says what other groups could give: a bootstrap of the test groups, made "
                "wider by what other training groups could do."]
        if note := one.over_groups("accuracy").note:
            said.append(f"over groups: {note}.")
        for way, about in self.ways.items():
            if about.tuning:
                said.append(f"{way}: {about.trained} of {about.weights} weights ({about.trained / about.weights:.2%}); "
                            f"validation loss {about.tuning['val_loss_before']:.3f} before, "
                            f"{about.tuning['val_loss']:.3f} at step {about.tuning['best_step']}, which was kept.")
        if len(compared := self.differences()) > 1:
            said.append(f"Each of the {len(compared)} differences is looked at by itself: of twenty that are none, one "
                        "is shown by chance.")
        return [*said, *(f"{text}." for text in self.said)]

    def headlines(self) -> dict[str, Any]:
        """The accuracy of each way at the most shots, in the first distance that was asked for."""
        key = [key for key in next(iter(self.ways.values())).told if key[0] == self._first_distance()][-1]
        return {f"{way}, {key[1]} shots": one.told[key].over_groups("accuracy").text()
                for way, one in self.ways.items()}

    def flat(self) -> dict[str, float]:
        """Numbers by name, for tracking and DVC."""
        return {f"{way.replace(', ', '_')}.{distance}.{shots}_shots.{metric}": value
                for way, one in self.ways.items() for (distance, shots), told in one.told.items() for metric in METRICS
                if (value := told.over_episodes(metric)[0]) is not None and math.isfinite(value)}

    def _first_distance(self) -> Any:
        return next(iter(next(iter(self.ways.values())).told))[0]


def ends(found: Ends, sign: str = "") -> str:
    """0.812 [0.760, 0.858]"""
    mean, low, high = found
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _said(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "not estimable"
    return "more accurate" if found.low > 0 else "less accurate" if found.high < 0 else "no difference could be shown"


def write_episodes(path: Path, ways: Mapping[str, Way]) -> None:
    """Every episode's scores."""
    report.write_csv(path, [
        {"way": way, "distance": distance, "shots": shots, "episode": number,
         **{metric: round(float(told.episodes[metric][number]), 6) for metric in METRICS}}
        for way, one in ways.items() for (distance, shots), told in one.told.items()
        for number in range(len(told.episodes["accuracy"]))])


def write(folder: Path, answer: Answer) -> str:
    """summary.txt, few_shot.csv, differences.csv, metrics.json and a picture. Returns the text of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, gaps = answer.lines(), answer.differences()
    report.write_csv(folder / "few_shot.csv", lines)
    if gaps:
        report.write_csv(folder / "differences.csv", gaps)
    tables = "\n\n".join(text for text in (report.table(lines), report.table(gaps)) if text)
    said = "\n".join([tables, "", *answer.sentences()])
    write_text(folder / "summary.txt", said + "\n")
    write_text(folder / "metrics.json", json.dumps(answer.flat(), indent=2) + "\n")
    draw(folder / PICTURE, answer)
    return said


def draw(path: Path, answer: Answer) -> bool:
    """Accuracy over shots, a line per way, a panel per distance; thin bars over groups, thick ones over episodes. False
    without matplotlib."""
    if not report.can_draw():
        return False
    kinds = list(dict.fromkeys(distance for one in answer.ways.values() for distance, _ in one.told))
    figure = report.new_figure(4.6 * len(kinds), 4.2)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for i, (way, one) in enumerate(answer.ways.items()):
            colour = report.COLOURS[i % len(report.COLOURS)]
            shown = {shots: told for (distance, shots), told in one.told.items() if distance == kind}
            x = np.array(list(shown), float) * 1.03 ** (i - len(answer.ways) / 2)
            y = np.array([told.over_episodes("accuracy")[0] for told in shown.values()])
            axes.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.6, label=way)
            for at, told in zip(x, shown.values(), strict=True):
                _, low, high = told.over_episodes("accuracy")
                axes.plot([at, at], [low, high], color=colour, linewidth=4, solid_capstyle="butt", alpha=0.6)
                wide = told.over_groups("accuracy")
                if wide.low is not None:
                    axes.plot([at, at], [wide.low, wide.high], color=colour, linewidth=1)
        axes.axhline(answer.chance, color="0.5", linestyle="--", linewidth=1, label="guessing")
        ticks = sorted({shots for one in answer.ways.values() for _, shots in one.told})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("groups shown per class")
        axes.set_title(kind, fontsize=10)
        axes.grid(color="0.9")
    panels[0].set_ylabel("accuracy of the nearest class mean")
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{answer.name}: {answer.num_classes} classes, {answer.num_episodes} episodes, {answer.num_groups} "
                    "test groups; thick over episodes, thin over groups", fontsize=9)
    return report.save_figure(figure, path)
