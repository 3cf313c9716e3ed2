"""Stage `verdict`: is pretraining on this data worth it, by how much, and how should one adapt with the labels one has?

Arms (where one starts) times adaptations (what is trained) times budgets of labels times seeds, each trained alike and
scored on the same test rows. Cells are kept, so that a killed verdict goes on and one more arm computes that arm alone.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.publish import folder_in_the_making, write_bytes, write_text
from domains.splits import assert_no_group_is_cut, pseudonyms_of
from domains.store import Prepared, open_prepared
from pipelines import metrics, tracking, verdict_report
from pipelines.cells import Cell, Told, code_of, compute, known, npy, place
from pipelines.checkpoints import is_scratch
from pipelines.evaluate import Leak, groups_seen
from pipelines.finetune import resolve_start
from pipelines.finetune_settings import FinetuneRun
from pipelines.floor_features import FloorSettings
from pipelines.floors import floor
from pipelines.label_efficiency import Curve, Worth, gains, worth
from pipelines.settings import build, plain
from pipelines.side_by_side import environment_of
from pipelines.starts import Start
from pipelines.uncertainty import Estimate, Spread, estimates, spread
from pipelines.verdict_report import Answer, Way

SCRATCH, LONGER = "scratch", "scratch, longer"
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
    longer: int = 0
    """Times as many steps for one more arm from scratch, which spends on labels what the others spent on pretraining.
    0: no such arm."""
    floors: tuple[FloorSettings, ...] = ()
    """Simple models on all labels, so that a shortcut shows."""
    headline: str = ""
    """The metric that counts; empty: auroc, or mae for regression."""
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
    runs = tunings(name, settings)
    whole = next(iter(runs.values()))
    starts = {arm: resolve_start(dataclasses.replace(whole, start=start), prepared.contract, root)
              for arm, start in settings.arms.starts.items()}
    refuse_leaks(prepared, settings, starts)
    cells = plan(settings, runs)
    folders = _places(cells, settings, prepared, starts, root)
    if share is not None:
        mine = cells[share[0]::share[1]]
        _train(mine, folders, prepared, starts, f"{name} {share[0] + 1}/{share[1]}")
        return {"cells": len(mine)}
    inputs = {f"data/prepared/{settings.data}": prepared.digest, **dict.fromkeys(settings.arms.starts.values())}
    with tracking.open_run(stage="verdict", name=name, root=root, settings=plain(settings), domain=settings.domain,
                           inputs=inputs) as tracked:
        if settings.processes > 1:
            _in_processes(name, settings.processes, root)
        told = _train(cells, folders, prepared, starts, name)
        answer = answer_of(name, settings, prepared, told, root, starts)
        _publish(answer, told, root, tracked)
    return answer.headlines()


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
        runs[adaptation] = build(FinetuneRun, paragraph, f"verdict.{name}.adaptations.{adaptation}")
    if any(run.processes > 1 for run in runs.values()):
        raise ValueError(f"verdict.{name}.tuning.processes: found above 1, expected 1: cells are trained at once by "
                         f"verdict.{name}.processes. Set that one.")
    first = next(iter(runs))
    if runs[first].protocol != "full" or runs[first].adapters:
        raise ValueError(f"verdict.{name}.adaptations: found {first} first, which does not train everything, expected "
                         "one that does: the arm from scratch is tuned by the first. Put `full: {}` in front.")
    return runs


def plan(settings: VerdictRun, runs: dict[str, FinetuneRun]) -> list[Cell]:
    """Every cell, small budgets first, so that a look at an unfinished verdict shows whole curves."""
    whole = next(iter(runs.values()))
    ways = [(SCRATCH, dataclasses.replace(whole, arms=("scratch",)))]
    if settings.longer:
        steps = settings.longer * whole.optimisation.steps
        ways.append((LONGER, dataclasses.replace(
            whole, arms=("scratch",), optimisation=dataclasses.replace(whole.optimisation, steps=steps))))
    for arm, start in settings.arms.starts.items():
        ways += [(f"{arm} {adaptation}", dataclasses.replace(run, arms=("pretrained",), start=start))
                 for adaptation, run in runs.items()]
    return [Cell(way, budget, seed, dataclasses.replace(run, label_share=budget, label_seed=seed, seeds=(seed,)))
            for budget in settings.budgets for seed in settings.seeds for way, run in ways]


def refuse_leaks(prepared: Prepared, settings: VerdictRun, starts: dict[str, Start]) -> None:
    """Nothing that is tuned or tested on may have been pretrained on. Raises GroupCut or Leak before anything is spent.
    """
    assert_no_group_is_cut(prepared.column("group"), prepared.column("split"))
    column = prepared.column("group")
    held = {str(column[row]) for row in prepared.rows(split=["val", "test"])}
    for arm, start in starts.items():
        seen = groups_seen(start.record, held)
        if seen:
            raise Leak(f"leak: found {len(seen)} of {len(held)} validation and test groups in what arm {arm} "
                       f"({settings.arms.starts[arm]}) was pretrained on "
                       f"({pseudonyms_of(seen)}), expected none. Remedy: pretrain again "
                       "with the present splits, or move these groups to train.")
        if start.provenance():  # imported, or trained on since they were
            print(f"arm {arm}: imported weights do not say what they have seen; whether it was a test group of yours "
                  "cannot be checked.")


# ---- cells ----

def _places(cells: list[Cell], settings: VerdictRun, prepared: Prepared, starts: dict[str, Start],
            root: Path) -> dict[Cell, Path]:
    code = code_of(settings.domain)
    return {cell: place(root / CELLS, cell, prepared, _start_of(cell, starts), code) for cell in cells}


def _start_of(cell: Cell, starts: dict[str, Start]) -> Start:
    """Its arm's; an arm from scratch takes the shape of own pretraining."""
    return starts.get(cell.way.split(" ")[0], starts["pretrained"])


