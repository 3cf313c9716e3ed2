"""Stage `pretrain`: masked modelling on unlabelled and training rows; validation and test groups stay out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from domains.contract import Contract
from domains.publish import write_text
from domains.store import open_prepared
from models.encoder.build import AnyEncoder, AnyEncoderSettings
from models.encoder.chance import Chance
from models.encoder.initialisation import Initialisation, initialise
from models.encoder.nearest import nearest_labels
from models.encoder.patches import Features
from models.encoder.transformer import EncoderSettings, mean_of_valid
from models.objectives.distillation import DistillationSettings
from models.objectives.health import effective_rank, embedding_std
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings
from models.objectives.objective import Objective, ObjectiveSettings, build_objective, check_fit
from pipelines import report
from pipelines.settings import build, plain
from pipelines.tracking import tracking
from pipelines.training.batches import Batch, Source, domain_code, in_order
from pipelines.training.estimate import announce, with_memory_advice
from pipelines.training.pool import SPLITS, Split, group_hashes, pool_rows
from pipelines.training.processes import follows
from pipelines.training.reconstruction import reconstruction_rows
from pipelines.training.resume import Work, work_folder
from pipelines.training.training import Job, Machine, Optimisation, TrainingFailed, device_of, fit
from pipelines.weights import checkpoints
from pipelines.weights.starts import Start, resolve

Beside = Callable[[Batch], dict[str, torch.Tensor]]
"""Named losses of a batch."""


@dataclass(frozen=True)
class Gates:
    """Health checks while pretraining; they need no labels, but use them when there are some."""

    every: int = 0
    """Steps between two looks; 0: at the end only."""
    samples: int = 256
    """Embeddings looked at."""
    min_std: float = 0.02
    """Stop when the spread of directions falls below this: embeddings have collapsed (1 is healthy)."""
    min_rank: float = 1.5
    """Stop when fewer directions than this are in use."""
    neighbours: int = 10
    """Votes of the nearest-neighbour probe on tasks with labels."""


@dataclass(frozen=True)
class PretrainRun:
    """One paragraph of `pretrain` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader and augmentation to use."""
    data: str
    """Name of the ingest run to learn from."""
    start: str = checkpoints.SCRATCH
    """Checkpoint folder to go on from, or `scratch`."""
    teacher: str = checkpoints.SCRATCH
    """Checkpoint folder of the encoder that objective distillation learns from; `scratch` for all others: none. It
    stands here, and not in the objective, because DVC asks every paragraph for the same dependencies."""
    sources: tuple[str, ...] = ()
    """Learn from these sources only; empty: all."""
    splits: tuple[Split, ...] = SPLITS
    """Learn from these splits only. [unlabelled]: from no group with labels, so that a verdict may test all of these in
    folds."""
    encoder: AnyEncoderSettings | None = field(default=None, metadata={"without_kind": EncoderSettings})
    """The encoder; null: what the `start` holds, which is all that may be given beside one; from scratch a base
    transformer."""
    initialisation: Initialisation = "xavier"
    """How the weights of an encoder from scratch are drawn. mimetic: attention that looks trained (Trockman & Kolter
    2023), for small data."""
    objective: ObjectiveSettings = field(default_factory=MaskedAutoencoderSettings)
    """What is hidden and how it is predicted."""
    augment: dict[str, Any] | None = None
    """The domain's augmentation settings; null: none."""
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(steps=1000))
    """Steps, batch, learning rate."""
    machine: Machine = field(default_factory=Machine)
    """Devices and precision."""
    gates: Gates = field(default_factory=Gates)
    """Health checks."""
    num_pictures: int = 6
    """Samples in the reconstruction picture."""
    seed: int = 0
    """Of weights, order, masks and augmentation."""

    def __post_init__(self) -> None:
        if self.encoder is None and checkpoints.is_scratch(self.start):
            object.__setattr__(self, "encoder", EncoderSettings())  # frozen, and not finished yet
        if self.encoder is not None:
            check_fit(self.objective, self.encoder)
        if isinstance(self.objective, DistillationSettings) == checkpoints.is_scratch(self.teacher):
            raise ValueError(f"teacher: found {self.teacher} with objective {self.objective.kind}, expected a "
                             "checkpoint folder with distillation, and scratch with any other.")
        if self.initialisation != "xavier" and not checkpoints.is_scratch(self.start):
            raise ValueError(f"initialisation: found {self.initialisation} beside a start, expected start: scratch; a "
                             "checkpoint brings its weights. Leave one of the two out.")


