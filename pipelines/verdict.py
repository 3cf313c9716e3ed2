"""Stage `verdict`: is pretraining on this data worth it, by how much, and how should one adapt with the labels one has?

Arms (where one starts) times adaptations (what is trained) times budgets of labels times seeds, each trained alike and
scored on the same test rows. Cells are kept, so that a killed verdict goes on and one more arm computes that arm alone.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from domains.publish import folder_in_the_making, write_bytes
from domains.splits import assert_no_group_is_cut, pseudonyms_of
from domains.store import Prepared, open_prepared
from pipelines import report
from pipelines.evaluate import Leak, groups_seen
from pipelines.finetune import resolve_start
from pipelines.scoring import metrics
from pipelines.scoring.floor_features import FloorSettings
from pipelines.scoring.floors import check_floor
from pipelines.settings import build, plain
from pipelines.tracking import tracking
from pipelines.tracking.tracked_run import Run
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.side_by_side import side_by_side
from pipelines.verdicts import verdict_report
from pipelines.verdicts.cells import (
    LEAST_FOLDS,
    LONGER,
    SCRATCH,
    Cell,
    Told,
    all_labelled,
    code_of,
    compute_all,
    finished,
    npy,
    place,
)
from pipelines.verdicts.verdict_answer import answer_of, line_of
from pipelines.verdicts.verdict_report import Answer
from pipelines.weights.checkpoints import is_scratch
from pipelines.weights.starts import Start

CELLS = ".work/verdict"
"""Where cells are kept, by project: outside what DVC deletes before a stage."""


@dataclass(frozen=True)
class Arms:
    """Where the arms begin: checkpoint folders, or `scratch` for no such arm. One place each, because DVC asks every
    paragraph for the same dependencies. The arm from random weights is always there."""

    pretrained: str
    """Own pretraining on this data; what the verdict is about."""
    other: str = SCRATCH
    """Weights made for something else: another domain's, or published ones."""
    further: str = SCRATCH
    """Other weights that were pretrained further on this data."""
    distilled: str = SCRATCH
    """Own pretraining that was distilled."""

    def __post_init__(self) -> None:
        if is_scratch(self.pretrained):
            raise ValueError("pretrained: found scratch, expected the checkpoint folder that the verdict is about, "
                             "such as artifacts/pretrain/NAME.")

    @property
    def starts(self) -> dict[str, str]:
        """Name -> checkpoint folder, of those that are there."""
        return {name: start for name, start in dataclasses.asdict(self).items() if not is_scratch(start)}


