"""Stage `evaluate`: the only one that touches test rows. Scores every arm and seed of a finetune run, with intervals
over groups, and says whether pretraining helped.

Legend: n test rows, S seeds, K outputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from domains.contract import enforce
from domains.pseudonyms import key_of
from domains.publish import folder_in_the_making, write_text
from domains.sample import Task
from domains.splits import assert_no_group_is_cut, pseudonym, pseudonyms_of
from domains.store import open_prepared
from pipelines import report
from pipelines.scoring import metrics, surfaces
from pipelines.scoring.answers import answers
from pipelines.scoring.assessment import Arm, Unseen, assess
from pipelines.scoring.evaluation_pictures import draw
from pipelines.scoring.evaluation_record import METRICS_FILE, Evaluation, rows_of
from pipelines.scoring.floor_features import FloorSettings
from pipelines.scoring.floors import Floor, check_floor, floor
from pipelines.scoring.mask_pictures import mask_sheet
from pipelines.scoring.outcome import summary, verdict
from pipelines.settings import plain
from pipelines.tracking import tracking
from pipelines.training.batches import Source, domain_code
from pipelines.weights.checkpoints import read_record
from pipelines.weights.tuned_checkpoints import fold, load_tuned


@dataclass(frozen=True)
class EvaluateRun:
    """One paragraph of `evaluate` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader to use."""
    finetune: str
    """Name of the run whose arms are scored, of `finetune` or of what `tuned_by` says."""
    data: str = ""
    """Name of its ingest run, so that dvc.yaml can name the data as a dependency; empty: as the finetune run says."""
    resamples: int = 1000
    """Bootstrap resamples of test groups."""
    seed: int = 0
    """Of the resamples and of the simple models."""
    headline: str = ""
    """The metric that the run is told by; empty: auroc, mae for regression, dice for segmentation."""
    baseline: str = "scratch"
    """The arm that the others are compared with."""
    floors: tuple[FloorSettings, ...] = ()
    """Simple models to score on the same split."""
    tuned_by: Literal["finetune", "domain_adaptation"] = "finetune"
    """Whose run it is. dvc.yaml knows evaluations of `finetune` alone."""
    register: bool = True
    """Register the model with the lowest validation loss in MLflow."""
    batch_size: int = 128
    """Samples at once; changes nothing but memory."""

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ValueError(f"resamples: found {self.resamples}, expected at least 100: an interval ends at the "
                             "rarest of them.")
        if self.headline and self.headline not in metrics.METRICS:
            raise ValueError(f"headline: found {self.headline!r}, expected one of {', '.join(metrics.METRICS)}.")


ALONE = "model"
"""Folder, beside the predictions, of the best model made to stand by itself, where it was tuned by adapters."""


class Leak(ValueError):
    """A test row is not unseen. The text says found, expected and remedy."""


class StaleCheckpoint(ValueError):
    """What is to be scored was made of other data than lies there now."""


def run(name: str, settings: EvaluateRun, root: Path) -> dict[str, Any]:
    """Score a finetune run; write artifacts/evaluate/<name> and reports/evaluate/<name>. Returns the headline numbers.

    Raises:
        Leak, StaleCheckpoint, ContractMismatch, CheckpointError, ValueError: each a sentence for the user.
    """
    folder = root / "artifacts" / settings.tuned_by / settings.finetune
    tuned = read_summary(folder, settings)
    unseen = unseen_rows(root / "data/prepared" / tuned["data"], tuned["task"])
    headline = headline_of(settings.headline, unseen.task)
    for one in settings.floors:
        check_floor(one, unseen.task.kind)
    inputs = {folder.relative_to(root).as_posix(): None, f"data/prepared/{tuned['data']}": unseen.prepared.digest}
    with tracking.open_run(stage="evaluate", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain) as tracked:
        arms = {arm: predict_arm(arm, folder, tuned, unseen, settings) for arm in tuned["arms"]}
        floors: dict[str, Floor] = {}
        for one in settings.floors:
            # Two floors of one kind (with and without scale) stand apart by number.
            place = one.kind if one.kind not in floors else f"{one.kind} {len(floors) + 1}"
            floors[place] = floor(unseen.prepared, unseen.task_name, one, unseen.rows, root, headline, settings.seed)
        evaluation = assess(name, settings, headline, tuned, unseen, arms, floors)
        _publish(root, tuned, folder, unseen, evaluation, arms, floors, tracked)
        if settings.register:
            _register(folder, root, tuned, evaluation, tracked)
        return _headlines(evaluation)


def read_summary(folder: Path, settings: EvaluateRun) -> dict[str, Any]:
    """What finetune says of its arms, checked against what is asked. Raises FileNotFoundError or ValueError."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileNotFoundError(f"no fine-tuned models at {folder}: found no summary.json. Run `lacuna "
                                f"{settings.tuned_by} {settings.finetune}` first.")
    tuned: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if tuned["domain"] != settings.domain:
        raise ValueError(f"domain: found {settings.domain}, expected {tuned['domain']}, which {settings.finetune} was "
                         "tuned in. Remedy: correct the evaluate run.")
    if settings.data and settings.data != tuned["data"]:
        raise ValueError(f"data: found {settings.data}, expected {tuned['data']}, which {settings.finetune} was tuned "
                         "on. Remedy: correct the evaluate run.")
    report = folder.parents[2] / "reports" / settings.tuned_by / folder.name / "metrics.json"
    if report.is_file():  # how long it took stands in the report alone
        tuned["cost"] = json.loads(report.read_text(encoding="utf-8")).get("cost", tuned.get("cost", {}))
    return tuned