def _train(cells: list[Cell], folders: dict[Cell, Path], prepared: Prepared, starts: dict[str, Start],
           title: str) -> dict[Cell, Told]:
    """What every cell says, in order; those that are missing are trained."""
    found = {cell: known(folders[cell]) for cell in cells}
    missing = [cell for cell, told in found.items() if told is None]
    if len(missing) < len(cells):
        print(f"verdict {title}: {len(cells) - len(missing)} of {len(cells)} cells are there already")
    for cell in tqdm(missing, desc=f"verdict {title}", unit="cell", leave=False,
                     mininterval=0.5 if sys.stderr.isatty() else 30):
        found[cell] = compute(cell, folders[cell], prepared, _start_of(cell, starts))
    return {cell: told for cell, told in found.items() if told is not None}


def _in_processes(name: str, count: int, root: Path) -> None:
    """Train shares of the cells in processes of their own; what one leaves behind is trained here afterwards."""
    children = [subprocess.Popen([sys.executable, "-P", "-m", "lacuna", "verdict", name, "--cells", f"{i}/{count}"],
                                 cwd=root, env={**environment_of(i, count), "LACUNA_TRACKING": "off"})
                for i in range(count)]
    failed = [child.args for child in children if child.wait() != 0]
    if failed:
        print(f"verdict {name}: {len(failed)} of {count} processes ended early; their cells are trained here.")


# ---- answers ----

