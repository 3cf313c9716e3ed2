"""The cells of a verdict: one way of starting and adapting, one budget of labels, one seed. A cell is trained, its
learning rate chosen on validation rows, and its word on the test rows kept; so a killed verdict goes on where it was,
and one more arm computes that arm alone.

Legend: n test rows, K outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.publish import folder_in_the_making, write_bytes, write_text
from domains.store import Prepared
from pipelines import finetune
from pipelines.finetune import Planned
from pipelines.scoring.answers import answers
from pipelines.scoring.uncertainty import group_folds
from pipelines.settings import fingerprint
from pipelines.tracking.tracked_run import Run
from pipelines.training.batches import Source, domain_code
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.label_budget import labelled_rows, what_rows_hold, within_budget
from pipelines.training.resume import REPOSITORY, Work, hash_of_sources
from pipelines.training.training import device_of
from pipelines.weights.starts import Start
from pipelines.weights.tuned_checkpoints import load_tuned

SCRATCH, LONGER = "scratch", "scratch, longer"
"""The arms that begin with random weights; the second trains for longer."""
LEAST_FOLDS = 3
"""One to test on, one to choose by, one to learn from."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of a verdict. Cells are told apart by identity: settings hold mappings, which have no hash."""

    arm: str
    """Where it begins: "scratch", "pretrained"."""
    adaptation: str
    """What is trained, by the name that the run gave it: "full", "lora"."""
    budget: float
    """Share of the labelled training groups."""
    seed: int
    """Of head, order, augmentation, and of which groups the budget holds."""
    run: FinetuneRun
    """What is trained: one arm, one seed."""
    folds: int = 0
    """Folds over groups that the seed draws; 0: the data's own split."""
    fold: int = 0
    """Which of them is tested on."""

    @property
    def way(self) -> str:
        """Arm and adaptation; there is but one way from scratch."""
        return self.arm if self.arm in (SCRATCH, LONGER) else f"{self.arm} {self.adaptation}"

    @property
    def name(self) -> str:
        """What tells it from the other cells of its verdict."""
        fold = f", fold {self.fold}" if self.folds else ""
        return f"{self.way}, {100 * self.budget:g} % of the labels, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Told:
    """A finished cell."""

    predicted: np.ndarray
    """n K: calibrated probabilities, or numbers; of masks n 3K counts of pixels."""
    numbers: dict[str, Any]
    """val_loss, learning_rate, steps, seconds, trained, weights, groups, rows."""


class Rows(NamedTuple):
    """What a cell learns from, chooses by and is tested on: rows of the index, ascending."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def rows_of(cell: Cell, prepared: Prepared) -> Rows:
    """The data's own split; or the cell's fold to test on, the next one to choose by and the others to learn from.

    Raises:
        ValueError: too few labelled rows or groups.
    """
    run = cell.run
    if not cell.folds:
        train, val = labelled_rows(prepared, run.data, run.task, run.label_share, run.label_seed)
        return Rows(train, val, prepared.rows(split="test", task=run.task))
    rows, folds = _folded(cell, prepared)
    test, val = (folds[(cell.fold + after) % cell.folds] for after in (0, 1))
    train = np.setdiff1d(rows, np.concatenate([test, val]))
    return Rows(within_budget(prepared, run.task, train, run.label_share, run.label_seed), val, test)


def tested_rows(cell: Cell, prepared: Prepared) -> np.ndarray:
    """The last of `rows_of` alone, which asks nothing of the budget."""
    if not cell.folds:
        return prepared.rows(split="test", task=cell.run.task)
    return _folded(cell, prepared)[1][cell.fold]


def _folded(cell: Cell, prepared: Prepared) -> tuple[np.ndarray, list[np.ndarray]]:
    """All labelled rows, and the rows of each fold that the cell's seed draws; ascending."""
    rows = all_labelled(prepared, cell.run.task)
    column = prepared.column("group")
    held = group_folds([str(column[row]) for row in rows], what_rows_hold(prepared, cell.run.task, rows), cell.folds, 1,
                       cell.seed)
    return rows, [np.sort(rows[one]) for one in held]


def all_labelled(prepared: Prepared, task: str) -> np.ndarray:
    """Rows that folds are made of: labelled, of any split but `unlabelled`; ascending."""
    return prepared.rows(split=["train", "val", "test"], task=task)


CODE = ("training/bad_steps", "training/batches", "verdicts/cells", "weights/checkpoints", "finetune",
        "training/finetune_settings", "training/label_budget", "training/labelled_model", "training/memory_bank",
        "training/optimisers", "training/probes", "training/schedule", "weights/starts", "scoring/answers",
        "scoring/overlap", "scoring/temperature", "prediction/segmenting", "training/crops", "training/true_masks",
        "training/training", "training/training_module", "weights/tuned_checkpoints")
"""Modules of pipelines/ that decide what a cell says, beside models/ and the domain's loading."""


def code_of(domain: str) -> str:
    """Short hash of the code that decides what a cell says: the same in every process, whatever it has loaded."""
    files = [REPOSITORY / "pipelines" / f"{name}.py" for name in CODE]
    files += [REPOSITORY / "domains" / domain / f"{name}.py" for name in ("augment", "dataset")]
    return hash_of_sources([*files, *(REPOSITORY / "domains").glob("*.py"), *(REPOSITORY / "models").rglob("*.py")])