def unseen_rows(folder: Path, task: str) -> Unseen:
    """Test rows with a label of the task; no group of theirs lies in train or val. Raises GroupCut, ValueError."""
    prepared = open_prepared(folder)
    assert_no_group_is_cut(prepared.column("group"), prepared.column("split"))
    rows = prepared.rows(split="test", task=task)
    if len(rows) == 0:
        raise ValueError(f"task {task} of {folder.name}: found no labelled test row, expected some. Remedy: raise "
                         "`test` under `splits` of the data run, or label rows whose split is test.")
    return Unseen(prepared, task, rows)


def headline_of(asked: str, task: Task) -> str:
    """The metric that a run is told by: the one asked for, or the usual one of the task. Raises ValueError where the
    task does not have it."""
    headline = asked or metrics.HEADLINE[task.kind]
    if headline not in metrics.NAMES[task.kind]:
        raise ValueError(f"headline: found {headline}, expected one of {', '.join(metrics.NAMES[task.kind])} for a "
                         f"{task.kind} task.")
    return headline


def predict_arm(arm: str, folder: Path, tuned: Mapping[str, Any], unseen: Unseen, settings: EvaluateRun) -> Arm:
    """Calibrated predictions of every seed of an arm on the test rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told: list[np.ndarray] = []
    gauge = surfaces.gauge(unseen.prepared.contract, len(unseen.task.outputs))
    far: list[np.ndarray] = []
    temperatures: dict[str, float] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for seed in tuned["seeds"]:
        at = folder / arm / f"seed{seed}"
        model, contract, record = load_tuned(at)
        for sentence in enforce(unseen.prepared.contract, contract):
            print(sentence)
        task: Task = record["task"]
        check_task(task, unseen.task, at)
        uncompared = check_unseen(record, unseen, at)
        if uncompared:
            reasons.setdefault((arm, uncompared), []).append(str(seed))
        source = Source(unseen.prepared, contract, domain_code(settings.domain), unseen.rows)
        measured: list[np.ndarray] = []
        look = None if gauge is None else partial(_measure, gauge, measured)
        told.append(answers(model, source, task, unseen.task_name, record["temperature"], device, settings.batch_size,
                            look=look))
        far += [np.stack(measured)] if measured else []
        temperatures[str(seed)] = float(record["temperature"])
        why = (record.get("temperature_fit") or {}).get("note", "")
        if why and task.kind not in ("regression", "segmentation"):
            reasons.setdefault((f"temperature of {arm}", why), []).append(str(seed))
    notes = tuple(f"{what}, seed {', '.join(seeds)}: {why}" for (what, why), seeds in reasons.items())
    return Arm(np.stack(told), temperatures, notes, np.stack(far) if far else None)


def _measure(gauge: surfaces.Gauge, into: list[np.ndarray], true: np.ndarray, called: np.ndarray) -> None:
    into.append(gauge(true, called))


def check_unseen(record: Mapping[str, Any], unseen: Unseen, at: Path) -> str:
    """Refuse when a test group was in what the weights were pretrained on, or the data is not what they were tuned on.

    Returns:
        Why groups could not be compared, where they are named by another key; else nothing.

    Raises:
        Leak, StaleCheckpoint.
    """
    made_of, digest = str(record["provenance"]["data_digest"]), unseen.prepared.digest
    if made_of != digest:
        raise StaleCheckpoint(f"{at}: found weights tuned on data {made_of[:12]}, expected {digest[:12]}, which is in "
                              f"{unseen.prepared.folder.name} now; its splits may differ. Remedy: run `lacuna "
                              "finetune` again.")
    groups = set(unseen.column("group"))
    seen = groups_seen(record, groups)
    if seen:
        raise Leak(f"leak: found {len(seen)} of {len(groups)} test groups in what {at} was pretrained on "
                   f"({pseudonyms_of(seen)}), expected none. Remedy: pretrain again with the present splits, or move "
                   "these groups to train.")
    pool = set(record.get("pool_groups") or [])
    foreign = {key_of(code) for code in pool} - {key_of(group) for group in groups}
    return (f"groups are named by another key ({', '.join(sorted(foreign)).strip(', ') or 'none'}) in what it was "
            "pretrained on, so whether it has seen test groups cannot be told; ingest both with one key "
            "(docs/security.md)") if foreign else ""


def groups_seen(record: Mapping[str, Any], groups: Collection[str]) -> list[str]:
    """Those of some groups that a checkpoint's encoder was pretrained on, in order."""
    pool = set(record.get("pool_groups") or [])
    lengths = {len(code) for code in pool}
    return sorted(group for group in groups if pseudonym(group) in pool
                  or any(_code(group, length) in pool for length in lengths if not key_of(group)))