def run(name: str, settings: PretrainRun, root: Path, resume_despite_code_change: bool = False) -> dict[str, Any]:
    """Pretrain and publish artifacts/pretrain/<name> and reports/pretrain/<name>. Returns the metrics.

    Raises:
        SettingsError, ContractMismatch, CheckpointError, TrainingFailed: each a sentence for the user.
    """
    prepared = open_prepared(root / "data/prepared" / settings.data, settings.machine.check_reads)
    code = domain_code(settings.domain, prepared.contract)
    augment = (None if settings.augment is None
               else build(code.augment.Augment, settings.augment, f"pretrain.{name}.augment"))
    start = resolve(settings.start, settings.encoder, prepared.contract, root)
    teacher = (None if checkpoints.is_scratch(settings.teacher)
               else resolve(settings.teacher, None, prepared.contract, root))
    for sentence in (*(f"start: {said}" for said in start.said),
                     *(f"teacher: {said}" for said in (teacher.said if teacher else ()))):
        print(sentence)
    torch.manual_seed(settings.seed)
    encoder = start.build()
    initialise(encoder, settings.initialisation, settings.seed)
    objective = build_objective(settings.objective, encoder, teacher.build() if teacher else None)
    rows = pool_rows(prepared, settings.sources, settings.splits)
    source = Source(prepared, shared_contract(start, teacher), code, rows)
    work = work_folder(root, "pretrain", name, [settings, prepared.digest, *(
        one.record.get("weights_sha256", "") for one in (start, teacher) if one)], resume_despite_code_change)
    inputs = {f"data/prepared/{settings.data}": prepared.digest}
    with tracking.open_run(stage="pretrain", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain, fingerprint=work.fingerprint, resume_folder=work.folder) as tracked:
        tracked.tag("resume.despite_code_change", str(work.despite_code_change).lower())
        one = Pretraining("pretrain", name, settings, objective, source, augment, work,
                          root / "reports/pretrain" / name, tracked)
        metrics = learn(one)
        if follows():
            return {}
        checkpoints.save(root / "artifacts/pretrain" / name, parts_of(objective), source.contract,
                         record_of(one, start, teacher, metrics))
        publish_report(one, metrics)
        work.finish()
        return metrics


def shared_contract(start: Start, teacher: Start | None) -> Contract:
    """What data is normalised by: a teacher must see what it was trained on, so a student from scratch takes it over.

    Raises:
        CheckpointError: start and teacher were made with different numbers.
    """
    if teacher is None:
        return start.contract
    own, theirs = (repr((one.contract.channels, one.contract.normalisation)) for one in (start, teacher))
    if start.weights is not None and own != theirs:
        raise checkpoints.CheckpointError(f"`start` and `teacher` normalise data differently: found {own}, expected "
                                          f"{theirs}. Begin from scratch, or from a checkpoint that began with the "
                                          "teacher's.")
    return teacher.contract


@dataclass(frozen=True)
class Pretraining:
    """One masked training, ready to begin: `pretrain` has one, `adapt` one or two."""

    stage: str
    name: str
    settings: PretrainRun
    objective: Objective
    source: Source
    augment: Any
    work: Work
    reports: Path
    tracked: Any
    phase: str = ""
    """What this training is called among several of one command: in curves, and as the file of its resume state."""
    beside: Beside | None = None
    """Losses beside the objective's own."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Filled in while training: the points of the curves."""