@dataclass(frozen=True)
class VerdictRun:
    """One paragraph of `verdict` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader to use."""
    data: str
    """Name of the ingest run with the labels."""
    task: str
    """Which of its tasks."""
    arms: Arms
    """Where the arms begin."""
    tuning: dict[str, Any] = field(default_factory=dict)
    """What all cells share, as in a paragraph of `finetune`: grid, optimisation, augment, head, imbalance. Every arm
    gets the same steps and the same grid, chosen on validation rows."""
    adaptations: dict[str, dict[str, Any]] = field(default_factory=lambda: {"full": {}})
    """By name, what is different: {lora: {adapters: [{kind: lora}]}, linear: {protocol: linear}}. The first is also how
    the arm from scratch is tuned; it must train everything."""
    budgets: tuple[float, ...] = (0.05, 0.1, 0.25, 1.0)
    """Shares of the labelled training groups, rising; the last is 1."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each cell is trained once per seed, which also draws the groups of its budget."""
    folds: int = 0
    """For few groups: every seed draws so many folds over all labelled groups, of any split; each fold is predicted by
    models trained on the others, so that every labelled row is tested once per seed. 0: the data's own split. Takes
    folds times as many trainings, and arms that were pretrained on none of these groups."""
    longer: int = 0
    """Times as many steps for one more arm from scratch, which spends on labels what the others spent on pretraining.
    0: no such arm."""
    floors: tuple[FloorSettings, ...] = ()
    """Simple models on all labels, so that a shortcut shows."""
    headline: str = ""
    """The metric that counts; empty: auroc, mae for regression, dice for segmentation."""
    resamples: int = 1000
    """Resamples of test groups."""
    processes: int = 1
    """Cells trained at once. Each takes a share of the cores, and the next GPU where there are some."""
    watts: float = 0.0
    """Power of this machine under load, for the estimate of energy; 0: none is given."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.budgets, self.budgets[1:], strict=False))
        if not self.budgets or not rising or self.budgets[0] <= 0 or self.budgets[-1] != 1:
            raise ValueError(f"budgets: found {list(self.budgets)}, expected rising shares that end with 1, such as "
                             "[0.1, 1].")
        if len(self.seeds) < 2:
            raise ValueError(f"seeds: found {list(self.seeds)}, expected at least two: with one, luck cannot be told "
                             "from gain. Take three or more.")
        if not self.adaptations:
            raise ValueError("adaptations: found none, expected at least one, such as {full: {}}.")
        if self.longer == 1 or self.longer < 0 or self.processes < 1:
            raise ValueError(f"longer: found {self.longer}, expected 0 or at least 2; processes: found "
                             f"{self.processes}, expected at least 1.")
        if self.folds and self.folds < LEAST_FOLDS:
            raise ValueError(f"folds: found {self.folds}, expected 0 or at least {LEAST_FOLDS}: one to test on, one to "
                             "choose by, the others to learn from.")
        if self.headline and self.headline not in metrics.METRICS:
            raise ValueError(f"headline: found {self.headline!r}, expected one of {', '.join(metrics.METRICS)}.")


def run(name: str, settings: VerdictRun, root: Path, share: tuple[int, int] | None = None) -> dict[str, Any]:
    """Train what is missing, write artifacts/verdict/<name> and reports/verdict/<name>, return the headline numbers.

    Args:
        share: (i, n): only train every n-th cell from the i-th on, for n processes or machines that share the folder.

    Raises:
        SettingsError, Leak, ContractMismatch, CheckpointError, TrainingFailed: each a sentence for the user.
    """
    prepared = open_prepared(root / "data/prepared" / settings.data)
    for asked in settings.floors:
        check_floor(asked, prepared.contract.tasks[settings.task].kind)
    runs = tunings(name, settings)
    whole = next(iter(runs.values()))
    starts = {arm: resolve_start(dataclasses.replace(whole, start=start), prepared.contract, root)
              for arm, start in settings.arms.starts.items()}
    refuse_leaks(prepared, settings, starts, root)
    cells = plan(settings, runs)
    code = code_of(settings.domain)
    folders = {cell: place(root / CELLS, cell, prepared, _start_of(cell, starts), code) for cell in cells}
    if share is not None:
        mine = cells[share[0]::share[1]]
        compute_all(mine, folders, prepared, lambda cell: _start_of(cell, starts), f"{name} {share[0] + 1}/{share[1]}")
        return {"cells": len(mine)}
    inputs = {f"data/prepared/{settings.data}": prepared.digest, **dict.fromkeys(settings.arms.starts.values())}
    kept = {cell for cell in cells if finished(folders[cell])}
    lines: dict[Cell, dict[str, Any]] = {}
    with tracking.open_run(stage="verdict", name=name, root=root, settings=plain(settings), domain=settings.domain,
                           inputs=inputs) as tracked:

        def done(cell: Cell, one: Told) -> None:
            lines[cell] = line_of(cell, one, settings, prepared)
            _track(tracked, cell, one, lines[cell], cell in kept)

        if settings.processes > 1 and len(kept) < len(cells):
            _compute_side_by_side(name, settings, root, tracked)
        told = compute_all(cells, folders, prepared, lambda cell: _start_of(cell, starts), name, done)
        answer = answer_of(name, settings, prepared, told, root, starts)
        _publish(answer, told, [lines[cell] for cell in told], root, tracked)
    return answer.headlines()


def _compute_side_by_side(name: str, settings: VerdictRun, root: Path, tracked: Run) -> None:
    """Leave finished cells in their folders; what a process could not train is trained here afterwards."""
    request = {"name": name, "settings": plain(settings), "root": str(root.resolve())}
    if failed := side_by_side("pipelines.verdicts.verdict_share", request, settings.processes, tracked.metrics):
        print(f"verdict {name}: {failed} of {settings.processes} processes ended early; their cells are trained here.")


def share_of(text: str) -> tuple[int, int] | None:
    """"1/4" -> (1, 4): the second of four shares. Raises ValueError."""
    if not text:
        return None
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"--cells: found {text!r}, expected I/N with I from 0 to N - 1, such as 0/4.")
    return int(i), int(n)


def tunings(name: str, settings: VerdictRun) -> dict[str, FinetuneRun]:
    """The fine-tuning of each adaptation. Raises SettingsError with the path of what is wrong."""
    runs = {}
    for adaptation, changes in settings.adaptations.items():
        paragraph = {"domain": settings.domain, "data": settings.data, "task": settings.task,
                     "start": settings.arms.pretrained, **settings.tuning, **changes}
        both = [part.get("optimisation") for part in (settings.tuning, changes)]
        if all(isinstance(one, dict) for one in both):
            paragraph["optimisation"] = {**both[0], **both[1]}  # type: ignore[dict-item]
        if "head" not in changes:
            paragraph |= _head_of(paragraph)
        runs[adaptation] = build(FinetuneRun, paragraph, f"verdict.{name}.adaptations.{adaptation}")
    if any(run.processes > 1 for run in runs.values()):
        raise ValueError(f"verdict.{name}.tuning.processes: found above 1, expected 1: cells are trained at once by "
                         f"verdict.{name}.processes. Set that one.")
    first = next(iter(runs))
    if runs[first].protocol != "full" or runs[first].adapters:
        raise ValueError(f"verdict.{name}.adaptations: found {first} first, which does not train everything, expected "
                         "one that does: the arm from scratch is tuned by the first. Put `full: {}` in front.")
    return runs


def _head_of(paragraph: dict[str, Any]) -> dict[str, Any]:
    """The head that a protocol takes, where an adaptation names none: the shared one, as far as the protocol has it."""
    shared = paragraph.get("head")
    match paragraph.get("protocol"):
        case "knn":
            return {"head": {"kind": "nearest"}}
        case "linear" if shared is None or isinstance(shared, dict):
            pool = {"pool": shared["pool"]} if shared and "pool" in shared else {}
            return {"head": {"kind": "sample", "batch_norm": True, **pool}}
    return {}


def plan(settings: VerdictRun, runs: dict[str, FinetuneRun]) -> list[Cell]:
    """Every cell, small budgets first, so that a look at an unfinished verdict shows whole curves."""
    whole = next(iter(runs.values()))
    first = next(iter(runs))
    ways = [(SCRATCH, first, dataclasses.replace(whole, arms=("scratch",)))]
    if settings.longer:
        steps = settings.longer * whole.optimisation.steps
        ways.append((LONGER, first, dataclasses.replace(
            whole, arms=("scratch",), optimisation=dataclasses.replace(whole.optimisation, steps=steps))))
    for arm, start in settings.arms.starts.items():
        ways += [(arm, adaptation, dataclasses.replace(run, arms=("pretrained",), start=start))
                 for adaptation, run in runs.items()]
    return [Cell(arm, adaptation, budget, seed,
                 dataclasses.replace(run, label_share=budget, label_seed=seed, seeds=(seed,)), settings.folds, fold)
            for budget in settings.budgets for seed in settings.seeds for fold in range(max(1, settings.folds))
            for arm, adaptation, run in ways]


def refuse_leaks(prepared: Prepared, settings: VerdictRun, starts: dict[str, Start], root: Path) -> None:
    """Nothing that is chosen by or tested on may have been pretrained on, under this name or another.

    Raises:
        GroupCut, Leak: before anything is spent.
    """
    assert_no_group_is_cut(prepared.column("group"), prepared.column("split"))
    column = prepared.column("group")
    rows = prepared.rows(split=["val", "test"])
    what, remedy = "validation and test groups", ("pretrain again with the present splits, or move these groups to "
                                                  "train.")
    if settings.folds:
        rows = np.union1d(rows, all_labelled(prepared, settings.task))
        what, remedy = "groups of the folds", ("with folds every labelled group is tested, so pretrain on rows without "
                                               "a label alone (`splits: [unlabelled]` of the pretrain run), or leave "
                                               "`folds` out.")
    held = {str(column[row]) for row in rows}
    for arm, start in starts.items():
        seen = groups_seen(start.record, held)
        if seen:
            raise Leak(f"leak: found {len(seen)} of {len(held)} {what} in what arm {arm} "
                       f"({settings.arms.starts[arm]}) was pretrained on ({pseudonyms_of(seen)}), expected none. "
                       f"Remedy: {remedy}")
        copies = copies_seen(prepared, rows, start, root)
        if copies:
            raise Leak(f"leak: found {copies} of {len(rows)} samples that are tested on or chosen by, byte for byte, "
                       f"in what arm {arm} ({settings.arms.starts[arm]}) was pretrained on, under another group's "
                       "name, expected none. Remedy: ingest both with one manifest, so that a repeat is seen; then "
                       "pretrain again.")
        if start.provenance():  # imported, or trained on since they were
            print(f"arm {arm}: imported weights do not say what they have seen; whether it was a test group of yours "
                  "cannot be checked.")


def copies_seen(prepared: Prepared, rows: np.ndarray, start: Start, root: Path) -> int:
    """How many of these samples a start was pretrained on, whatever they were called there; 0 where the data that it
    was pretrained on is not here any more."""
    made_of = start.record.get("provenance", {})
    folder = root / "data/prepared" / str(made_of.get("data", ""))
    if not made_of.get("data_digest") or not (folder / "index.parquet").is_file():
        return 0
    other = open_prepared(folder)
    if other.digest != made_of["data_digest"]:
        return 0
    groups, hashes = other.column("group"), other.column("sha256")
    seen = set(groups_seen(start.record, {str(group) for group in groups}))
    learnt = {hashes[row] for row in other.pool() if str(groups[row]) in seen}
    own = prepared.column("sha256")
    return sum(own[row] in learnt for row in rows)


def _start_of(cell: Cell, starts: dict[str, Start]) -> Start:
    """Its arm's; an arm from scratch takes the shape of own pretraining."""
    return starts.get(cell.arm, starts["pretrained"])


