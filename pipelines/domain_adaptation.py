"""Stage `domain_adaptation`: labels of one source, files of another. The arm `source_only` learns from the labels
alone; the arm `adapted` learns from them and from target files without labels, and differs in nothing else.

Legend: B batch, E width, O outputs.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from domains.publish import folder_in_the_making, write_text
from domains.store import open_prepared
from models.encoder.chance import Chance
from models.heads.predict_sample import SampleHead
from models.heads.segment_grid import SegmentHead
from models.heads.task_loss import Imbalance
from models.heads.tuned import Tuned
from models.objectives.domain_adversarial import DomainAdversarial, DomainAdversary
from models.objectives.masked_representation import MaskedRepresentation, MaskedRepresentations
from models.objectives.self_training import PseudoLabels, SelfTraining
from pipelines import report
from pipelines.settings import build, plain
from pipelines.tracking import lineage, tracking
from pipelines.tracking.tracked_run import Run
from pipelines.training.batches import Batch, domain_code, in_order
from pipelines.training.estimate import announce, with_memory_advice
from pipelines.training.labelled_model import build_model, temperature_of, validation_loss
from pipelines.training.processes import follows
from pipelines.training.resume import Work, work_folder
from pipelines.training.training import Job, Machine, Optimisation, device_of, fit
from pipelines.training.two_domains import TwoDomains, groups_seen_by, two_domains, views_of_target
from pipelines.weights import checkpoints
from pipelines.weights.starts import Start, resolve
from pipelines.weights.tuned_checkpoints import save_tuned

Arm = Literal["source_only", "adapted"]
Method = DomainAdversarial | SelfTraining | MaskedRepresentation
MUCH = 1.25
"""Times the loss of the source alone, on the source, from which on the user is told."""
SHOWN = 300
"""Samples of each domain in the picture of features."""


@dataclass(frozen=True)
class DomainAdaptationRun:
    """One paragraph of `domain_adaptation` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader and augmentation to use."""
    data: str
    """Name of the ingest run with the target's files; their labels are not read."""
    labelled: str
    """Name of the ingest run with the source's labels; the same where both lie in one, told apart by `source`."""
    task: str
    """Which task of `labelled`."""
    start: str
    """Checkpoint folder to begin from: ours or imported, never `scratch`."""
    method: Method
    """domain_adversarial or averaged_teacher for labels of whole samples, masked_representation for masks."""
    labelled_sources: tuple[str, ...] = ()
    """Values of the column `source` whose labels are learnt from; empty: all of `labelled`."""
    target_sources: tuple[str, ...] = ()
    """Values of the column `source` that are the target; empty: all of `data`."""
    arms: tuple[Arm, ...] = ("source_only", "adapted")
    """What is trained and compared."""
    head: SampleHead | SegmentHead = field(default_factory=SampleHead)
    """What turns features into predictions; of masks a head of kind segment."""
    drop_path: float = 0.0
    """Stochastic depth."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained once per seed."""
    optimisation: Optimisation = field(default_factory=lambda: Optimisation(
        steps=500, batch_size=32, learning_rate=5e-4, betas=(0.9, 0.999)))
    """Steps, batch, learning rate. A step takes as many samples again of the target. All steps are done and the last
    weights taken: without labels of the target nothing could say which were better."""
    augment: dict[str, Any] | None = None
    """The domain's augmentation settings, for source and target; null: none."""
    imbalance: Imbalance = field(default_factory=Imbalance)
    """Class weights."""
    label_smoothing: float = 0.0
    """Share of a label spread over all classes (single_label)."""
    machine: Machine = field(default_factory=Machine)
    """Devices and precision."""

    def __post_init__(self) -> None:
        if checkpoints.is_scratch(self.start):
            raise ValueError("start: found scratch, expected a checkpoint folder such as artifacts/pretrain/NAME: what "
                             "is to be adapted must be there. `lacuna finetune` trains from random weights.")
        if not self.seeds or not self.arms:
            raise ValueError("seeds and arms need at least one entry each.")
        masks = isinstance(self.head, SegmentHead)
        if masks != isinstance(self.method, MaskedRepresentation):
            raise ValueError(f"method: found {self.method.kind} with head {self.head.kind}, expected "
                             f"{'masked_representation' if masks else 'another method'}: it takes masks, the others "
                             "labels of whole samples. Change one of the two.")
        shared = sorted(set(self.labelled_sources) & set(self.target_sources))
        if self.labelled == self.data and (not self.labelled_sources or not self.target_sources or shared):
            raise ValueError(f"labelled_sources and target_sources: found {list(self.labelled_sources)} and "
                             f"{list(self.target_sources)} of one data run, expected some of each and none in both. "
                             "Name the values of its column `source`.")
        if self.machine.strategy == "fsdp":
            raise ValueError("machine.strategy: found fsdp, expected auto or ddp. Leave it out.")


