"""From predictions to an evaluation: every arm, source, output and floor, on the same rows and the same resamples.

Legend: n test rows, S seeds, K outputs.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from domains.sample import Task
from domains.store import LEAKS, Prepared
from pipelines.scoring import overlap, surfaces
from pipelines.scoring.comparisons import beside
from pipelines.scoring.evaluation_record import ArmResult, Cost, Evaluation, FloorResult
from pipelines.scoring.floors import Floor
from pipelines.scoring.metrics import Floats
from pipelines.scoring.surfaces import with_surfaces
from pipelines.scoring.uncertainty import Spread, by_source, estimates, output_estimates, seed_std, spread

if TYPE_CHECKING:
    from pipelines.evaluate import EvaluateRun


@dataclass(frozen=True)
class Unseen:
    """The test rows of a task."""

    prepared: Prepared
    """Where they lie."""
    task_name: str
    """Which task of the prepared data."""
    rows: npt.NDArray[np.int64]
    """n: rows of the index with a label of the task."""

    @property
    def task(self) -> Task:
        """What is to be predicted."""
        return self.prepared.contract.tasks[self.task_name]

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """n 1 or n K, NaN unknown."""
        return self.prepared.labels(self.task_name)[self.rows]

    def column(self, name: str) -> list[str]:
        """n texts of a column of the index."""
        column = self.prepared.column(name)
        return [str(column[row]) for row in self.rows]


@dataclass(frozen=True)
class Arm:
    """What the seeds of one arm predict on the test rows."""

    predicted: Floats
    """S n K: calibrated probabilities, or numbers; of masks S n 3K counts of pixels (overlap.counts)."""
    temperatures: dict[str, float]
    """Seed -> temperature, in the order of `predicted`."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the temperatures."""
    distances: Floats | None = None
    """S n 2K: of masks on grids how far surfaces lie apart (surfaces.distances); None: not measured."""


def assess(name: str, asked: EvaluateRun, headline: str, tuned: Mapping[str, Any], unseen: Unseen,
           arms: Mapping[str, Arm], floors: Mapping[str, Floor]) -> Evaluation:
    """Estimates of everything, and paired differences from the baseline."""
    kind, labels = unseen.task.kind, unseen.labels
    groups = np.array(unseen.column("group"))

    def score(predicted: Floats, part: npt.NDArray[np.int64]) -> Spread:
        return spread(kind, labels[part], predicted[:, part], groups[part].tolist(), asked.resamples, asked.seed)

    every = np.arange(len(labels))
    whole = {arm: with_surfaces(score(one.predicted, every), one.distances, labels, groups.tolist(), asked.resamples,
                                asked.seed) for arm, one in arms.items()}
    parts = {source: {arm: score(one.predicted, part) for arm, one in arms.items()}
             for source, part in by_source(unseen.column("source")).items()}
    baseline = asked.baseline if asked.baseline in arms else next(iter(arms))
    others = [arm for arm in arms if arm != baseline]
    results = {}
    for arm, one in arms.items():
        own_parts = {source: part[arm] for source, part in parts.items()}
        results[arm] = _arm(one, whole[arm], own_parts, headline, unseen.task.outputs, tuned["chosen"][arm])
    return Evaluation(
        name=name, domain=asked.domain, finetune=asked.finetune, data=tuned["data"], task=unseen.task_name, kind=kind,
        outputs=unseen.task.outputs, headline=headline, baseline=baseline, arms=results,
        paired=beside({arm: whole[arm] for arm in others}, whole[baseline]),
        paired_per_source={arm: {source: beside({arm: part[arm]}, part[baseline])[arm][headline]
                                 for source, part in parts.items()} for arm in others if parts},
        floors={at: _floor(one, score(one.predicted[None], every), whole, headline) for at, one in floors.items()},
        cost=_cost(tuned.get("cost", {})), num_rows=whole[baseline].num_rows, num_groups=whole[baseline].num_groups,
        labelled_groups=_labelled_groups(unseen), resamples=asked.resamples,
        notes=tuple(_notes(whole[baseline], unseen, arms)))


