"""The cells of a verdict: one way of starting and adapting, one budget of labels, one seed. A cell is trained, its
learning rate chosen on validation rows, and its word on the test rows kept; so a killed verdict goes on where it was,
and one more arm computes that arm alone.

Legend: n test rows, K outputs.
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from domains.publish import folder_in_the_making, write_bytes, write_text
from domains.store import Prepared
from pipelines import finetune
from pipelines.batches import Source, domain_code
from pipelines.finetune import build_augment
from pipelines.finetune_settings import FinetuneRun
from pipelines.label_budget import labelled_rows
from pipelines.resume import REPOSITORY, Work, hash_of_sources
from pipelines.settings import fingerprint
from pipelines.starts import Start
from pipelines.temperature import probabilities
from pipelines.tracked_run import Run
from pipelines.training import device_of
from pipelines.tuned_checkpoints import load_tuned, predict


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of a verdict. Cells are told apart by identity: settings hold mappings, which have no hash."""

    way: str
    """Arm and adaptation: "scratch", "pretrained full", "pretrained lora"."""
    budget: float
    """Share of the labelled training groups."""
    seed: int
    """Of head, order, augmentation, and of which groups the budget holds."""
    run: FinetuneRun
    """What is trained: one arm, one seed."""


@dataclass(frozen=True)
class Told:
    """A finished cell."""

    predicted: np.ndarray
    """n K: calibrated probabilities, or numbers."""
    numbers: dict[str, Any]
    """val_loss, learning_rate, steps, seconds, trained, weights, groups, rows."""


CODE = ("bad_steps", "batches", "cells", "checkpoints", "finetune", "finetune_settings", "label_budget", "memory_bank",
        "optimisers", "probes", "schedule", "starts", "temperature", "training", "training_module", "tuned_checkpoints")
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
    return home / fingerprint(run, start.encoder, start.contract, weights, prepared.digest, code)


def known(folder: Path) -> Told | None:
    """A cell that is finished, or None."""
    if not (folder / "cell.json").is_file():
        return None
    return Told(np.load(folder / "predicted.npy", allow_pickle=False), json.loads((folder / "cell.json").read_text()))


def compute(cell: Cell, folder: Path, prepared: Prepared, start: Start) -> Told:
    """Train one cell and keep what it says of the test rows; the weights are thrown away."""
    run = cell.run
    task = prepared.contract.tasks[run.task]
    arm = run.arms[0]
    begin = start if arm == "pretrained" else start.random()
    labels = prepared.labels(run.task)
    train, val = labelled_rows(prepared, run.data, run.task, run.label_share, run.label_seed)
    code = domain_code(run.domain)
    sources = tuple(Source(prepared, start.contract, code, rows, labels) for rows in (train, val))
    work = Work(folder.with_name(f"{folder.name}.work"), "", "", False, False)
    work.folder.mkdir(parents=True, exist_ok=True)
    silent = Run({"key": ""}, work.folder, None, silent=True)
    trials = [finetune.trial(cell.way, run, task, arm, cell.seed, rate, begin, sources, build_augment(cell.way, run),
                             work, silent) for rate in (run.grid if run.protocol == "full" else run.grid[:1])]
    best = min(trials, key=lambda trial: trial.val_loss)
    model, contract, record = load_tuned(best.folder / "model")
    test = prepared.rows(split="test", task=run.task)
    logits = predict(model, Source(prepared, contract, code, test), device=device_of(run.machine))
    predicted = np.asarray(probabilities(logits, task.kind, record["temperature"]), dtype=np.float32)
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


def npy(values: np.ndarray) -> bytes:
    """An array as the bytes of an .npy file."""
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    return content.getvalue()