class Adapting(nn.Module):
    """What is trained: a model, and what the method needs beside it."""

    def __init__(self, tuned: Tuned, method: Method | None) -> None:
        super().__init__()
        self.tuned = tuned
        self.beside: DomainAdversary | PseudoLabels | MaskedRepresentations | None = None
        match method:
            case DomainAdversarial():
                pooled = tuned.encoder.width * (2 if tuned.head.settings.pool.endswith("_max") else 1)  # type: ignore[union-attr]
                self.beside = DomainAdversary(method, pooled)
            case SelfTraining():
                self.beside = PseudoLabels(method, tuned)
            case MaskedRepresentation():
                self.beside = MaskedRepresentations(method, tuned)

    def after_step(self, share: float) -> None:
        """What follows the model after an update; share: of the steps that is done."""
        if isinstance(self.beside, DomainAdversary):
            self.beside.after_step(share)
        elif self.beside is not None:
            self.beside.teacher.follow(self.tuned, share)

    @property
    def result(self) -> Tuned:
        """The model to keep: the averaged one where there is one."""
        if isinstance(self.beside, PseudoLabels | MaskedRepresentations):
            return self.beside.teacher.model
        return self.tuned


@dataclass(frozen=True)
class Adaptation:
    """What all trainings of a run share."""

    name: str
    settings: DomainAdaptationRun
    start: Start
    data: TwoDomains
    augment: Any
    """The domain's augmentation settings, for all that is trained on."""
    weak: Any
    """Likewise, for what an averaged teacher sees."""
    work: Work
    tracked: Run


@dataclass(frozen=True)
class Trained:
    """One training, finished."""

    arm: str
    seed: int
    val_loss: float
    """On validation rows of the source: it cannot say which arm is better on the target."""
    steps: int
    seconds: float
    weights: int
    shown: dict[str, float]
    """The last point of the method's own numbers."""


def run(name: str, settings: DomainAdaptationRun, root: Path,
        resume_despite_code_change: bool = False) -> dict[str, Any]:
    """Train all arms and publish artifacts/domain_adaptation/<name>/<arm>/seed<k>, which `evaluate` and `predict` read
    like those of `finetune`. Returns the summary. Test rows are not read.

    Raises:
        SettingsError, ContractMismatch, CheckpointError, TrainingFailed, ValueError: each a sentence for the user.
    """
    folders = [root / "data/prepared" / one for one in (settings.labelled, settings.data)]
    labelled = open_prepared(folders[0], settings.machine.check_reads)
    target = labelled if settings.labelled == settings.data else open_prepared(folders[1], settings.machine.check_reads)
    start = resolve(settings.start, None, labelled.contract, root)
    start = dataclasses.replace(start, encoder=dataclasses.replace(start.encoder, drop_path=settings.drop_path))
    data, said = two_domains(labelled, target, start, settings.domain, settings.task,
                             names=(settings.labelled, settings.data),
                             sources=(settings.labelled_sources, settings.target_sources))
    masks = data.task.kind == "segmentation"
    if masks != isinstance(settings.head, SegmentHead):
        raise ValueError(f"head: found {settings.head.kind} for {settings.task}, a {data.task.kind} task, expected "
                         f"{'segment, with method masked_representation' if masks else 'sample'}.")
    for sentence in (*(f"start: {one}" for one in start.said), *(f"target: {one}" for one in said)):
        print(sentence)
    augment, weak = views(name, settings)
    work = work_folder(root, "domain_adaptation", name,
                       [settings, labelled.digest, target.digest, start.record["weights_sha256"]],
                       resume_despite_code_change)
    inputs = {f"data/prepared/{settings.labelled}": labelled.digest, f"data/prepared/{settings.data}": target.digest,
              settings.start: start.record["weights_sha256"]}
    with tracking.open_run(stage="domain_adaptation", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain, fingerprint=work.fingerprint, resume_folder=work.folder) as tracked:
        tracked.tag("resume.despite_code_change", str(work.despite_code_change).lower())
        made = Adaptation(name, settings, start, data, augment, weak, work, tracked)
        trained = [train_one(made, arm, seed) for arm in settings.arms for seed in settings.seeds]
        if follows():
            return {}
        summary = _publish(made, trained, root)
        if warning := outweighed({arm: one["val_loss"] for arm, one in summary["chosen"].items()}):
            print(f"domain_adaptation {name}: {warning}")
        work.finish()
        return summary


