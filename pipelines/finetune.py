"""Stage `finetune`: the same head, steps, grid and seeds from each start, so that arms differ in weights alone.

Legend: n rows, O outputs, L numbers per label.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from domains.contract import Contract
from domains.publish import folder_in_the_making, write_text
from domains.sample import Task
from domains.store import open_prepared
from models.adapters.adapter import AdapterSettings, add_adapter, trunk_hash
from models.encoder.build import AnyEncoderSettings
from models.encoder.chance import Chance, key_of
from models.encoder.flexible_patches import PatchSizes, check_sizes, drawn_size, patches_of
from models.encoder.initialisation import Initialisation, initialise
from models.encoder.transformer import EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import Imbalance, TaskLoss
from models.heads.tuned import HeadSettings, NearestHead, Tuned, build_head
from pipelines import checkpoints, lineage, report, tracking
from pipelines.batches import Batch, Source, domain_code
from pipelines.estimate import announce, with_memory_advice
from pipelines.label_budget import labelled_rows
from pipelines.probes import fit_linear, fit_neighbours
from pipelines.processes import follows
from pipelines.resume import Work, work_folder
from pipelines.settings import build, plain
from pipelines.starts import Start, resolve
from pipelines.temperature import fit_temperature
from pipelines.training import Job, Machine, Optimisation, device_of, fit
from pipelines.tuned_checkpoints import Trunk, predict, save_tuned

Arm = Literal["scratch", "pretrained"]


@dataclass(frozen=True)
class FinetuneRun:
    """One paragraph of `finetune` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader and augmentation to use."""
    data: str
    """Name of the ingest run with the labels."""
    task: str
    """Which of its tasks."""
    start: str = checkpoints.SCRATCH
    """Checkpoint folder of the `pretrained` arm, or `scratch` for no such arm."""
    arms: tuple[Arm, ...] = ("scratch", "pretrained")
    """Ways of initialising that are compared; `pretrained` needs a start."""
    protocol: Literal["full", "linear", "knn"] = "full"
    """full: all weights are trained. linear: one layer on frozen features.
    knn: vote of the nearest training samples."""
    encoder: AnyEncoderSettings | None = field(default=None, metadata={"without_kind": EncoderSettings})
    """Needed without a start; with one, leave it out."""
    initialisation: Initialisation = "xavier"
    """How the weights of the scratch arm are drawn. mimetic: attention that looks trained (Trockman & Kolter 2023)."""
    drop_path: float = 0.0
    """Stochastic depth while fine-tuning."""
    flexible_patches: PatchSizes = ()
    """Patch sizes like [[8, 8], [16, 16]], of which every step draws one (FlexiViT), with protocol full; empty: always
    the encoder's own, which validation, test and prediction use in any case."""
    adapters: tuple[AdapterSettings, ...] = ()
    """Small parts that are added to the pretrained encoder, in this order; then they and the head alone are trained.
    The scratch arm is trained whole all the same, since adapters on random weights show nothing. Empty: all is
    trained."""
    head: HeadSettings = field(default_factory=SampleHead)
    """What turns features into predictions; protocol knn takes kind: nearest."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained once per seed (head, order, augmentation; weights too when from scratch)."""
    grid: tuple[float, ...] = (5e-4,)
    """Peak learning rates tried in every arm; the one with the lowest mean validation loss over seeds is taken."""
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=500, batch_size=32, betas=(0.9, 0.999)))
    """Steps and batch. `learning_rate` is replaced by the grid's."""
    patience: int = 4
    """Validations without a better loss before a training stops; 0: never stop early."""
    validations: int = 10
    """How often the validation loss is looked at."""
    augment: dict[str, Any] | None = None
    """The domain's augmentation settings; null: none."""
    imbalance: Imbalance = field(default_factory=Imbalance)
    """Class weights."""
    label_smoothing: float = 0.0
    """Share of a label spread over all classes (single_label)."""
    label_share: float = 1.0
    """Use this share of the labelled training groups (the budget), the same ones in every arm and seed."""
    label_seed: int = 0
    """Which groups those are; a smaller share of the same seed is part of a larger one."""
    machine: Machine = field(default_factory=Machine)
    """Devices and precision."""

    def __post_init__(self) -> None:
        if not self.seeds or not self.grid or not self.arms:
            raise ValueError("seeds, grid and arms need at least one entry each.")
        if not 0 < self.label_share <= 1:
            raise ValueError(f"label_share: found {self.label_share}, expected a share in (0, 1].")
        if (self.protocol == "knn") != isinstance(self.head, NearestHead):
            raise ValueError(f"protocol {self.protocol} does not go with head {self.head.kind}: "
                             "knn takes kind: nearest, the others kind: sample.")
        if checkpoints.is_scratch(self.start) and self.encoder is None:
            raise ValueError("`start` is scratch, so `encoder` must be given.")
        if self.flexible_patches and (self.protocol != "full" or not isinstance(self.head, SampleHead)):
            raise ValueError(f"flexible_patches: found protocol {self.protocol} with head {self.head.kind}, expected "
                             "full with sample: the kernel must be trained, and a head that answers per patch has one "
                             "size. Leave flexible_patches out.")
        if self.adapters and self.protocol != "full":
            raise ValueError(f"adapters: found {len(self.adapters)} with protocol {self.protocol}, expected protocol "
                             "full: the others train nothing inside the encoder. Leave one of the two out.")
        if self.adapters and self.optimisation.layer_decay != 1:
            raise ValueError(f"adapters: found layer_decay {self.optimisation.layer_decay}, expected 1: what is new in "
                             "early blocks has as far to go as what is new in late ones. Leave layer_decay out.")
        if self.adapters and self.flexible_patches:
            raise ValueError("adapters: found flexible_patches beside them, expected one of the two: the patch kernel "
                             "is frozen under adapters. Leave flexible_patches out.")
        if self.machine.strategy == "fsdp":
            raise ValueError("machine.strategy: found fsdp, expected auto or ddp: fine-tuning keeps its best weights "
                             "whole on each device. Leave it out.")
        if self.initialisation != "xavier" and "scratch" not in self.arms:
            raise ValueError(f"initialisation {self.initialisation} is for the scratch arm; found arms "
                             f"{list(self.arms)}. Leave `initialisation` out, or add the arm.")


