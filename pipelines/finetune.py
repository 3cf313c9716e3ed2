"""Stage `finetune`: the same head, steps, grid and seeds from each start, so that arms differ in weights alone.

Legend: n rows, O outputs, L numbers per label.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.contract import Contract
from domains.publish import folder_in_the_making, write_text
from domains.sample import Task
from domains.store import Prepared, open_prepared
from models.adapters.adapter import AdapterSettings, add_adapter
from models.adapters.prior_prompts import PriorPrompts, check_neighbours
from models.encoder.chance import Chance
from models.encoder.flexible_patches import check_sizes, drawn_size, patches_of
from models.heads.segment_grid import SegmentHead
from models.heads.tuned import Tuned
from pipelines import report
from pipelines.settings import build, plain
from pipelines.tracking import lineage, tracking
from pipelines.tracking.tracked_run import Run
from pipelines.training.batches import Batch, Source, domain_code
from pipelines.training.estimate import announce, with_memory_advice
from pipelines.training.finetune_settings import Arm, FinetuneRun
from pipelines.training.label_budget import labelled_rows
from pipelines.training.labelled_model import build_model, put_adapters, temperature_of, trained_of, validation_loss
from pipelines.training.memory_bank import fill_memories
from pipelines.training.probes import fit_linear, fit_neighbours
from pipelines.training.processes import follows
from pipelines.training.resume import Work, work_folder
from pipelines.training.side_by_side import Log, side_by_side
from pipelines.training.training import Job, device_of, fit
from pipelines.training.true_masks import with_masks
from pipelines.weights import checkpoints
from pipelines.weights.starts import Start, resolve
from pipelines.weights.tuned_checkpoints import save_tuned


@dataclass(frozen=True)
class Planned:
    """One training, ready to begin."""

    name: str
    """Of the run, for messages."""
    settings: FinetuneRun
    task: Task
    arm: str
    seed: int
    learning_rate: float
    start: Start
    """What this arm begins from: scratch has an encoder like the other's, without its weights."""
    train: Source
    val: Source
    """Labelled rows to learn from and to choose by; true masks are joined to them when it begins."""
    augment: Any
    """The domain's augmentation settings, or None."""
    work: Work
    tracked: Run | Log
    alike: int = 0
    """Trainings like this one that the estimate before it is of; 0: those of the settings."""

    @property
    def key(self) -> str:
        """What tells it from the others of its run, in names of files."""
        return f"{self.arm}-seed{self.seed}-lr{self.learning_rate:g}"

    @property
    def is_first(self) -> bool:
        """Of its arm: what it says of itself holds for the others."""
        return self.seed == self.settings.seeds[0] and self.learning_rate == self.settings.grid[0]

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """A point of its curves."""
        curve = f"{self.arm}.seed{self.seed}.lr{self.learning_rate:g}"
        self.tracked.metrics({f"{curve}.{key}": value for key, value in numbers.items()}, step=step)


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
    rows = labelled_rows(prepared, settings.data, settings.task, settings.label_share, settings.label_seed)
    check_head(settings, prepared.contract.tasks[settings.task])
    domain_code(settings.domain, prepared.contract)
    start = resolve_start(settings, prepared.contract, root)
    check_adapters(settings.adapters, start, len(rows[0]))
    for sentence in start.said:
        print(f"start: {sentence}")
    if settings.flexible_patches:
        check_sizes(settings.flexible_patches, start.encoder, start.contract.size)
    work = work_folder(root, "finetune", name, [settings, prepared.digest, start.record.get("weights_sha256", "")],
                       resume_despite_code_change)
    inputs = {f"data/prepared/{settings.data}": prepared.digest}
    if start.record:
        inputs[settings.start] = start.record["weights_sha256"]
    with tracking.open_run(stage="finetune", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain, fingerprint=work.fingerprint, resume_folder=work.folder) as tracked:
        tracked.tag("resume.despite_code_change", str(work.despite_code_change).lower())
        if settings.processes > 1:
            _train_side_by_side(name, settings, root, work, tracked)
        trials = trainings(name, settings, prepared, rows, start, work, tracked)
        if follows():
            return {}
        summary = _publish(name, settings, root, trials, start, work, rows)
        work.finish()
        return summary


def trainings(name: str, settings: FinetuneRun, prepared: Prepared, rows: tuple[np.ndarray, np.ndarray], start: Start,
              work: Work, tracked: Run | Log, share: slice = slice(None)) -> list[Trial]:
    """Every training of the run, or a share of them; those that are in the work folder already are not done again.

    Args:
        rows: to learn from and to choose by (`labelled_rows`).
    """
    labels = prepared.labels(settings.task)
    code = domain_code(settings.domain)
    train, val = (Source(prepared, start.contract, code, part, labels) for part in rows)
    task, augment = prepared.contract.tasks[settings.task], build_augment(name, settings)
    begins = {arm: start if arm == "pretrained" else start.random() for arm in arms_of(settings)}
    asked = [(arm, seed, rate) for arm in begins for seed in settings.seeds
             for rate in rates_of(settings)]
    return [trial(Planned(name, settings, task, arm, seed, rate, begins[arm], train, val, augment, work, tracked))
            for arm, seed, rate in asked[share]]


