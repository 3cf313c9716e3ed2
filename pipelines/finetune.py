"""Stage `finetune`: the same head, steps, grid and seeds from each start, so that arms differ in weights alone.

Legend: n rows, O outputs, L numbers per label.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
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
from models.adapters.adapter import AdapterSettings, add_adapter, trunk_hash
from models.adapters.prior_prompts import PriorPrompts, check_neighbours
from models.encoder.chance import Chance, key_of
from models.encoder.flexible_patches import check_sizes, drawn_size, patches_of
from models.encoder.initialisation import Initialisation, initialise
from models.heads.mask_loss import MaskLoss
from models.heads.segment_grid import SegmentHead
from models.heads.tuned import HeadSettings, Tuned, build_head, build_loss
from pipelines import report
from pipelines.scoring.temperature import Temperature, fit_temperature
from pipelines.settings import build, plain
from pipelines.tracking import lineage, tracking
from pipelines.training.batches import Batch, Source, domain_code, in_order
from pipelines.training.estimate import announce, with_memory_advice
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.label_budget import labelled_rows
from pipelines.training.memory_bank import fill_memories
from pipelines.training.probes import fit_linear, fit_neighbours
from pipelines.training.processes import follows
from pipelines.training.resume import Work, work_folder
from pipelines.training.side_by_side import side_by_side
from pipelines.training.training import Job, device_of, fit
from pipelines.training.true_masks import with_masks
from pipelines.weights import checkpoints
from pipelines.weights.starts import Start, resolve
from pipelines.weights.tuned_checkpoints import Trunk, predict, save_tuned


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
              work: Work, tracked: Any, share: slice = slice(None)) -> list[Trial]:
    """Every training of the run, or a share of them; those that are in the work folder already are not done again.

    Args:
        rows: to learn from and to choose by (`labelled_rows`).
    """
    labels = prepared.labels(settings.task)
    code = domain_code(settings.domain)
    train, val = (Source(prepared, start.contract, code, part, labels) for part in rows)
    task, augment = prepared.contract.tasks[settings.task], build_augment(name, settings)
    begins = {arm: start if arm == "pretrained" else start.random() for arm in settings.arms
              if arm == "scratch" or not checkpoints.is_scratch(settings.start)}
    asked = [(arm, seed, rate) for arm in begins for seed in settings.seeds
             for rate in rates_of(settings)]
    return [trial(name, settings, task, arm, seed, rate, begins[arm], (train, val), augment, work, tracked)
            for arm, seed, rate in asked[share]]


def rates_of(settings: FinetuneRun) -> tuple[float, ...]:
    """Learning rates to try: one where nothing is trained by steps."""
    by_steps = settings.protocol == "full" or isinstance(settings.head, SegmentHead)
    return settings.grid if by_steps else settings.grid[:1]


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


def build_model(start: Start, head: HeadSettings, task: Task, seed: int, num_reference: int = 0,
                initialisation: Initialisation = "xavier") -> Tuned:
    """A model of one arm and seed. The head's weights depend on the seed alone, so arms share them."""
    torch.manual_seed(key_of(seed, 1) & ((1 << 63) - 1))
    encoder = start.build()
    if start.weights is None:
        initialise(encoder, initialisation, key_of(seed, 3) & ((1 << 63) - 1))
    torch.manual_seed(key_of(seed, 2) & ((1 << 63) - 1))
    outputs = len(task.outputs)
    return Tuned(encoder, build_head(head, encoder.width, outputs, num_reference, encoder),
                 build_loss(head, task.kind, outputs))


