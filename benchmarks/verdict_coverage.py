"""How often do a verdict's intervals hold the truth? `python -m benchmarks.verdict_coverage [--trials 400]`.

Scores are drawn, not trained, so that the truth is known in closed form: the score of a row is signal times label, plus
normal noise of its group (the same for all ways), of its group and way, of its group, way and seed, and of the row. A
seed draws its own signal. AUROC over all seeds and groups is then Phi(mean signal / sqrt(2 + variance of the signal)).
With budgets of labels, the true AUROC rises with the logarithm of their number, so that what a way is worth in labels
is known too. Everything after the scores is the verdict's own code.

Legend: G test groups, S seeds, R resamples.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pipelines.scoring.uncertainty import spread
from pipelines.verdicts.label_efficiency import Curve, gains, worth

ROWS = 2
"""Of each group, which share their label."""
NOISE = {"group": 0.4, "group and way": 0.2, "group, way and seed": 0.2, "row, way and seed": 0.2}
"""Shares of the variance of a score about its signal; together 1."""
NORMAL = NormalDist()


@dataclass(frozen=True)
class Trial:
    """A made verdict: what the truth is, and how it is looked at."""

    groups: int
    seeds: int
    luck: float = 0.0
    """Standard deviation of the signal between seeds."""
    areas: tuple[float, ...] = (0.75, 0.75)
    """True AUROC of each way with all labels, that from scratch first."""
    sizes: tuple[int, ...] = (100,)
    """Labelled groups of the budgets, rising."""
    slope: float = 0.0
    """AUROC gained by e times as many labels."""
    resamples: int = 300
    share: float = 0.5
    """Of groups with a positive label; at least two of each kind."""


def scores(rng: np.random.Generator, trial: Trial, labels: np.ndarray) -> list[list[np.ndarray]]:
    """Way -> budget -> S n: scores of all rows."""
    def noise(name: str, *shape: int) -> np.ndarray:
        drawn = NOISE[name] ** 0.5 * rng.normal(size=shape)
        return drawn if name.startswith("row") else np.repeat(drawn, ROWS, axis=-1)

    shared = noise("group", trial.groups)
    told = []
    for area in trial.areas:
        own = shared + noise("group and way", trial.groups)
        by_budget = []
        for size in trial.sizes:
            true = area + trial.slope * np.log(size / trial.sizes[-1])
            mean = (2 + trial.luck**2) ** 0.5 * NORMAL.inv_cdf(float(true))
            signal = mean + trial.luck * rng.normal(size=(trial.seeds, 1))
            by_budget.append(signal * labels + own + noise("group, way and seed", trial.seeds, trial.groups)
                             + noise("row, way and seed", trial.seeds, trial.groups * ROWS))
        told.append(by_budget)
    return told


def curves(rng: np.random.Generator, trial: Trial) -> tuple[dict[str, Curve], int]:
    """What a verdict makes of one drawing, "scratch" and "way 1", "way 2" ..."""
    positive = min(max(2, round(trial.share * trial.groups)), trial.groups - 2)
    labels = np.repeat(np.arange(trial.groups) < positive, ROWS).astype(float)
    groups = np.repeat(np.arange(trial.groups), ROWS).astype(str).tolist()
    found = {}
    for way, budgets in enumerate(scores(rng, trial, labels)):
        spreads = []
        for drawn in budgets:
            p = 1 / (1 + np.exp(-drawn))
            spreads.append(spread("single_label", labels[:, None], np.stack([1 - p, p], -1), groups, trial.resamples))
        found[f"way {way}" if way else "scratch"] = Curve(
            tuple(one.metrics["auroc"] for one in spreads), trial.sizes)
    return found, spreads[0].support("auroc")


@dataclass(frozen=True)
class Held:
    """What came of many drawings of one trial."""

    trial: Trial
    told: int
    """Verdicts with an interval."""
    held: float
    """Share of them whose interval of the first way's gain holds the truth."""
    width: float
    """Of these intervals, on average."""
    called: float
    """Share that call some way helpful or harmful."""
    worth_told: int
    """Verdicts that say what the first way is worth; told of every way here, not only of those that helped."""
    worth_held: float
    """Share of them whose interval holds the truth."""

    def row(self) -> str:
        """Of a table in Markdown."""
        one, gained = self.trial, self.trial.areas[1] - self.trial.areas[0]
        worth_said = f"{self.worth_held:.1%} of {self.worth_told}" if len(one.sizes) > 1 else ""
        return (f"| {one.groups} | {one.share:.0%} | {one.seeds} | {one.luck:g} | {len(one.areas) - 1} | {gained:+.2f} "
                f"| {self.held:.1%} of {self.told} | {self.width:.3f} | {self.called:.1%} | {worth_said} |")


def measure(trial: Trial, repeats: int, seed: int = 0) -> Held:
    """Look at independent drawings."""
    rng = np.random.default_rng(seed)
    gain, saved = trial.areas[1] - trial.areas[0], true_worth(trial)
    held, width, called, worths = [], [], 0, []
    for _ in range(repeats):
        found, support = curves(rng, trial)
        told = gains(found, "scratch", trial.groups, support)
        called += any(one.sign for one in told.values())
        first = told["way 1"]
        if first.low is None or first.high is None:
            continue
        held.append(first.low <= gain <= first.high)
        width.append(first.high - first.low)
        of_labels = worth(found["way 1"], found["scratch"], first, support)
        if of_labels is not None:
            worths.append(of_labels.low <= saved <= of_labels.high)
    return Held(trial, len(held), float(np.mean(held)), float(np.mean(width)), called / repeats, len(worths),
                float(np.mean(worths)) if worths else float("nan"))


def true_worth(trial: Trial) -> float:
    """Labelled groups fewer than all with which the first way is as good as the one from scratch with all."""
    if not trial.slope:
        return 0.0
    most = trial.sizes[-1] - trial.sizes[0]
    return float(min(most, trial.sizes[-1] * (1 - np.exp(-(trial.areas[1] - trial.areas[0]) / trial.slope))))


CURVE = {"areas": (0.70, 0.82), "sizes": (10, 30, 100), "slope": 0.08}
"""Worth 78 of 100 labelled groups."""
TRIALS: tuple[Trial, ...] = (
    *(Trial(groups, 3, luck) for groups in (12, 40) for luck in (0, 0.3)),
    *(Trial(40, seeds, luck) for seeds in (2, 5) for luck in (0, 0.3)),
    Trial(40, 3, 0.1, share=0.15), Trial(100, 3, 0.1), Trial(40, 3, 0.1, areas=(0.75,) * 5),
    *(Trial(groups, 3, luck, **CURVE) for groups in (40, 100) for luck in (0.1, 0.3)),  # type: ignore[arg-type]
)


def main() -> None:
    """A row per trial."""
    parser = argparse.ArgumentParser(description="How often do a verdict's intervals hold the truth?")
    parser.add_argument("--trials", type=int, default=400, help="drawings of each")
    asked = parser.parse_args().trials
    print("| test groups | positive | seeds | luck of seeds | ways | true gain | interval holds it | width | some way "
          "called | worth held |\n|" + "---|" * 10)
    for trial in TRIALS:
        print(measure(trial, asked).row(), flush=True)


if __name__ == "__main__":
    main()