def arms_of(settings: FinetuneRun) -> tuple[Arm, ...]:
    """The arms that are trained: from random weights there is nothing to compare."""
    return tuple(arm for arm in settings.arms if arm == "scratch" or not checkpoints.is_scratch(settings.start))


def rates_of(settings: FinetuneRun) -> tuple[float, ...]:
    """Learning rates to try: one where nothing is trained by steps."""
    return settings.grid if by_steps(settings) else settings.grid[:1]


def by_steps(settings: FinetuneRun) -> bool:
    """Whether anything is trained by steps, rather than fitted at once."""
    return settings.protocol == "full" or isinstance(settings.head, SegmentHead)


def check_head(settings: FinetuneRun, task: Task) -> None:
    """Raises ValueError for a head that does not answer what the task asks."""
    masks = isinstance(settings.head, SegmentHead)
    if masks != (task.kind == "segmentation"):
        raise ValueError(f"head: found {settings.head.kind} for {settings.task}, a {task.kind} task, expected "
                         f"{'sample or nearest' if masks else 'segment'}. Set head: {{kind: "
                         f"{'sample' if masks else 'segment'}}}.")


def check_adapters(adapters: tuple[AdapterSettings, ...], start: Start, num_rows: int) -> None:
    """Raises ValueError for adapters that the encoder has no room for, or too few rows: at once, and not when the arms
    before theirs have been trained. Nothing is computed: the encoder of this check has no numbers in it."""
    if not adapters:
        return
    encoder = start.random().build().to("meta")
    for one in adapters:
        add_adapter(encoder, one)
        if isinstance(one, PriorPrompts):
            check_neighbours(num_rows, one.neighbours)


def _train_side_by_side(name: str, settings: FinetuneRun, root: Path, work: Work, tracked: Any) -> None:
    """Leave finished trainings in the work folder; what a process could not train is trained here afterwards."""
    request = {"name": name, "settings": plain(settings), "root": str(root.resolve()),
               "work": {**dataclasses.asdict(work), "folder": str(work.folder.resolve())}}
    if failed := side_by_side("pipelines.training.finetune_share", request, settings.processes, tracked.metrics):
        print(f"finetune {name}: {failed} of {settings.processes} processes ended early; what they leave is trained "
              "here.")


def resolve_start(settings: FinetuneRun, data: Contract, root: Path) -> Start:
    """The start's encoder and contract. Both arms get them, so that they differ in weights alone."""
    start = resolve(settings.start, settings.encoder, data, root)
    return dataclasses.replace(start, encoder=dataclasses.replace(start.encoder, drop_path=settings.drop_path))


def build_augment(name: str, settings: FinetuneRun) -> Any:
    """The domain's augmentation settings, or None."""
    if settings.augment is None:
        return None
    return build(domain_code(settings.domain).augment.Augment, settings.augment, f"finetune.{name}.augment")


def trial(one: Planned) -> Trial:
    """One training, or what an interrupted run has left of it."""
    settings, arm, seed, start = one.settings, one.arm, one.seed, one.start
    folder = one.work.folder / one.key
    if (folder / "trial.json").is_file():
        return Trial(**{**json.loads((folder / "trial.json").read_text()), "folder": folder})
    train, val = (with_masks(source, settings.task, settings.around_classes) for source in (one.train, one.val))
    one = dataclasses.replace(one, train=train, val=val)
    assert train.labels is not None
    model = build_model(start, settings.head, one.task, seed, len(train.rows), settings.initialisation)
    adapters = settings.adapters if arm == "pretrained" else ()
    trunk = put_adapters(model, adapters, settings.start, seed)
    fill_memories(model, train, device_of(settings.machine))
    trained, weights = trained_of(model, settings.protocol)
    model.loss.label_smoothing = settings.label_smoothing
    model.loss.fit(torch.from_numpy(train.labels[train.rows]), settings.imbalance)
    began = time.monotonic()
    steps = _learn(one, model)
    seconds = time.monotonic() - began
    device = device_of(settings.machine)
    model.to(device).eval()
    loss = validation_loss(model, val, device)
    fitted = temperature_of(model, val, one.task, device)
    done = Trial(arm, seed, one.learning_rate, loss, steps, seconds, trained, weights, folder)
    if follows():
        return done
    with folder_in_the_making(folder) as making:
        reader = train.prepared.folder / "reader.json"
        save_tuned(making / "model", model, start.contract, settings.head, one.task, {
            "domain": settings.domain, "temperature": fitted.value, "temperature_fit": plain(fitted),
            "reader": json.loads(reader.read_text()) if reader.is_file() else None,
            "pool_groups": start.record.get("pool_groups", []),
            "provenance": {"arm": arm, "seed": seed, "learning_rate": one.learning_rate,
                           "start": settings.start if start.weights else checkpoints.SCRATCH,
                           "start_weights": start.record.get("weights_sha256"), **start.provenance(),
                           "data": settings.data,
                           "data_digest": train.prepared.digest, "task": settings.task, "protocol": settings.protocol,
                           "steps": steps, "val_loss": loss, "code": one.work.code, "finetune": one.name}},
                   adapters, trunk)
        write_text(making / "trial.json", json.dumps(done.numbers()))
    one.tracked.metrics({f"{arm}.seed{seed}.val_loss": loss, f"{arm}.trained_weights": trained,
                         f"{arm}.trained_share": trained / weights}, step=steps)
    if one.is_first and trained < weights:
        print(f"finetune {one.name}: arm {arm} trains {trained} of {weights} weights ({trained / weights:.2%})")
    return done