def learn(one: Pretraining) -> dict[str, Any]:
    """Train `one.objective` in place, or go on with what a killed run left. Returns the metrics; a process that only
    follows has none.

    Raises:
        TrainingFailed, NotFinite, DiskFull: each a sentence for the user.
    """
    settings, objective, history = one.settings, one.objective, one.history
    began = time.monotonic()

    def log(step: int, numbers: dict[str, float]) -> None:
        history.append({"step": step, **numbers})
        one.tracked.metrics({f"{one.phase}.{key}" if one.phase else key: value for key, value in numbers.items()},
                            step=step)

    def watch(step: int) -> bool:
        log(step, look(objective.encoder, one.source, settings))
        return False

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        own: dict[str, torch.Tensor] = objective(batch.x, batch.known, chance)
        return {**own, **one.beside(batch)} if one.beside else own

    title = " ".join(filter(None, (one.stage, one.name, one.phase)))
    job = Job(model=objective, losses=losses, source=one.source,
              augment=one.augment, optimisation=settings.optimisation, machine=settings.machine, seed=settings.seed,
              num_blocks=len(objective.encoder.blocks), resume=one.work.folder / f"{one.phase or 'resume'}.pt", log=log,
              every=settings.gates.every, watch=watch, title=title,
              after_step=getattr(objective, "after_step", None),
              watch_state=lambda: {"history": history, "seconds": time.monotonic() - began},
              restore_watch=lambda state: history.extend(state["history"]))
    announce(title, job, num_samples=len(one.source.rows))
    try:
        with with_memory_advice(settings.optimisation.batch_size, settings.machine.accumulate):
            fit(job)
    finally:
        if job.skips and not follows():
            report.write_csv(one.reports / "skipped.csv", [skip.line() for skip in job.skips])
    if follows():
        return {}
    objective.to(device_of(settings.machine)).eval()
    health = look(objective.encoder, one.source, settings)
    points = [point for point in history if "loss" in point]
    return {"loss": points[-1]["loss"], "first_loss": points[0]["loss"], "steps": settings.optimisation.steps,
            "seconds": time.monotonic() - began, "samples": len(one.source.rows), "skipped_steps": len(job.skips),
            "resumed": one.work.resumed, "resumed_despite_code_change": one.work.despite_code_change, **health}


def parts_of(objective: Objective) -> dict[str, nn.Module]:
    """What a checkpoint keeps of an objective: all its parts but those that are another checkpoint's."""
    borrowed = getattr(objective, "borrowed", ())
    return {part: module for part, module in objective.named_children() if part not in borrowed}


