"""Stage `adapt`: an encoder that is pretrained already goes on learning from unlabelled rows of the data at hand.

It is `pretrain`'s training with another beginning: decoder and readout go on with the start's own weights too, and
self-distillation trains twice. Validation and test groups stay out, and what the start has seen is remembered.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from domains import contract as contracts
from domains.publish import folder_in_the_making
from domains.store import open_prepared
from models.encoder.build import AnyEncoder
from models.objectives.distillation import DistillationSettings
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings
from models.objectives.objective import Objective, ObjectiveSettings, build_objective
from models.objectives.self_distillation import SelfDistillation, feature_distance
from pipelines.pretrain import (
    Beside,
    Gates,
    Pretraining,
    PretrainRun,
    learn,
    parts_of,
    publish_report,
    record_of,
)
from pipelines.settings import build, plain
from pipelines.tracking import tracking
from pipelines.tracking.tracked_run import Run
from pipelines.training.batches import Batch, Source, domain_code
from pipelines.training.pool import SPLITS, Split, pool_rows
from pipelines.training.processes import follows
from pipelines.training.resume import work_folder
from pipelines.training.training import Machine, Optimisation
from pipelines.weights import checkpoints
from pipelines.weights.starts import Start, resolve

TEACHER, REPORT = "teacher", "teacher-report"
"""Of a self-distillation: the folder beside the student's weights and in the report; what the latter is called while
the student learns."""


@dataclass(frozen=True)
class Further:
    """Go on as the start was pretrained, on other data."""

    kind: Literal["further"] = "further"


@dataclass(frozen=True)
class AdaptRun:
    """One paragraph of `adapt` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader and augmentation to use."""
    data: str
    """Name of the ingest run to learn from; its labels are not read."""
    start: str
    """Checkpoint folder to go on from: ours or imported, never `scratch`."""
    method: Further | SelfDistillation = field(default_factory=Further)
    """further: plain further pretraining. self_distillation: twice, the second time from the start again, beside what
    the first made."""
    sources: tuple[str, ...] = ()
    """Learn from these sources only; empty: all."""
    splits: tuple[Split, ...] = SPLITS
    """Learn from these splits only. [unlabelled]: from no group with labels, so that a verdict may test all of these in
    folds."""
    objective: ObjectiveSettings | None = field(default=None, metadata={"without_kind": MaskedAutoencoderSettings})
    """What is hidden and how it is predicted, as in `pretrain`; null: as the start was pretrained."""
    keep_parts: bool = True
    """Let decoder and readout go on with the start's own weights where it holds some of the same shape for the same
    channels. false: they begin with random ones."""
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
    """Of new weights, order, masks and augmentation."""

    def __post_init__(self) -> None:
        if checkpoints.is_scratch(self.start):
            raise ValueError("start: found scratch, expected a checkpoint folder such as artifacts/pretrain/NAME or "
                             "artifacts/import/NAME: `adapt` goes on with weights. `lacuna pretrain` begins without.")
        if isinstance(self.objective, DistillationSettings):
            raise ValueError("objective: found distillation, which learns from another run's encoder, expected one "
                             "that needs no teacher. Take `pretrain` with a `start` and a `teacher`, or here method "
                             "self_distillation, which makes its own.")


def run(name: str, settings: AdaptRun, root: Path, resume_despite_code_change: bool = False) -> dict[str, Any]:
    """Train on, and publish artifacts/adapt/<name> and reports/adapt/<name>. Returns the metrics.

    Raises:
        SettingsError, ContractMismatch, CheckpointError, TrainingFailed: each a sentence for the user.
    """
    prepared = open_prepared(root / "data/prepared" / settings.data, settings.machine.check_reads)
    start = resolve(settings.start, None, prepared.contract, root)
    masked = as_pretraining(settings, start)
    code = domain_code(settings.domain, prepared.contract)
    augment = (None if settings.augment is None
               else build(code.augment.Augment, settings.augment, f"adapt.{name}.augment"))
    for sentence in start.said:
        print(f"start: {sentence}")
    source = Source(prepared, start.contract, code, pool_rows(prepared, settings.sources, settings.splits))
    work = work_folder(root, "adapt", name, [settings, prepared.digest, start.record["weights_sha256"]],
                       resume_despite_code_change)
    kept_in = root if settings.keep_parts else None
    inputs = {f"data/prepared/{settings.data}": prepared.digest, settings.start: start.record["weights_sha256"]}
    with tracking.open_run(stage="adapt", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain, fingerprint=work.fingerprint, resume_folder=work.folder) as tracked:
        tracked.tag("resume.despite_code_change", str(work.despite_code_change).lower())
        objective, said = begin(masked, start, kept_in)
        for sentence in said:
            print(f"start: {sentence}")
        one = Pretraining("adapt", name, masked, objective, source, augment, work, root / "reports/adapt" / name,
                          tracked)
        if isinstance(settings.method, SelfDistillation):
            teacher = make_teacher(one, settings.method, start)
            student, _ = begin(masked, start, kept_in)
            one = dataclasses.replace(one, objective=student, history=[],
                                      beside=near(teacher, student, settings.method))
        return _train_and_publish(one, settings, start, root)


def as_pretraining(settings: AdaptRun, start: Start) -> PretrainRun:
    """The same training as a run of `pretrain`.

    Raises:
        CheckpointError: no objective is given, and the start does not say which it was pretrained with.
        ValueError: the objective means nothing on the start's encoder.
    """
    objective = settings.objective
    if objective is None:
        told = start.record.get("objective")
        if told is None or told.get("kind") == "distillation":
            raise checkpoints.CheckpointError(
                f"{settings.start} does not say with which objective to go on: found "
                f"{'none' if told is None else 'distillation, whose teacher is not kept'}, expected `objective` in "
                "this run. Give one, such as {kind: masked_autoencoder}; docs/methods has a card for each.")
        objective = build(ObjectiveSettings, {"kind": "masked_autoencoder", **told},  # type: ignore[arg-type]
                          f"{settings.start}/{checkpoints.RECORD}: objective")
    shared = {one.name for one in dataclasses.fields(PretrainRun)} & {one.name for one in dataclasses.fields(settings)}
    return PretrainRun(**{**{name: getattr(settings, name) for name in shared}, "objective": objective})


def begin(settings: PretrainRun, start: Start, kept_in: Path | None) -> tuple[Objective, list[str]]:
    """The objective with the start's weights in it, the same whenever it is called, and sentences about its parts.

    Args:
        kept_in: the root below which the start lies, to take its decoder over; None: leave what is not encoder random.
    """
    torch.manual_seed(settings.seed)
    objective = build_objective(settings.objective, start.build())
    said = []
    for part, module in parts_of(objective).items():
        if part != "encoder" and module.state_dict() and kept_in is not None:
            reason = _take_over(part, module, settings, start, kept_in / settings.start)
            said.append(f"{part} begins with random weights: {reason}" if reason else f"{part} goes on as it was")
    return objective, said


def _take_over(part: str, module: nn.Module, settings: PretrainRun, start: Start, folder: Path) -> str:
    """Fill a part with the weights that the start holds for it. Returns why not, if so."""
    told, asked = start.record.get("objective", {}).get("kind"), settings.objective.kind
    if told not in (None, asked):
        return f"the start was pretrained with {told}, and this is {asked}"
    if contracts.load(folder / checkpoints.CONTRACT).names != start.contract.names:
        return "the start's is for other channels"
    held: Mapping[str, torch.Tensor] = checkpoints.part_weights(folder, part)
    own = module.state_dict()
    if {name: value.shape for name, value in held.items()} != {name: value.shape for name, value in own.items()}:
        return "the start holds none of this shape" if held else "the start holds none"
    module.load_state_dict(dict(held))
    return ""


def make_teacher(one: Pretraining, method: SelfDistillation, start: Start) -> AnyEncoder:
    """The plainly further-pretrained encoder, frozen, in eval mode. It and its report are kept in the work folder, so
    that a run that is killed while the student learns does not make them again."""
    folder = one.work.folder / TEACHER
    steps = method.teacher_steps or one.settings.optimisation.steps
    settings = dataclasses.replace(
        one.settings, optimisation=dataclasses.replace(one.settings.optimisation, steps=steps))
    first = dataclasses.replace(one, settings=settings, phase=TEACHER, reports=one.work.folder / REPORT)
    if not (folder / checkpoints.RECORD).is_file():
        metrics = learn(first)
        if not follows():
            # What tracking shows at the end is the student's; of the teacher it has had the curves
            publish_report(dataclasses.replace(first, tracked=Run({"key": ""}, first.reports, None, silent=True)),
                           metrics)
            checkpoints.save(folder, parts_of(first.objective), first.source.contract,
                             record_of(first, start, None, metrics))
            (one.work.folder / f"{TEACHER}.pt").unlink(missing_ok=True)  # its resume state is as large as three models
        teacher: AnyEncoder = first.objective.encoder
    else:
        teacher = start.build()
        checkpoints.fill(teacher, checkpoints.part_weights(folder, "encoder"), f"encoder of {folder}")
    return teacher.requires_grad_(False).eval()


def near(teacher: AnyEncoder, student: Objective, method: SelfDistillation) -> Beside:
    """The loss that keeps a student near its teacher. The teacher is never trained, so no state has to hold it."""

    def losses(batch: Batch) -> dict[str, torch.Tensor]:
        apart = feature_distance(student.encoder, teacher.to(batch.x.device), batch.x, batch.known, method.compare)
        return {"self_distillation": method.weight * apart}

    return losses


def _train_and_publish(one: Pretraining, settings: AdaptRun, start: Start, root: Path) -> dict[str, Any]:
    metrics = learn(one)
    if follows():
        return {}
    target, teacher = root / "artifacts/adapt" / one.name, one.work.folder / TEACHER
    record = record_of(one, start, None, metrics)
    record["provenance"] |= {"method": plain(settings.method)}
    if teacher.is_dir():
        about = checkpoints.read_record(teacher)
        metrics = {**metrics, "teacher_steps": about["provenance"]["steps"]}
        record["provenance"] |= {"teacher": f"artifacts/adapt/{one.name}/{TEACHER}",
                                 "teacher_sha256": about["weights_sha256"],
                                 "steps": metrics["steps"] + metrics["teacher_steps"]}
        shutil.copytree(one.work.folder / REPORT, one.reports / TEACHER, dirs_exist_ok=True)
    with folder_in_the_making(target) as making:
        if teacher.is_dir():
            shutil.copytree(teacher, making / TEACHER)
        checkpoints.write_parts(making, parts_of(one.objective), one.source.contract, record)
    publish_report(one, metrics)
    one.work.finish()
    return metrics