@dataclass(frozen=True)
class Trial:
    """One training, finished."""

    arm: str
    seed: int
    learning_rate: float
    val_loss: float
    steps: int
    seconds: float
    trained: int
    """Weights that were trained, of `weights` in all."""
    weights: int
    folder: Path

    def numbers(self) -> dict[str, Any]:
        """All but the folder, which is renamed when other code takes the work up."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "folder"}


def run(name: str, settings: FinetuneRun, root: Path, resume_despite_code_change: bool = False) -> dict[str, Any]:
    """Train all arms and publish artifacts/finetune/<name>/<arm>/seed<k>. Returns the summary. Test rows are not read.

    Raises:
        SettingsError, ContractMismatch, CheckpointError, TrainingFailed, ValueError: each a sentence for the user.
    """
    prepared = open_prepared(root / "data/prepared" / settings.data, settings.machine.check_reads)
    labels = prepared.labels(settings.task)
    task = prepared.contract.tasks[settings.task]
    train, val = labelled_rows(prepared, settings.data, settings.task, settings.label_share, settings.label_seed)
    start = resolve_start(settings, prepared.contract, root)
    for sentence in start.said:
        print(f"start: {sentence}")
    if settings.flexible_patches:
        check_sizes(settings.flexible_patches, start.encoder, start.contract.size)
    augment = build_augment(name, settings)
    arms = [arm for arm in settings.arms if arm == "scratch" or not checkpoints.is_scratch(settings.start)]
    work = work_folder(root, "finetune", name, [settings, prepared.digest, start.record.get("weights_sha256", "")],
                       resume_despite_code_change)
    code = domain_code(settings.domain)
    inputs = {f"data/prepared/{settings.data}": prepared.digest}
    if start.record:
        inputs[settings.start] = start.record["weights_sha256"]
    with tracking.open_run(stage="finetune", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain, fingerprint=work.fingerprint, resume_folder=work.folder) as tracked:
        tracked.tag("resume.despite_code_change", str(work.despite_code_change).lower())
        trials = []
        for arm in arms:
            begin = start if arm == "pretrained" else start.random()
            sources = tuple(Source(prepared, start.contract, code, rows, labels) for rows in (train, val))
            for seed in settings.seeds:
                for rate in settings.grid if settings.protocol == "full" else settings.grid[:1]:
                    trials.append(trial(name, settings, task, arm, seed, rate, begin, sources, augment, work, tracked))
        if follows():
            return {}
        summary = _publish(name, settings, root, arms, trials, start, work, (len(train), len(val)), tracked)
        work.finish()
        return summary


def resolve_start(settings: FinetuneRun, data: Contract, root: Path) -> Start:
    """The start's encoder and contract. Both arms get them, so that they differ in weights alone."""
    start = resolve(settings.start, settings.encoder, data, root)
    return dataclasses.replace(start, encoder=dataclasses.replace(start.encoder, drop_path=settings.drop_path))