def outweighed(losses: dict[str, float]) -> str:
    """A sentence where the method has kept the model from learning the source's labels; empty otherwise.

    Args:
        losses: arm -> mean loss on validation rows of the source.
    """
    if set(losses) != {"source_only", "adapted"} or losses["adapted"] <= MUCH * losses["source_only"]:
        return ""
    return (f"on validation rows of the source the loss is {losses['adapted']:.3f} adapted, against "
            f"{losses['source_only']:.3f} of the source alone: the method outweighs the labels. Lower its `weight`, or "
            "take more steps.")


def views(name: str, settings: DomainAdaptationRun) -> tuple[Any, Any]:
    """The domain's augmentation settings for all that is trained on, and for what an averaged teacher sees."""
    asked = (settings.augment, settings.method.weak_augment if isinstance(settings.method, SelfTraining) else None)
    where = (f"domain_adaptation.{name}.augment", f"domain_adaptation.{name}.method.weak_augment")
    made = [None if raw is None else build(domain_code(settings.domain).augment.Augment, raw, place)
            for raw, place in zip(asked, where, strict=True)]
    return made[0], made[1]


def train_one(made: Adaptation, arm: str, seed: int) -> Trained:
    """One training, or what an interrupted run has left of it."""
    settings, data = made.settings, made.data
    folder = made.work.folder / f"{arm}-seed{seed}"
    if (folder / "trained.json").is_file():
        return Trained(**json.loads((folder / "trained.json").read_text()))
    tuned = build_model(made.start, settings.head, data.task, seed)
    tuned.loss.label_smoothing = settings.label_smoothing
    assert data.train.labels is not None
    tuned.loss.fit(torch.from_numpy(data.train.labels[data.train.rows]), settings.imbalance)
    model = Adapting(tuned, settings.method if arm == "adapted" else None)
    began = time.monotonic()
    history = _train(made, model, arm, seed)
    seconds = time.monotonic() - began
    device = device_of(settings.machine)
    result = model.to(device).eval().result
    loss = validation_loss(result, data.val, device)
    fitted = temperature_of(result, data.val, data.task, device)
    done = Trained(arm, seed, loss, settings.optimisation.steps, seconds,
                   sum(weight.numel() for weight in result.parameters()), model.beside.shown() if model.beside else {})
    if follows():
        return done
    reader = data.target.prepared.folder / "reader.json"
    with folder_in_the_making(folder) as making:
        save_tuned(making / "model", result, data.target.contract, settings.head, data.task, {
            "domain": settings.domain, "temperature": fitted.value, "temperature_fit": plain(fitted),
            "reader": json.loads(reader.read_text()) if reader.is_file() else None,
            "pool_groups": groups_seen_by(made.start, data), "provenance": provenance(made, arm, seed, done)})
        report.loss_curve(making / "loss.png", history)
        draw_features(making / "features.png", result, data, device, f"{arm}: pooled features")
        write_text(making / "trained.json", json.dumps(dataclasses.asdict(done)))
    made.tracked.metrics({f"{arm}.seed{seed}.val_loss": loss}, step=done.steps)
    return done