def _labelled_groups(unseen: Unseen) -> int:
    rows = unseen.prepared.rows(split=["train", "val", "test"], task=unseen.task_name)
    groups = unseen.prepared.column("group")
    return len({str(groups[row]) for row in rows})


def _arm(one: Arm, own: Spread, per_source: Mapping[str, Spread], headline: str, outputs: tuple[str, ...],
         chosen: Mapping[str, Any]) -> ArmResult:
    return ArmResult(
        metrics=estimates(own),
        per_seed={metric: {seed: _plain(column[s, 0]) for s, seed in enumerate(one.temperatures)}
                  for metric, column in own.metrics.items()},
        seed_std=seed_std(own),
        per_source={source: estimates(part) for source, part in per_source.items()},
        per_output={outputs[k]: value for k, value in output_estimates(own, headline).items()},
        temperature=one.temperatures, val_loss=float(chosen["val_loss"]))


def _floor(one: Floor, own: Spread, arms: Mapping[str, Spread], headline: str) -> FloorResult:
    beaten_by = {arm: by_metric[headline] for arm, by_metric in beside(arms, own).items()}
    return FloorResult(one.model, estimates(own), beaten_by)


def _cost(raw: Mapping[str, Any]) -> Cost:
    return Cost(raw.get("pretrain_steps"), raw.get("pretrain_seconds"), dict(raw.get("finetune_steps", {})),
                dict(raw.get("finetune_seconds", {})))


def _notes(first: Spread, unseen: Unseen, arms: Mapping[str, Arm]) -> list[str]:
    outputs, notes = unseen.task.outputs, []
    if first.absent:
        notes.append(f"{len(first.absent)} of {len(outputs)} outputs lack an outcome among the test rows and are left "
                     f"out of averages: {', '.join(outputs[k] for k in first.absent)}")
    if unseen.task.kind == "segmentation":
        notes.append(where_classes_are(unseen, next(iter(arms.values())).predicted[0]))
        measured = {arm: one.predicted for arm, one in arms.items() if one.distances is not None}
        if measured:
            notes.append(surfaces.note(unseen.prepared.contract, measured))
        elif unseen.prepared.contract.kind != "points":
            notes.append("no surface distances: scipy is not installed. Install it with: pip install "
                         "'lacuna[tracking]'")
    return [*notes, *repeats(unseen), *(note for one in arms.values() for note in one.notes)]


def where_classes_are(unseen: Unseen, counted: Floats) -> str:
    """How many test samples hold each class: Dice knows no others."""
    held, clear = overlap.holding(unseen.labels, counted)
    groups = np.array(unseen.column("group"))
    said = [f"{name} in {held[:, k].sum()} of {(held | clear)[:, k].sum()} test samples "
            f"({len(set(groups[held[:, k]].tolist()))} groups)" for k, name in enumerate(unseen.task.outputs)]
    return f"Dice is told of the samples that hold a class: {', '.join(said)}"


def repeats(unseen: Unseen) -> list[str]:
    """A sentence on test rows that are not as unseen as they should be, where there are some."""
    repeated = repeated_rows(unseen)
    return [f"{repeated} test rows repeat content of a training or validation row ({LEAKS} of the prepared data); "
            "scores count them"] if repeated else []


def repeated_rows(unseen: Unseen) -> int:
    """How many test rows ingest found again, or nearly, in train or val."""
    path = unseen.prepared.folder / LEAKS
    if not path.is_file():
        return 0
    tested, found = set(unseen.column("key")), set()
    with path.open(newline="", encoding="utf-8") as file:
        for pair in csv.DictReader(file):
            for own, other in (("a", "b"), ("b", "a")):
                if pair[f"key_{own}"] in tested and pair[f"split_{other}"] in ("train", "val"):
                    found.add(pair[f"key_{own}"])
    return len(found)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