def answer_of(name: str, settings: VerdictRun, prepared: Prepared, told: dict[Cell, Told], root: Path,
              starts: dict[str, Start]) -> Answer:
    """Scores of every way and budget, differences from scratch, worth in labels, floors."""
    task = prepared.contract.tasks[settings.task]
    rows = prepared.rows(split="test", task=settings.task)
    labels, column = prepared.labels(settings.task)[rows], prepared.column("group")
    groups = [str(column[row]) for row in rows]
    headline = settings.headline or metrics.HEADLINE[task.kind]

    def scored(predicted: np.ndarray) -> Spread:
        return spread(task.kind, labels, predicted, groups, settings.resamples)

    names = list(dict.fromkeys(cell.way for cell in told))
    sign = 1.0 if metrics.METRICS[headline].higher_is_better else -1.0
    curves: dict[str, Curve] = {}
    ways: dict[str, Way] = {}
    num_groups = 0
    for way in names:
        spreads, sizes, shown = [], [], []
        for budget in settings.budgets:
            own = [(cell, one) for cell, one in told.items() if (cell.way, cell.budget) == (way, budget)]
            one = scored(np.stack([each.predicted for _, each in own]))
            num_groups = one.num_groups
            spreads.append(one)
            sizes.append(round(float(np.mean([each.numbers["groups"] for _, each in own]))))
            shown.append(estimates(one)[headline])
        curves[way] = Curve(tuple(sign * one.metrics[headline] for one in spreads), tuple(sizes))
        ways[way] = _way(way, settings, told, tuple(shown), tuple(sizes))
    found = gains(curves, SCRATCH, num_groups)
    worths: dict[str, Worth | None] = {way: worth(curves[way], curves[SCRATCH]) for way in found}
    floors: dict[str, Estimate] = {}
    for asked in settings.floors:
        simple = floor(prepared, settings.task, asked, rows, root, headline, 0)
        floors[f"{asked.kind} ({simple.model})"] = estimates(scored(simple.predicted[None]))[headline]
    pool = starts["pretrained"].record.get("provenance", {})
    return Answer(name=name, kind=prepared.contract.kind, headline=headline, num_groups=num_groups,
                  num_rows=len(rows), ways=ways, gains=found, worths=worths, floors=floors,
                  pretrained_on=int(pool.get("samples", 0)), comparisons=len(found), seeds=len(settings.seeds),
                  recipe=_recipe(name, settings, told), watts=settings.watts)


def _way(way: str, settings: VerdictRun, told: dict[Cell, Told], scores: tuple[Estimate, ...],
         sizes: tuple[int, ...]) -> Way:
    own = [(cell, one) for cell, one in told.items() if cell.way == way]
    last = [one for cell, one in own if cell.budget == settings.budgets[-1]]
    numbers = last[0].numbers
    return Way(scores=scores, groups=sizes, seconds=float(sum(one.numbers["seconds"] for _, one in own)),
               steps=int(numbers["steps"]), trained=int(numbers["trained"]), weights=int(numbers["weights"]),
               val_loss=float(np.mean([one.numbers["val_loss"] for one in last])))


def _recipe(name: str, settings: VerdictRun, told: dict[Cell, Told]) -> tuple[str, dict[str, Any]]:
    """The way with the lowest mean validation loss on all labels, and its paragraph for params.yaml. Chosen by
    validation rows: one chosen by its test score would no longer be tested."""
    losses: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    runs: dict[str, FinetuneRun] = {}
    for cell, one in told.items():
        if cell.budget == settings.budgets[-1]:
            losses.setdefault(cell.way, []).append(one.numbers["val_loss"])
            rates.setdefault(cell.way, []).append(one.numbers["learning_rate"])
            runs[cell.way] = cell.run
    best = min(losses, key=lambda way: float(np.mean(losses[way])))
    run = dataclasses.replace(runs[best], seeds=settings.seeds, label_share=1.0, label_seed=0,
                              grid=tuple(sorted(set(rates[best]))))
    default = plain(FinetuneRun(domain=run.domain, data="", task="", start=run.start))
    kept = ("domain", "start")
    paragraph = {key: value for key, value in plain(run).items() if value != default.get(key) or key in kept}
    return best, {name: paragraph}


def _publish(answer: Answer, told: dict[Cell, Told], root: Path, tracked: Any) -> None:
    """Predictions of every cell, and the report."""
    with folder_in_the_making(root / "artifacts/verdict" / answer.name) as making:
        lines = ["way,budget,seed,learning_rate,val_loss,groups,seconds"]
        for number, (cell, each) in enumerate(told.items()):
            one = each.numbers
            lines.append(f"{cell.way.replace(',', '')},{cell.budget:g},{cell.seed},{one['learning_rate']:g},"
                         f"{one['val_loss']:.6g},{one['groups']},{one['seconds']:.1f}")
            write_bytes(making / f"cell-{number:04d}.npy", npy(each.predicted))
        write_text(making / "cells.csv", "\n".join(lines) + "\n")
    reports = root / "reports/verdict" / answer.name
    reports.mkdir(parents=True, exist_ok=True)
    verdict_report.write(reports, answer)
    tracked.metrics(answer.flat())
    tracked.picture(reports / "curves.png")
    for way, gain in answer.gains.items():
        tracked.tag(f"lacuna.verdict.{way}", gain.verdict)
