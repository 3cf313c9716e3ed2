"""What `evaluate` writes to reports/evaluate/<run>/metrics.json.

    {"format_version": 1, "name": "xray", "domain": "medical", "task": "opacity", "headline": "auroc", ...,
     "arms": {"scratch": {"metrics": {"auroc": {"value": 0.81, "low": 0.74, "high": 0.87, "num_groups": 80, ...}},
                          "per_source": {"north": {...}}, "temperature": {"0": 1.3}, ...}},
     "paired": {"pretrained": {"auroc": {"value": 0.04, "low": 0.01, "high": 0.07, ...}}}}

A number that is not estimable is null with a note that says why.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domains.sample import TaskKind
from pipelines.scoring.uncertainty import Estimate
from pipelines.settings import build, plain

FORMAT_VERSION = 1
METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class ArmResult:
    """One way of initialising, scored on the test rows."""

    metrics: dict[str, Estimate]
    """Metric -> mean over seeds with its interval."""
    per_seed: dict[str, dict[str, float | None]]
    """Metric -> seed -> value."""
    seed_std: dict[str, float | None]
    """Metric -> standard deviation between seeds."""
    per_source: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Source -> metric -> estimate on the rows of that source; empty with one source."""
    per_output: dict[str, Estimate] = field(default_factory=dict)
    """Class, finding or column -> the headline metric of it alone."""
    temperature: dict[str, float] = field(default_factory=dict)
    """Seed -> what its logits were divided by, fitted on validation rows by finetune."""
    val_loss: float | None = None
    """Mean over seeds; what arms and seeds are chosen by, since nothing may be chosen by a test score."""


@dataclass(frozen=True)
class FloorResult:
    """A simple model on the same split: what a score must beat to mean something."""

    model: str
    """Which was chosen on validation rows."""
    metrics: dict[str, Estimate]
    """Metric -> estimate on the test rows."""
    beaten_by: dict[str, Estimate] = field(default_factory=dict)
    """Arm -> headline metric of the arm minus that of the floor, paired."""


@dataclass(frozen=True)
class Cost:
    """What was spent."""

    pretrain_steps: int | None = None
    """Updates before fine-tuning; None where the start does not say."""
    pretrain_seconds: float | None = None
    """Wall-clock time of them."""
    finetune_steps: dict[str, int] = field(default_factory=dict)
    """Arm -> updates over its whole grid and all seeds."""
    finetune_seconds: dict[str, float] = field(default_factory=dict)
    """Arm -> wall-clock time of them."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluate run."""

    name: str
    """Of the evaluate run."""
    domain: str
    """medical, satellite or pointcloud."""
    finetune: str
    """The finetune run whose arms were scored."""
    data: str
    """The ingest run whose test rows were used."""
    task: str
    """Which of its tasks."""
    kind: TaskKind
    """What sort of task."""
    outputs: tuple[str, ...]
    """Classes, findings or columns, in the order of predictions."""
    headline: str
    """The metric that the run is told by."""
    baseline: str
    """The arm that the others are compared with."""
    arms: dict[str, ArmResult]
    """Results by arm."""
    paired: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Arm -> metric -> arm minus baseline, on the same rows and the same resamples."""
    paired_per_source: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Arm -> source -> the same for the headline metric, on the rows of that source."""
    floors: dict[str, FloorResult] = field(default_factory=dict)
    """Simple models by the features that they see."""
    cost: Cost = field(default_factory=Cost)
    """What the arms took."""
    num_rows: int = 0
    """Labelled test rows."""
    num_groups: int = 0
    """Groups among them."""
    labelled_groups: int = 0
    """Groups with a label of any split; what a verdict with folds would test."""
    resamples: int = 0
    """Bootstrap resamples of groups."""
    notes: tuple[str, ...] = ()
    """What a reader should know: outputs left out, repeated content, temperatures that could not be fitted."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Strict JSON: a NaN or an infinity becomes null."""
        return json.dumps(_without_nan(plain(self)), indent=2, allow_nan=False) + "\n"

    def flat(self) -> dict[str, float]:
        """The numbers that there are, by dotted name: `pretrained.auroc`, `paired.pretrained.auroc.low`."""
        numbers: dict[str, float] = {}
        named = [(arm, result.metrics) for arm, result in self.arms.items()]
        named += [(f"paired.{arm}", metrics) for arm, metrics in self.paired.items()]
        named += [(f"floor.{floor}", result.metrics) for floor, result in self.floors.items()]
        for prefix, metrics in named:
            for metric, one in metrics.items():
                for suffix, value in (("", one.value), (".low", one.low), (".high", one.high)):
                    if value is not None:
                        numbers[f"{prefix}.{metric}{suffix}"] = value
        return numbers


def from_json(text: str, where: str = METRICS_FILE) -> Evaluation:
    """The inverse of `to_json`. Raises ValueError with found, expected and remedy."""
    try:
        raw: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}). Remedy: run `lacuna evaluate` again.") from None
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if found != FORMAT_VERSION:
        raise ValueError(f"{where}: found evaluation format {found}, expected {FORMAT_VERSION}. "
                         "Remedy: run `lacuna evaluate` again with this release.")
    return build(Evaluation, raw, where)


def load(path: Path) -> Evaluation:
    """Read a metrics.json of an evaluate run. Raises FileNotFoundError or ValueError with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"no evaluation at {path}. Expected what `lacuna evaluate {path.parent.name}` writes; "
                                "run it.")
    return from_json(path.read_text(encoding="utf-8"), str(path))


def rows_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every estimate as a flat row, for CSV: what it is of, and its value, interval, groups, rows and note."""
    rows: list[dict[str, Any]] = []

    def add(scope: dict[str, str], metrics: dict[str, Estimate], spread: dict[str, float | None] | None = None) -> None:
        for metric, one in metrics.items():
            row = dataclasses.asdict(one)
            note = row.pop("note")
            rows.append({"run": evaluation.name, "task": evaluation.task, "statistic": "", "arm": "", "floor": "",
                         "source": "", "class": "", **scope, "metric": metric, **row,
                         "seed_std": None if spread is None else spread.get(metric), "note": note})

    for arm, result in evaluation.arms.items():
        add({"statistic": "score", "arm": arm}, result.metrics, result.seed_std)
        for source, metrics in result.per_source.items():
            add({"statistic": "score", "arm": arm, "source": source}, metrics)
        for output, one in result.per_output.items():
            add({"statistic": "score", "arm": arm, "class": output}, {evaluation.headline: one})
    for arm, metrics in evaluation.paired.items():
        add({"statistic": "difference", "arm": arm}, metrics)
    for arm, sources in evaluation.paired_per_source.items():
        for source, one in sources.items():
            add({"statistic": "difference", "arm": arm, "source": source}, {evaluation.headline: one})
    for floor, simple in evaluation.floors.items():
        add({"statistic": "score", "floor": floor}, simple.metrics)
        for arm, one in simple.beaten_by.items():
            add({"statistic": "difference", "arm": arm, "floor": floor}, {evaluation.headline: one})
    return rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