def publish_report(one: Pretraining, metrics: dict[str, Any]) -> None:
    """metrics.json, curves and pictures."""
    one.reports.mkdir(parents=True, exist_ok=True)
    write_text(one.reports / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    _pictures(one)
    one.tracked.metrics({key: float(value) for key, value in metrics.items()}, step=metrics["steps"])


def look(encoder: AnyEncoder, source: Source, settings: PretrainRun) -> dict[str, float]:
    """Spread and rank of embeddings, and the nearest-neighbour probe of each task with labels in train and val.

    Raises:
        TrainingFailed: embeddings have collapsed.
    """
    gates = settings.gates
    device = next(encoder.parameters()).device
    some = Source(source.prepared, source.contract, source.code, _evenly(source.rows, gates.samples))
    features = torch.from_numpy(embed(encoder, some, device))
    if not bool(features.isfinite().all()):
        raise TrainingFailed(f"embeddings: found {int((~features.isfinite()).any(1).sum())} of {len(features)} samples "
                             "whose features are NaN or infinite, expected finite numbers: the training has diverged. "
                             "Lower learning_rate, or set clip: 1.0.")
    numbers = {"embedding_std": embedding_std(features), "effective_rank": effective_rank(features)}
    if numbers["embedding_std"] < gates.min_std or numbers["effective_rank"] < gates.min_rank:
        raise TrainingFailed(f"embeddings have collapsed: standard deviation {numbers['embedding_std']:.4f} "
                             f"(expected at least {gates.min_std}), effective rank {numbers['effective_rank']:.2f} "
                             f"(at least {gates.min_rank}). Lower learning_rate, hide less, or look at the loss curve.")
    for task in source.prepared.contract.tasks:
        accuracy = _probe(encoder, source, task, gates, device)
        if accuracy is not None:
            numbers[f"knn_balanced_accuracy.{task}"] = accuracy
    return numbers


def _probe(encoder: AnyEncoder, source: Source, task: str, gates: Gates, device: torch.device) -> float | None:
    """Balanced accuracy on val of neighbours from train; None where the task is no classification or has no rows."""
    prepared = source.prepared
    about = prepared.contract.tasks[task]
    labels = prepared.labels(task)
    train = _evenly(prepared.rows(split="train", task=task), 2 * gates.samples)
    val = _evenly(prepared.rows(split="val", task=task), gates.samples)
    if about.kind != "single_label" or len(train) < gates.neighbours or len(val) == 0:
        return None
    reference, queries = (torch.from_numpy(embed(encoder, Source(prepared, source.contract, source.code, rows), device))
                          for rows in (train, val))
    one_hot = nn.functional.one_hot(torch.from_numpy(labels[train, 0]).long(), len(about.outputs)).float()
    guess = nearest_labels(reference, one_hot, queries, gates.neighbours).argmax(1).numpy()
    truth = labels[val, 0].astype(int)
    return float(np.mean([np.mean(guess[truth == c] == c) for c in np.unique(truth)]))


def embed(encoder: AnyEncoder, source: Source, device: torch.device, batch_size: int = 128) -> np.ndarray:
    """Mean token of each row: n E float32."""

    def compute(batch: Batch) -> torch.Tensor:
        features: Features = encoder(encoder.tokenizer.patchify(batch.x, batch.known))
        return mean_of_valid(features.tokens, features.valid)

    was_training = encoder.training
    encoder.eval()
    out = in_order(source, compute, batch_size, device)
    encoder.train(was_training)
    return out


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def record_of(one: Pretraining, start: Start, teacher: Start | None, metrics: dict[str, Any]) -> dict[str, Any]:
    """What checkpoint.json says of the encoder, and where it comes from."""
    settings, encoder, prepared = one.settings, one.objective.encoder, one.source.prepared
    learnt_from = {group for each in (start, teacher) if each for group in each.record.get("pool_groups", [])}
    reader = prepared.folder / "reader.json"
    return {"kind": "pretrained", "domain": settings.domain, "encoder": plain(encoder.settings),
            "num_channels": encoder.num_channels, "channels": list(getattr(encoder.tokenizer, "channels", ())),
            "objective": plain(settings.objective),
            "reader": json.loads(reader.read_text()) if reader.is_file() else None,
            "provenance": {"start": settings.start, "start_weights": start.record.get("weights_sha256"),
                           **start.provenance(), "teacher": settings.teacher,
                           "teacher_sha256": teacher.record.get("weights_sha256", "") if teacher else "",
                           "data": settings.data, "data_digest": prepared.digest,
                           "seed": settings.seed, "steps": metrics["steps"], "samples": metrics["samples"],
                           "code": one.work.code,
                           "resumed_despite_code_change": one.work.despite_code_change},
            # What start and teacher have seen counts too: none of it may be tested on
            "pool_groups": sorted(learnt_from | set(group_hashes(prepared, one.source.rows)))}


def _pictures(one: Pretraining) -> None:
    """Loss curve, and reconstructions of validation samples where there are some (they were never trained on)."""
    source, reports, device = one.source, one.reports, next(one.objective.parameters()).device
    val = source.prepared.rows(split="val")
    shown = _evenly(val if len(val) else source.rows, one.settings.num_pictures)
    rows = reconstruction_rows(one.objective, source, shown, one.settings.seed, device)
    drawn = {"reconstruction.png": report.reconstructions(reports / "reconstruction.png", rows),
             "loss.png": report.loss_curve(reports / "loss.png", one.history)}
    report.write_csv(reports / "loss.csv", [point for point in one.history if "loss" in point])
    for picture in (name for name, there in drawn.items() if there):
        one.tracked.picture(reports / picture)