def provenance(made: Adaptation, arm: str, seed: int, done: Trained) -> dict[str, Any]:
    """Where a model comes from. `data` is the target, which it is meant for and may be tested on."""
    settings, start, data = made.settings, made.start, made.data
    return {"arm": arm, "seed": seed, "learning_rate": settings.optimisation.learning_rate, "start": settings.start,
            "start_weights": start.record["weights_sha256"], **start.provenance(), "data": settings.data,
            "data_digest": data.target.prepared.digest, "labelled": settings.labelled,
            "labelled_digest": data.train.prepared.digest, "labelled_sources": list(settings.labelled_sources),
            "target_sources": list(settings.target_sources), "task": settings.task, "protocol": "full",
            "method": plain(settings.method) if arm == "adapted" else None, "steps": done.steps,
            "val_loss": done.val_loss, "code": made.work.code, "domain_adaptation": made.name}


def draw_features(path: Path, model: Tuned, data: TwoDomains, device: torch.device, title: str) -> None:
    """Where samples of source and target lie in the two directions in which their pooled features spread most: two
    clouds apart are what the method is to bring together."""
    few = {name: dataclasses.replace(one, rows=one.rows[:SHOWN])
           for name, one in {"source": data.val, "target": data.target}.items()}
    clouds = {name: in_order(one, lambda batch: model.features(batch.x, batch.known), 128, device)
              for name, one in few.items()}                                                          # n E each
    every = np.concatenate(list(clouds.values()))
    axes = np.linalg.svd(every - every.mean(0), full_matrices=False)[2][:2]                          # 2 E
    report.scatter(path, {name: (cloud @ axes[0], cloud @ axes[1]) for name, cloud in clouds.items()},
                   ("first component", "second component"), title, equal=False)


def _train(made: Adaptation, model: Adapting, arm: str, seed: int) -> list[dict[str, float]]:
    """All steps; returns the points of the curves."""
    settings, data, work = made.settings, made.data, made.work
    history: list[dict[str, float]] = []

    def losses(batch: Batch, chance: Chance) -> dict[str, Tensor]:
        if batch.target is not None:
            return _of_masks(made, model, batch, chance)
        pooled, said = both(model.tuned, batch.x, batch.known)
        own = {"task": model.tuned.loss(said, batch.labels)}
        if model.beside is None:
            return own
        strong, weak = views_of_target(data, made.augment, made.weak, chance, batch.x.device)
        theirs, heard = both(model.tuned, *strong)
        if isinstance(model.beside, DomainAdversary):
            return {**own, "domain": model.beside(pooled, theirs)}
        return {**own, "target": model.beside(heard, *weak)}

    def log(step: int, numbers: dict[str, float]) -> None:
        shown = {**numbers, **(model.beside.shown() if model.beside else {})}
        history.append({"step": step, **numbers})
        made.tracked.metrics({f"{arm}.seed{seed}.{key}": value for key, value in shown.items()}, step=step)

    job = Job(model=model, losses=losses, source=data.train, augment=made.augment, optimisation=settings.optimisation,
              machine=settings.machine, seed=seed, num_blocks=len(model.tuned.encoder.blocks), log=log,
              resume=work.folder / f"{arm}-seed{seed}.pt", after_step=model.after_step if model.beside else None,
              watch_state=lambda: {"history": history}, restore_watch=lambda state: history.extend(state["history"]),
              title=f"domain_adaptation {made.name} {arm} seed {seed}")
    if seed == settings.seeds[0]:
        announce(f"domain_adaptation {made.name} {arm}", job, num_samples=len(data.train.rows),
                 repeats=len(settings.seeds))
    try:
        with with_memory_advice(settings.optimisation.batch_size, settings.machine.accumulate):
            fit(job)
    finally:
        if job.skips and not follows():
            report.write_csv(work.folder / f"skipped-{arm}-seed{seed}.csv", [
                {"arm": arm, "seed": seed, **one.line()} for one in job.skips])
    return history


