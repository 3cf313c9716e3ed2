"""How often do the two intervals of a few-shot run hold the accuracy that other patients would give?

Groups are points around their class's mean; each has a place of its own (what its rows share) and rows scattered around
that. The truth is the mean accuracy over fresh groups, shown and asked about, from the same distribution.

    python -m benchmarks.few_shot_intervals [--repeats 200]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.scoring.episodes import Rows, draw, likeness, tell
from pipelines.scoring.uncertainty import draw_groups

CLASSES, WIDTH, ROWS = 5, 6, 2
"""Classes, numbers per row, rows per group."""


@dataclass(frozen=True)
class Held:
    """How many of some repeats held the truth."""

    over_episodes: float
    over_groups: float
    truth: float


def sample(rng: np.random.Generator, groups: int, first: int) -> tuple[Rows, np.ndarray]:
    """Some groups per class, numbered from `first`, and their rows' features n WIDTH."""
    labels = np.repeat(np.arange(CLASSES), groups * ROWS)
    group = np.repeat(np.arange(CLASSES * groups), ROWS) + first
    centres = np.eye(CLASSES, WIDTH) * 1.5
    own = np.repeat(rng.normal(0, 1, (CLASSES * groups, WIDTH)), ROWS, 0)
    features = centres[labels] + own + rng.normal(0, 0.5, (len(labels), WIDTH))
    return Rows(np.arange(len(labels)) + first * ROWS, labels, group), features


def played(rng: np.random.Generator, train: int, test: int, episodes: int, shots: int, resamples: int):  # type: ignore[no-untyped-def]
    """Scores of one run on fresh groups: what `lacuna few-shot` makes of features."""
    shown, seen = sample(rng, train, 0)
    asked, told = sample(rng, test, CLASSES * train)
    features = torch.from_numpy(np.concatenate([seen, told]))
    several = [draw(shown, asked, list(range(CLASSES)), CLASSES, shots, 5, int(rng.integers(1 << 30)), i)
               for i in range(episodes)]
    predicted = [likeness(features[one.query], features[one.support.reshape(-1)].reshape(CLASSES, shots, -1),
                          "euclidean").softmax(-1).numpy() for one in several]
    count = CLASSES * test
    drawn = np.concatenate([np.ones((count, 1), np.int64), draw_groups(count, resamples, 0)], axis=1)
    return tell(several, predicted, shown, asked, drawn)


def measure(repeats: int, train: int = 20, test: int = 12, episodes: int = 200, shots: int = 5,
            resamples: int = 400, fresh: int = 2000) -> Held:
    """Both shares, over independent runs. fresh: pairs of episodes that the truth is the mean of."""
    rng = np.random.default_rng(0)
    truth = float(np.mean([played(rng, shots + 1, 5, 2, shots, 100).over_episodes("accuracy")[0]
                           for _ in range(fresh)]))
    alone = groups = 0
    for _ in range(repeats):
        told = played(rng, train, test, episodes, shots, resamples)
        _, low, high = told.over_episodes("accuracy")
        alone += low <= truth <= high
        wide = told.over_groups("accuracy")
        assert wide.low is not None and wide.high is not None
        groups += wide.low <= truth <= wide.high
    return Held(alone / repeats, groups / repeats, truth)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=200)
    torch.set_num_threads(1)
    asked_for = parser.parse_args().repeats
    for num in (12, 40):
        for one_or_five in (1, 5):
            held = measure(asked_for, test=num, shots=one_or_five)
            print(f"{num} test groups per class, {one_or_five} shots: accuracy {held.truth:.3f}; held by the interval "
                  f"over episodes in {held.over_episodes:.0%} of {asked_for} runs, by that over groups in "
                  f"{held.over_groups:.0%}", flush=True)