def build_augment(name: str, settings: FinetuneRun) -> Any:
    """The domain's augmentation settings, or None."""
    if settings.augment is None:
        return None
    return build(domain_code(settings.domain).augment.Augment, settings.augment, f"finetune.{name}.augment")


def build_model(start: Start, head: HeadSettings, task: Task, seed: int, num_reference: int = 0,
                initialisation: Initialisation = "xavier") -> Tuned:
    """A model of one arm and seed. The head's weights depend on the seed alone, so arms share them."""
    torch.manual_seed(key_of(seed, 1) & ((1 << 63) - 1))
    encoder = start.build()
    if start.weights is None:
        initialise(encoder, initialisation, key_of(seed, 3) & ((1 << 63) - 1))
    torch.manual_seed(key_of(seed, 2) & ((1 << 63) - 1))
    outputs = len(task.outputs)
    return Tuned(encoder, build_head(head, encoder.width, outputs, num_reference), TaskLoss(task.kind, outputs))


def trial(name: str, settings: FinetuneRun, task: Task, arm: str, seed: int, rate: float, start: Start,
           sources: tuple[Source, ...], augment: Any, work: Work, tracked: Any) -> Trial:
    """One training, or what an interrupted run has left of it."""
    folder = work.folder / f"{arm}-seed{seed}-lr{rate:g}"
    if (folder / "trial.json").is_file():
        return Trial(**{**json.loads((folder / "trial.json").read_text()), "folder": folder})
    train, val = sources
    assert train.labels is not None
    model = build_model(start, settings.head, task, seed, len(train.rows), settings.initialisation)
    adapters = settings.adapters if arm == "pretrained" else ()
    trunk = put_adapters(model, adapters, settings.start, seed)
    trained, weights = trained_of(model, settings.protocol)
    model.loss.label_smoothing = settings.label_smoothing
    model.loss.fit(torch.from_numpy(train.labels[train.rows]), settings.imbalance)
    began = time.monotonic()
    match settings.protocol:
        case "full":
            steps = _train(name, settings, model, arm, seed, rate, train, val, augment, work, tracked)
        case "linear":
            steps = fit_linear(model, train, val, device_of(settings.machine))
        case "knn":
            steps = fit_neighbours(model, train, device_of(settings.machine))
    seconds = time.monotonic() - began
    device = device_of(settings.machine)
    model.to(device).eval()
    loss = validation_loss(model, val, device)
    logits = predict(model, val, device=device)
    assert val.labels is not None
    fitted = fit_temperature(logits, val.labels[val.rows], task.kind)
    if follows():
        return Trial(arm, seed, rate, loss, steps, seconds, trained, weights, folder)
    with folder_in_the_making(folder) as making:
        reader = train.prepared.folder / "reader.json"
        save_tuned(making / "model", model, start.contract, settings.head, task, {
            "domain": settings.domain, "temperature": fitted.value, "temperature_fit": plain(fitted),
            "reader": json.loads(reader.read_text()) if reader.is_file() else None,
            "pool_groups": start.record.get("pool_groups", []),
            "provenance": {"arm": arm, "seed": seed, "learning_rate": rate,
                           "start": settings.start if start.weights else checkpoints.SCRATCH,
                           "start_weights": start.record.get("weights_sha256"), **start.provenance(),
                           "data": settings.data,
                           "data_digest": train.prepared.digest, "task": settings.task, "protocol": settings.protocol,
                           "steps": steps, "val_loss": loss, "code": work.code, "finetune": name}}, adapters, trunk)
        done = Trial(arm, seed, rate, loss, steps, seconds, trained, weights, folder)
        write_text(making / "trial.json", json.dumps(done.numbers()))
    tracked.metrics({f"{arm}.seed{seed}.val_loss": loss, f"{arm}.trained_weights": trained,
                     f"{arm}.trained_share": trained / weights}, step=steps)
    if seed == settings.seeds[0] and rate == settings.grid[0]:
        print(f"finetune {name}: arm {arm} trains {trained} of {weights} weights ({trained / weights:.2%})")
    return done