def place(home: Path, cell: Cell, prepared: Prepared, start: Start, code: str) -> Path:
    """Where a cell is kept: by what it is made of, so that nothing stale is taken for it. A cell from scratch takes the
    shape of a start and not its weights."""
    weights = start.record.get("weights_sha256", "") if cell.run.arms == ("pretrained",) else ""
    run = dataclasses.replace(cell.run, start="")
    fold = [hashlib.sha256(part.tobytes()).hexdigest() for part in rows_of(cell, prepared)] if cell.folds else []
    return home / fingerprint(run, start.encoder, start.contract, weights, prepared.digest, code, *fold)


def finished(folder: Path) -> bool:
    """Whether a cell is kept here."""
    return (folder / "cell.json").is_file()


def known(folder: Path) -> Told | None:
    """A cell that is finished, or None."""
    if not finished(folder):
        return None
    return Told(np.load(folder / "predicted.npy", allow_pickle=False), json.loads((folder / "cell.json").read_text()))


def compute(cell: Cell, folder: Path, prepared: Prepared, start: Start, alike: int = 0) -> Told:
    """Train one cell and keep what it says of the test rows; the weights are thrown away.

    Args:
        alike: trainings like its own that are to come, for the estimate of time; 0: its own.
    """
    run = cell.run
    task = prepared.contract.tasks[run.task]
    arm = run.arms[0]
    begin = start if arm == "pretrained" else start.random()
    labels = prepared.labels(run.task)
    train, val, test = rows_of(cell, prepared)
    code = domain_code(run.domain)
    learnt, chosen = (Source(prepared, start.contract, code, rows, labels) for rows in (train, val))
    augment = finetune.build_augment(cell.way, run)
    work = Work(folder.with_name(f"{folder.name}.work"), "", "", False, False)
    work.folder.mkdir(parents=True, exist_ok=True)
    silent = Run({"key": ""}, work.folder, None, silent=True)
    trials = [finetune.trial(Planned(cell.way, run, task, arm, cell.seed, rate, begin, learnt, chosen, augment,
                                     work, silent, alike)) for rate in finetune.rates_of(run)]
    best = min(trials, key=lambda trial: trial.val_loss)
    model, contract, record = load_tuned(best.folder / "model")
    predicted = answers(model, Source(prepared, contract, code, test), task, run.task, record["temperature"],
                        device_of(run.machine))
    # Counts of pixels must stay whole numbers, also of large volumes.
    predicted = predicted.astype(np.float64 if task.kind == "segmentation" else np.float32)
    groups = prepared.column("group")
    numbers = {"val_loss": best.val_loss, "learning_rate": best.learning_rate,
               "steps": sum(trial.steps for trial in trials), "seconds": sum(trial.seconds for trial in trials),
               "trained": best.trained, "weights": best.weights, "rows": len(train),
               "groups": len({groups[row] for row in train})}
    with folder_in_the_making(folder) as making:
        write_bytes(making / "predicted.npy", npy(predicted))
        write_text(making / "cell.json", json.dumps(numbers))
    work.finish()
    return Told(predicted, numbers)


def compute_all(cells: Sequence[Cell], folders: Mapping[Cell, Path], prepared: Prepared,
                start_of: Callable[[Cell], Start], title: str,
                done: Callable[[Cell, Told], None] = lambda cell, told: None) -> dict[Cell, Told]:
    """What every cell says, in order; those that are missing are trained. `done` hears of each as soon as it is known.
    """
    found = {cell: known(folders[cell]) for cell in cells}
    missing = [cell for cell, told in found.items() if told is None]
    if len(missing) < len(cells):
        print(f"verdict {title}: {len(cells) - len(missing)} of {len(cells)} cells are there already")
    for cell, told in found.items():
        if told is not None:
            done(cell, told)
    told_of = next((cell for cell in missing if finetune.by_steps(cell.run)), None)
    if missing:
        print(f"verdict {title}: {len(missing)} cells are trained now"
              + ("; the time below is of all their steps" if told_of else ""))
    for cell in tqdm(missing, desc=f"verdict {title}", unit="cell", leave=False,
                     mininterval=0.5 if sys.stderr.isatty() else 30):
        # What a training says of itself before it begins is said once: the others are alike.
        with contextlib.nullcontext() if cell is told_of else contextlib.redirect_stdout(io.StringIO()):
            found[cell] = computed = compute(cell, folders[cell], prepared, start_of(cell),
                                             trainings_like(cell, missing) if cell is told_of else 0)
        done(cell, computed)
    return {cell: told for cell, told in found.items() if told is not None}


def trainings_like(first: Cell, cells: Sequence[Cell]) -> int:
    """As how many trainings of the first cell all of them count, by their steps; of an adapter the same as of all
    weights, which is a little too much. What is fitted at once takes no steps."""
    steps = sum(len(cell.run.grid) * cell.run.optimisation.steps for cell in cells if finetune.by_steps(cell.run))
    return max(1, round(steps / first.run.optimisation.steps))


def npy(values: np.ndarray) -> bytes:
    """An array as the bytes of an .npy file."""
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    return content.getvalue()