def _code(group: str, length: int) -> str:
    return hashlib.sha256(group.encode()).hexdigest()[:length]


def check_task(found: Task, expected: Task, at: Path) -> None:
    """Refuse a head for other outputs than the data has now. Raises StaleCheckpoint."""
    if (found.kind, found.outputs) != (expected.kind, expected.outputs):
        raise StaleCheckpoint(f"{at}: found a {found.kind} head for {', '.join(found.outputs)}, expected "
                              f"{expected.kind} for {', '.join(expected.outputs)}. Remedy: run `lacuna finetune` "
                              "again.")


def _publish(root: Path, tuned: Mapping[str, Any], folder: Path, unseen: Unseen, evaluation: Evaluation,
             arms: Mapping[str, Arm], floors: Mapping[str, Floor], tracked: Any) -> None:
    arm, seed = best_by_validation(tuned)
    best = folder / arm / f"seed{seed}"
    with folder_in_the_making(root / "artifacts/evaluate" / evaluation.name) as making:
        write_predictions(making / "predictions.parquet", unseen, arms, floors)
        if read_record(best).get("trunk"):  # a registered model goes where its trunk does not
            print(f"model to register: {fold(best, making / ALONE)}")
    reports = root / "reports/evaluate" / evaluation.name
    reports.mkdir(parents=True, exist_ok=True)
    write_text(reports / METRICS_FILE, evaluation.to_json())
    report.write_csv(reports / "metrics.csv", rows_of(evaluation))
    write_text(reports / "summary.txt", summary(evaluation) + "\n")
    tracked.description([verdict(evaluation, arm) for arm in evaluation.paired], summary(evaluation))
    tracked.metrics(evaluation.flat())
    tracked.table(reports / "metrics.csv")
    predicted = {arm: one.predicted for arm, one in arms.items()}
    pictures = draw(reports, evaluation, unseen.labels, predicted)
    if evaluation.kind == "segmentation":
        other = evaluation.baseline if arm != evaluation.baseline else next(iter(evaluation.paired), arm)
        shown = {one: folder / one / f"seed{seed}" for one in dict.fromkeys((arm, other))}
        pictures += mask_sheet(reports / "masks.png", evaluation, unseen, shown, arms[arm], seed)
    for picture in pictures:
        tracked.picture(picture)
    for arm in evaluation.paired:
        tracked.tag("lacuna.verdict" if arm == "pretrained" else f"lacuna.verdict.{arm}", verdict(evaluation, arm))