def trial(name: str, settings: FinetuneRun, task: Task, arm: str, seed: int, rate: float, start: Start,
           sources: tuple[Source, ...], augment: Any, work: Work, tracked: Any) -> Trial:
    """One training, or what an interrupted run has left of it."""
    folder = work.folder / f"{arm}-seed{seed}-lr{rate:g}"
    if (folder / "trial.json").is_file():
        return Trial(**{**json.loads((folder / "trial.json").read_text()), "folder": folder})
    train, val = (with_masks(source, settings.task, settings.around_classes) for source in sources)
    assert train.labels is not None
    model = build_model(start, settings.head, task, seed, len(train.rows), settings.initialisation)
    adapters = settings.adapters if arm == "pretrained" else ()
    trunk = put_adapters(model, adapters, settings.start, seed)
    fill_memories(model, train, device_of(settings.machine))
    trained, weights = trained_of(model, settings.protocol)
    model.loss.label_smoothing = settings.label_smoothing
    model.loss.fit(torch.from_numpy(train.labels[train.rows]), settings.imbalance)
    began = time.monotonic()
    match settings.protocol:
        case "full":
            steps = _train(name, settings, model, arm, seed, rate, train, val, augment, work, tracked)
        case "linear" if isinstance(settings.head, SegmentHead):
            model.freeze_trunk()
            steps = _train(name, settings, model, arm, seed, rate, train, val, augment, work, tracked)
        case "linear":
            steps = fit_linear(model, train, val, device_of(settings.machine))
        case "knn":
            steps = fit_neighbours(model, train, device_of(settings.machine))
    seconds = time.monotonic() - began
    device = device_of(settings.machine)
    model.to(device).eval()
    loss = validation_loss(model, val, device)
    fitted = temperature_of(model, val, task, device)
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


def temperature_of(model: Tuned, val: Source, task: Task, device: torch.device) -> Temperature:
    """Fitted on validation rows; 1 for masks."""
    if task.kind == "segmentation":
        return Temperature(1.0, None, None, 0, "probabilities of pixels are as trained: no temperature is fitted")
    assert val.labels is not None
    return fit_temperature(predict(model, val, device=device), val.labels[val.rows], task.kind)


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
            return {"task": model.mistakes(batch.x, batch.known, batch.labels, batch.target)}

    job = Job(model=model, losses=losses, source=train, augment=augment, optimisation=plan, machine=settings.machine,
              seed=seed, num_blocks=len(model.encoder.blocks),
              resume=work.folder / f"{arm}-seed{seed}-lr{rate:g}.pt",
              log=lambda step, numbers: tracked.metrics(
                  {f"{arm}.seed{seed}.lr{rate:g}.{key}": value for key, value in numbers.items()}, step=step),
              every=max(plan.steps // settings.validations, 1), watch=watch, watch_state=lambda: dict(best),
              restore_watch=best.update, title=f"{name} {arm} seed {seed} lr {rate:g}")
    if seed == settings.seeds[0] and rate == settings.grid[0] and arm == settings.arms[0]:
        announce(f"finetune {name}", job, num_samples=len(train.rows),
                 repeats=len(settings.arms) * len(settings.seeds) * len(settings.grid), at_once=settings.processes)
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
    """The training loss over all validation rows, model in eval mode. Of samples that are larger than the model's size,
    the crop at the centre counts."""
    assert val.labels is not None
    loss_of = model.loss
    if isinstance(loss_of, MaskLoss):
        return _loss_of_masks(model, loss_of, val, device)
    raw = torch.from_numpy(predict(model, val, device=device, in_label_units=False))
    with torch.no_grad():
        loss = model.loss(raw.to(device), torch.from_numpy(val.labels[val.rows]).to(device))
    return float(loss)


def _loss_of_masks(model: Tuned, loss_of: MaskLoss, val: Source, device: torch.device) -> float:
    """Sample by sample, since answers of all pixels would fill the memory."""
    def each(batch: Batch) -> torch.Tensor:
        assert batch.target is not None, "a source of masks gives them"
        return loss_of.per_sample(model.predict(batch.x, batch.known), batch.target, batch.labels)

    was_training = model.training
    model.to(device).eval()
    losses = in_order(val, each, 32, device)
    model.train(was_training)
    return float(losses.mean(dtype=np.float64))


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
