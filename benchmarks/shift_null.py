"""How often does a shift page find something where there is nothing? `python -m benchmarks.shift_null [--pages 40]`.

Answers are drawn of three models in four ways on two sources, none better than another: the score of a row is the same
signal times its label everywhere, plus noise of its group, of its group and model, and of the row; a seed draws its own
signal, and a way of adapting changes a model's answers a little, by chance. Each page is the stage's own `compare`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.verdict_truth import GROUPS, draw
from domains.store import open_prepared, replace_columns
from pipelines.scoring.assessment import Unseen
from pipelines.scoring.shift_scores import Answers, compare

SOURCES = ("here", "there")
MODELS, WAYS = ("first", "further", "adapter"), ("", "norm", "tent", "lame")
SIGNAL = 1.0
"""An AUROC of 0.76."""


@dataclass(frozen=True)
class Called:
    """Of some pages."""

    pages: int
    primary: int
    """Pages with a primary line that was called."""
    alone: int
    """Pages with one of all lines called: falls, and gains at the target."""
    lines: int
    """Lines that were called, of all pages."""
    asked: int
    """Lines that were asked about, of all pages."""

    def text(self) -> str:
        """A sentence."""
        return (f"{self.primary} of {self.pages} pages call a primary line; {self.alone} call some line, primary or "
                f"exploratory ({self.lines} of {self.asked} lines)")


def prepared(root: Path) -> Unseen:
    """80 test groups of two rows, half of them of each source."""
    folder = root / "null"
    draw(folder, "chance", 0)
    groups = open_prepared(folder).column("group")
    replace_columns(folder, {"source": [SOURCES[int(str(group)[1:]) % 2] for group in groups]})
    data = open_prepared(folder)
    return Unseen(data, "label", data.rows(split="test", task="label"))


def answers(rng: np.random.Generator, labels: np.ndarray, groups: np.ndarray, seeds: int, luck: float,
            models: tuple[str, ...] = MODELS, ways: tuple[str, ...] = WAYS) -> dict[tuple[str, str], Answers]:
    """What every line says of n rows; the truth is that they are all alike."""
    _, member = np.unique(groups, return_inverse=True)
    count = member.max() + 1
    shared = 0.6 * rng.normal(size=count)[member]
    told = {}
    for model in models:
        signal = SIGNAL + luck * rng.normal(size=(seeds, 1))
        own = signal * labels + shared + 0.5 * rng.normal(size=count)[member]
        own = own + 0.5 * rng.normal(size=(seeds, len(labels)))
        for way in ways:
            scores = own + (0.3 * rng.normal(size=(seeds, len(labels))) if way else 0)
            p = 1 / (1 + np.exp(-scores))
            told[model, way] = Answers({str(seed): 1.0 for seed in range(seeds)}, np.stack([1 - p, p], -1), {})
    return told


def measure(pages: int, seeds: int = 3, luck: float = 0.2, resamples: int = 500, models: tuple[str, ...] = MODELS,
            ways: tuple[str, ...] = WAYS) -> Called:
    """Draw pages and count."""
    rng = np.random.default_rng(0)
    primary = alone = lines = asked = 0
    with tempfile.TemporaryDirectory() as folder:
        unseen = prepared(Path(folder))
        source, groups = np.array(unseen.column("source")), np.array(unseen.column("group"))
        parts = {one: np.flatnonzero(source == one) for one in SOURCES}
        for _ in range(pages):
            told = answers(rng, unseen.labels[:, 0], groups, seeds, luck, models, ways)
            shift = compare("null", SOURCES[0], unseen, parts, told, "auroc", resamples, 0, {})
            of_line = {(name, of): one.sign != 0 for name, line in shift.lines.items()
                       for of, found in (("fall", line.falls), ("return", line.returns))
                       for at, one in found.items() if at == SOURCES[1]}
            called = sum(of_line.values())
            primary += any(of_line[one.line, one.of] for one in shift.primary)
            alone, lines, asked = alone + (called > 0), lines + called, asked + len(of_line)
    return Called(pages, primary, alone, lines, asked)


def main() -> None:
    """A line per number of seeds and their luck."""
    parser = argparse.ArgumentParser(description="How often does a shift page find something where there is nothing?")
    parser.add_argument("--pages", type=int, default=40)
    pages = parser.parse_args().pages
    for seeds, luck in ((2, 0.2), (3, 0.0), (3, 0.2), (3, 0.5), (5, 0.2)):
        print(f"{GROUPS['test']} test groups, {seeds} seeds, signal of {SIGNAL:g} differs by {luck:g} between seeds: "
              f"{measure(pages, seeds, luck).text()}", flush=True)


if __name__ == "__main__":
    main()