def write_predictions(path: Path, unseen: Unseen, arms: Mapping[str, Arm], floors: Mapping[str, Floor]) -> None:
    """One line per row, arm and seed; groups as hashes, since the file travels further than the data. Of masks it holds
    counts, TP, FP and FN in pixels, class by class, and of grids distances, as surfaces.NAMES, class by class."""
    keys, groups, sources = (unseen.column(column) for column in ("key", "group", "source"))
    labels = unseen.labels
    told_as = "counts" if unseen.task.kind == "segmentation" else "probabilities"
    sets = [(arm, int(seed), one.predicted[s], None if one.distances is None else one.distances[s])
            for arm, one in arms.items() for s, seed in enumerate(one.temperatures)]
    sets += [(f"floor {name}", 0, one.predicted, None) for name, one in floors.items()]
    measured = any(far is not None for *_, far in sets)
    lines = [{"key": keys[i], "group": pseudonym(groups[i]), "source": sources[i], "arm": arm, "seed": seed,
              "label": labels[i].tolist(), told_as: told[i].tolist(),
              **({"distances": None if far is None else far[i].tolist()} if measured else {})}
             for arm, seed, told, far in sets for i in range(len(keys))]
    numbers = pa.list_(pa.float32())
    schema = pa.schema([("key", pa.string()), ("group", pa.string()), ("source", pa.string()), ("arm", pa.string()),
                        ("seed", pa.int32()), ("label", numbers),
                        (told_as, pa.list_(pa.float64()) if told_as == "counts" else numbers),
                        *([("distances", pa.list_(pa.float64()))] if measured else [])])
    pq.write_table(pa.Table.from_pylist(lines, schema=schema), path, compression="zstd")


def best_by_validation(tuned: Mapping[str, Any]) -> tuple[str, str]:
    """Arm and seed with the lowest validation loss: a model chosen by its test score would no longer be tested."""
    chosen = tuned["chosen"]
    arm = tuned.get("preferred") or min(chosen, key=lambda one: float(chosen[one]["val_loss"]))
    seed, _ = min(chosen[arm]["val_loss_by_seed"].items(), key=lambda pair: float(pair[1]))
    return arm, str(seed)


def _register(folder: Path, root: Path, tuned: Mapping[str, Any], evaluation: Evaluation, tracked: Any) -> None:
    """Register the best model. One that stands by itself was made of one that was tuned by adapters."""
    arm, seed = best_by_validation(tuned)
    alone = root / "artifacts/evaluate" / evaluation.name / ALONE
    model = alone if alone.is_dir() else folder / arm / f"seed{seed}"
    scores = {metric: by_seed[str(seed)] for metric, by_seed in evaluation.arms[arm].per_seed.items()}
    tracked.tag("model.arm", arm)
    tracked.model(model, f"lacuna-{evaluation.name}",
                  {metric: value for metric, value in scores.items() if value is not None})


def _headlines(evaluation: Evaluation) -> dict[str, Any]:
    """What the command line prints."""
    title = metrics.METRICS[evaluation.headline].title
    shown: dict[str, Any] = {"test rows": evaluation.num_rows, "test groups": evaluation.num_groups}
    for arm, result in evaluation.arms.items():
        shown[f"{title} {arm}"] = result.metrics[evaluation.headline].text()
    for name, simple in evaluation.floors.items():
        shown[f"{title} floor {name}"] = simple.metrics[evaluation.headline].text()
    return shown | {f"verdict {arm}": verdict(evaluation, arm) for arm in evaluation.paired}