def _track(tracked: Run, cell: Cell, told: Told, line: dict[str, Any], kept: bool) -> None:
    """A run of its own in the tracking server, below the verdict's."""
    settings = {"arm": cell.arm, "adaptation": cell.adaptation, "budget": cell.budget, "seed": cell.seed,
                **({"fold": cell.fold} if cell.folds else {}), "learning_rate": told.numbers["learning_rate"],
                "steps": told.numbers["steps"]}
    numbers = {key: value for key, value in line.items()
               if key not in settings and isinstance(value, int | float) and math.isfinite(value)}
    tracked.child(cell.name, settings, numbers, told.numbers["seconds"], {"lacuna.kept": str(kept).lower()})


def _publish(answer: Answer, told: dict[Cell, Told], lines: list[dict[str, Any]], root: Path, tracked: Run) -> None:
    """Predictions of every cell, and the report. Time stands in the report alone: equal work leaves equal artifacts."""
    with folder_in_the_making(root / "artifacts/verdict" / answer.name) as making:
        for number, each in enumerate(told.values()):
            write_bytes(making / f"cell-{number:04d}.npy", npy(each.predicted))
        report.write_csv(making / "cells.csv", [{key: value for key, value in line.items() if key != "seconds"}
                                                for line in lines])
    reports = root / "reports/verdict" / answer.name
    reports.mkdir(parents=True, exist_ok=True)
    report.write_csv(reports / "cells.csv", lines)
    tracked.description(answer.sentences(), verdict_report.write(reports, answer))
    tracked.metrics(answer.flat())
    if report.can_draw():
        tracked.picture(reports / "curves.png")
    for way, gain in answer.gains.items():
        tracked.tag(f"lacuna.verdict.{way}", gain.verdict)