def _learn(one: Planned, model: Tuned) -> int:
    """Train what the protocol trains. Returns the updates made."""
    device = device_of(one.settings.machine)
    match one.settings.protocol:
        case "full":
            return _train(one, model)
        case "linear" if isinstance(one.settings.head, SegmentHead):
            model.freeze_trunk()
            return _train(one, model)
        case "linear":
            return fit_linear(model, one.train, one.val, device)
        case "knn":
            return fit_neighbours(model, one.train, device)


def _train(one: Planned, model: Tuned) -> int:
    """All weights, with early stopping; the best weights by validation loss are put back at the end."""
    settings = one.settings
    plan = dataclasses.replace(settings.optimisation, learning_rate=one.learning_rate)
    best: dict[str, Any] = {"loss": float("inf"), "step": 0, "bad": 0, "weights": {}}

    def watch(step: int) -> bool:
        loss = validation_loss(model, one.val, next(model.parameters()).device)
        one.log({"val_loss": loss}, step)
        if loss < best["loss"]:
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            best.update(loss=loss, step=step, bad=0, weights=weights)
        else:
            best["bad"] += 1
        return bool(settings.patience) and best["bad"] >= settings.patience

    def losses(batch: Batch, chance: Chance) -> dict[str, torch.Tensor]:
        sizes = settings.flexible_patches
        with patches_of(model.encoder, drawn_size(sizes, chance)) if sizes else nullcontext():
            return {"task": model.mistakes(batch.x, batch.known, batch.labels, batch.target)}

    job = Job(model=model, losses=losses, source=one.train, augment=one.augment, optimisation=plan,
              machine=settings.machine, seed=one.seed, num_blocks=len(model.encoder.blocks),
              resume=one.work.folder / f"{one.key}.pt", log=lambda step, numbers: one.log(numbers, step),
              every=max(plan.steps // settings.validations, 1), watch=watch, watch_state=lambda: dict(best),
              restore_watch=best.update, title=f"{one.name} {one.arm} seed {one.seed} lr {one.learning_rate:g}")
    if one.is_first and one.arm == arms_of(settings)[0]:
        own = len(arms_of(settings)) * len(settings.seeds) * len(settings.grid)
        announce(f"finetune {one.name}", job, num_samples=len(one.train.rows), at_once=settings.processes,
                 repeats=one.alike or own, published=own)
    try:
        with with_memory_advice(plan.batch_size, settings.machine.accumulate):
            done = fit(job)
    finally:
        if job.skips and not follows():
            report.write_csv(one.work.folder / f"skipped-{one.key}.csv", [
                {"arm": one.arm, "seed": one.seed, "learning_rate": one.learning_rate, **skip.line()}
                for skip in job.skips])
    if best["weights"]:
        model.load_state_dict(best["weights"])
    return done


def _publish(name: str, settings: FinetuneRun, root: Path, trials: list[Trial], start: Start, work: Work,
             rows: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Choose each arm's learning rate by mean validation loss, keep its seeds, write summary and report."""
    chosen: dict[str, Any] = {}
    arms = list(dict.fromkeys(trial.arm for trial in trials))
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
                shutil.copytree(trial.folder / "model", making / arm / f"seed{trial.seed}")
        provenance = start.record.get("provenance", {})
        summary = {"domain": settings.domain, "data": settings.data, "task": settings.task,
                   "protocol": settings.protocol, "start": settings.start, "arms": arms,
                   "seeds": list(settings.seeds), "grid": list(settings.grid),
                   "train_rows": len(rows[0]), "val_rows": len(rows[1]), "chosen": chosen,
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