def _of_masks(made: Adaptation, model: Adapting, batch: Batch, chance: Chance) -> dict[str, Tensor]:
    """The losses of a task of masks."""
    own = {"task": model.tuned.mistakes(batch.x, batch.known, batch.labels, batch.target)}
    if model.beside is None:
        return own
    assert isinstance(model.beside, MaskedRepresentations)
    seen, _ = views_of_target(made.data, made.augment, made.weak, chance, batch.x.device)
    return {**own, "target": model.beside(model.tuned, *seen, chance)}


def both(model: Tuned, x: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pooled features B E and predictions B O, in one pass."""
    patches = model.encoder.tokenizer.patchify(x, known)
    features = model.encoder(patches)
    said: Tensor = model.head(features, patches, x)
    return model.head.pool(features), said


def _publish(made: Adaptation, trained: list[Trained], root: Path) -> dict[str, Any]:
    """Copy the models of all arms and seeds; write summary and report."""
    name, settings, start, data, work = made.name, made.settings, made.start, made.data, made.work
    chosen: dict[str, Any] = {}
    rate = settings.optimisation.learning_rate
    reports = root / "reports/domain_adaptation" / name
    reports.mkdir(parents=True, exist_ok=True)
    with folder_in_the_making(root / "artifacts/domain_adaptation" / name) as making:
        for arm in settings.arms:
            own = [one for one in trained if one.arm == arm]
            loss = float(np.mean([one.val_loss for one in own]))
            chosen[arm] = {"learning_rate": rate, "val_loss": loss, "val_loss_by_rate": {rate: loss},
                           "val_loss_by_seed": {one.seed: one.val_loss for one in own},
                           "steps": sum(one.steps for one in own), "trained_weights": own[0].weights,
                           "weights": own[0].weights}
            for one in own:
                shutil.copytree(work.folder / f"{arm}-seed{one.seed}/model", making / arm / f"seed{one.seed}")
        summary = {"domain": settings.domain, "data": settings.data, "task": settings.task, "protocol": "full",
                   "start": settings.start, "arms": list(settings.arms), "seeds": list(settings.seeds), "grid": [rate],
                   "labelled": settings.labelled, "method": plain(settings.method),
                   # Validation rows are the source's: they cannot choose between the arms
                   "preferred": "adapted" if "adapted" in settings.arms else settings.arms[0],
                   "train_rows": len(data.train.rows), "val_rows": len(data.val.rows),
                   "target_rows": len(data.target.rows), "chosen": chosen,
                   "cost": {"pretrain_steps": start.record.get("provenance", {}).get("steps", 0),
                            "finetune_steps": {arm: chosen[arm]["steps"] for arm in settings.arms}},
                   **start.provenance(), "resumed_despite_code_change": work.despite_code_change}
        write_text(making / "summary.json", json.dumps(summary, indent=2) + "\n")
    cost = {**summary["cost"], "pretrain_seconds": lineage.seconds(settings.start, root),
            "finetune_seconds": {arm: sum(one.seconds for one in trained if one.arm == arm) for arm in settings.arms}}
    shown = {arm: {"val_loss": chosen[arm]["val_loss"], **next(one for one in trained if one.arm == arm).shown}
             for arm in settings.arms}
    write_text(reports / "metrics.json", json.dumps({**shown, "cost": cost, "resumed": work.resumed}, indent=2) + "\n")
    for arm in settings.arms:
        for picture in sorted((work.folder / f"{arm}-seed{settings.seeds[0]}").glob("*.png")):
            shutil.copy(picture, reports / f"{picture.stem}-{arm}.png")
    for skips in sorted(work.folder.glob("skipped-*.csv")):
        shutil.copy(skips, reports / skips.name)
    return {**summary, "cost": cost}