def put_adapters(model: Tuned, adapters: tuple[AdapterSettings, ...], start: str, seed: int) -> Trunk | None:
    """Add adapters and freeze what they are on; None where there are none. Their first weights depend on the seed."""
    if not adapters:
        return None
    trunk = Trunk(start, trunk_hash(model.encoder))
    torch.manual_seed(key_of(seed, 4) & ((1 << 63) - 1))
    for one in adapters:
        add_adapter(model.encoder, one)
    model.freeze_trunk()
    return trunk


def trained_of(model: Tuned, protocol: str) -> tuple[int, int]:
    """Weights that this protocol trains, and weights in all."""
    total = sum(weight.numel() for weight in model.parameters())
    head = sum(weight.numel() for weight in model.head.parameters())
    full = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"full": full, "linear": head, "knn": 0}[protocol], total


def _train(name: str, settings: FinetuneRun, model: Tuned, arm: str, seed: int, rate: float, train: Source,
           val: Source, augment: Any, work: Work, tracked: Any) -> int:
    """All weights, with early stopping; the best weights by validation loss are put back at the end."""
    plan = dataclasses.replace(settings.optimisation, learning_rate=rate)
    best: dict[str, Any] = {"loss": float("inf"), "step": 0, "bad": 0, "weights": {}}

    def watch(step: int) -> bool:
        loss = validation_loss(model, val, next(model.parameters()).device)
        tracked.metrics({f"{arm}.seed{seed}.lr{rate:g}.val_loss": loss}, step=step)
        if loss < best["loss"]:
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            best.update(loss=loss, step=step, bad=0, weights=weights)
        else:
            best["bad"] += 1
        return bool(settings.patience) and best["bad"] >= settings.patience

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        sizes = settings.flexible_patches
        with patches_of(model.encoder, drawn_size(sizes, chance)) if sizes else nullcontext():
            return {"task": model.loss(model.predict(batch.x, batch.known), batch.labels)}

    job = Job(model=model, losses=losses, source=train, augment=augment, optimisation=plan, machine=settings.machine,
              seed=seed, num_blocks=len(model.encoder.blocks),
              resume=work.folder / f"{arm}-seed{seed}-lr{rate:g}.pt",
              log=lambda step, numbers: tracked.metrics(
                  {f"{arm}.seed{seed}.lr{rate:g}.{key}": value for key, value in numbers.items()}, step=step),
              every=max(plan.steps // settings.validations, 1), watch=watch, watch_state=lambda: dict(best),
              restore_watch=best.update, title=f"{name} {arm} seed {seed} lr {rate:g}")
    if seed == settings.seeds[0] and rate == settings.grid[0] and arm == settings.arms[0]:
        announce(f"finetune {name}", job, num_samples=len(train.rows),
                 repeats=len(settings.arms) * len(settings.seeds) * len(settings.grid))
    try:
        with with_memory_advice(plan.batch_size, settings.machine.accumulate):
            done = fit(job)
    finally:
        if job.skips and not follows():
            report.write_csv(work.folder / f"skipped-{arm}-seed{seed}-lr{rate:g}.csv", [
                {"arm": arm, "seed": seed, "learning_rate": rate, **one.line()} for one in job.skips])
    if best["weights"]:
        model.load_state_dict(best["weights"])
    return done


def validation_loss(model: Tuned, val: Source, device: torch.device) -> float:
    """The training loss over all validation rows, model in eval mode."""
    assert val.labels is not None
    raw = torch.from_numpy(predict(model, val, device=device, in_label_units=False))
    with torch.no_grad():
        loss = model.loss(raw.to(device), torch.from_numpy(val.labels[val.rows]).to(device))
    return float(loss)


def _publish(name: str, settings: FinetuneRun, root: Path, arms: list[Any], trials: list[Trial], start: Start,
             work: Work, num_rows: tuple[int, int], tracked: Any) -> dict[str, Any]:
    """Choose each arm's learning rate by mean validation loss, keep its seeds, write summary and report."""
    chosen: dict[str, Any] = {}
    with folder_in_the_making(root / "artifacts/finetune" / name) as making:
        for arm in arms:
            own = [trial for trial in trials if trial.arm == arm]
            by_rate = {rate: float(np.mean([t.val_loss for t in own if t.learning_rate == rate]))
                       for rate in sorted({t.learning_rate for t in own})}
            rate = min(by_rate, key=lambda r: by_rate[r])
            kept = [trial for trial in own if trial.learning_rate == rate]
            chosen[arm] = {"learning_rate": rate, "val_loss": by_rate[rate], "val_loss_by_rate": by_rate,
                           "val_loss_by_seed": {t.seed: t.val_loss for t in kept}, "steps": sum(t.steps for t in own),
                           "trained_weights": kept[0].trained, "weights": kept[0].weights}
            for trial in kept:
                _copy(trial.folder / "model", making / arm / f"seed{trial.seed}")
        provenance = start.record.get("provenance", {})
        summary = {"domain": settings.domain, "data": settings.data, "task": settings.task,
                   "protocol": settings.protocol, "start": settings.start, "arms": arms,
                   "seeds": list(settings.seeds), "grid": list(settings.grid),
                   "train_rows": num_rows[0], "val_rows": num_rows[1], "chosen": chosen,
                   "cost": {"pretrain_steps": provenance.get("steps", 0),
                            "finetune_steps": {arm: chosen[arm]["steps"] for arm in arms}},
                   **start.provenance(), "resumed_despite_code_change": work.despite_code_change}
        write_text(making / "summary.json", json.dumps(summary, indent=2) + "\n")
    reports = root / "reports/finetune" / name
    reports.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {arm: {key: chosen[arm][key] for key in ("val_loss", "learning_rate")} for arm in arms}
    # Time, and whether a kill came between, stand in reports alone: equal work leaves equal artifacts.
    cost = {**summary["cost"], "pretrain_seconds": lineage.seconds(settings.start, root),
            "finetune_seconds": {arm: sum(t.seconds for t in trials if t.arm == arm) for arm in arms}}
    metrics |= {"cost": cost, "resumed": work.resumed}
    write_text(reports / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    report.write_csv(reports / "trials.csv", [trial.numbers() for trial in trials])
    for skips in sorted(work.folder.glob("skipped-*.csv")):
        shutil.copy(skips, reports / skips.name)
    return {**summary, "cost": cost}


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
