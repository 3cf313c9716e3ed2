"""The one LightningModule and the Trainer it runs in.

Every step seeds the generators from (seed, step, micro-batch, rank), takes its batch from (seed, step), and the resume
state is the step, the weights and the optimiser: a killed run that resumes ends with the weights of one that was not.
An update that is not finite is left out (pipelines/bad_steps.py); the state to go back to when that happens too often
is taken at fixed steps, so that it is a function of the step as well, and is part of the resume state.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.publish import write_bytes
from models.encoder.chance import Chance, key_of
from pipelines.bad_steps import SHOWN, Running, SkippedStep, Verdict, is_bad, sentence, skipped
from pipelines.batches import Batch, RawBatch, Source, TrainingBatches, on_device
from pipelines.optimisers import Adan, CautiousAdamW
from pipelines.processes import started

# Lightning greets every Trainer with a dozen lines and an advertisement; a stage makes many Trainers.
for _name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
    logging.getLogger(_name).setLevel(logging.WARNING)

log = logging.getLogger(__name__)

Losses = Callable[[Batch, Chance], dict[str, Tensor]]


@dataclass(frozen=True)
class Optimisation:
    """An optimiser with warm-up and a cosine, counted in steps of the global batch."""

    steps: int
    """Updates of the weights."""
    batch_size: int = 64
    """Samples per update, over all devices and micro-batches."""
    learning_rate: float = 1.5e-4
    """Peak learning rate as it is used; it is not scaled by the batch size behind your back."""
    weight_decay: float = 0.05
    """Decoupled decay of weights; biases, norms, tokens and position tables are left alone."""
    optimiser: Literal["adamw", "adan"] = "adamw"
    """adamw: torch's. adan: Adan (Xie et al. 2022), which keeps four numbers per weight instead of two."""
    cautious: bool = False
    """Leave out the part of each update that points against the gradient (Liang et al. 2024); with either optimiser."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay of the optimiser's averages. AdamW has two: (0.9, 0.95) pretraining, (0.9, 0.999) fine-tuning. Adan has
    three: (0.98, 0.92, 0.99)."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    final_share: float = 0.0
    """Share of the peak that the cosine ends at."""
    clip: float = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    layer_decay: float = 1.0
    """Learning rate of a block relative to the next one (BEiT, MAE's fine-tuning); 1: all alike."""
    log_every: int = 10
    """Steps between two points of the curves."""
    roll_back_after: int = 10
    """Updates in a row whose loss or gradient is not finite, after which training goes back to a good state. Single
    ones are left out and recorded."""
    max_roll_backs: int = 3
    """Times that it may go back before it stops with exit code 5."""
    keep_good_every: int = 100
    """Steps between two states to go back to. The last good one is kept on the host and in the resume state."""

    def __post_init__(self) -> None:
        least = {name: getattr(self, name)
                 for name in ("steps", "batch_size", "log_every", "roll_back_after", "keep_good_every")}
        if min(least.values()) < 1 or self.max_roll_backs < 0:
            raise ValueError(", ".join(f"{name} {value}" for name, value in least.items())
                             + f": each must be at least 1; max_roll_backs {self.max_roll_backs}: at least 0.")
        published = {"adamw": (0.9, 0.95), "adan": (0.98, 0.92, 0.99)}[self.optimiser]
        if len(self.betas) != len(published) or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: found {list(self.betas)}, expected {len(published)} shares below 1 for "
                             f"{self.optimiser}, such as {list(published)}.")
        if not 0 <= self.warmup < 1 or not 0 < self.layer_decay <= 1:
            raise ValueError("expected 0 <= warmup < 1 and 0 < layer_decay <= 1; "
                             f"found {self.warmup}, {self.layer_decay}.")


@dataclass(frozen=True)
class Machine:
    """What the run runs on. Nothing here changes what is learnt, up to rounding."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU when there is one."""
    devices: int = 1
    """Devices per node. Under torchrun or srun, which start the processes, their number is taken."""
    num_nodes: int = 1
    """Nodes; likewise."""
    strategy: Literal["auto", "ddp"] = "auto"
    """auto: one device, or DDP for several."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16 on a GPU that has it, float32 elsewhere."""
    accumulate: int = 1
    """Micro-batches per update, for batches that do not fit."""
    compile: bool = False
    """torch.compile the model: faster after a minute, on a GPU."""
    save_every_seconds: float = 300.0
    """Least time between two saves of the resume state."""
    check_reads: bool = True
    """Compare each sample with its hash when it is read first (about 30 microseconds for 50 kB, once in a run), so that
    nothing is learnt from a damaged disk. false where `lacuna verify` has just said so, or where a crop should not cost
    the reading of its whole volume."""


class TrainingFailed(RuntimeError):
    """Training cannot go on. The text says at which step, on which samples, and what to do."""


class NotFinite(TrainingFailed):
    """Too many losses or gradients in a row were not finite, in the good states too."""

    exit_code = 5


@dataclass(frozen=True)
class Job:
    """One training: what is minimised, on what, how."""

    model: nn.Module
    """All that has weights."""
    losses: Losses
    """Named losses of a batch, computed with `model`; their sum is minimised."""
    source: Source
    """What it trains on."""
    augment: Any
    """The domain's Augment settings, or None."""
    optimisation: Optimisation
    machine: Machine
    seed: int
    num_blocks: int
    """Depth of the encoder, for layer decay."""
    resume: Path | None = None
    """File for the resume state; None: not resumable."""
    log: Callable[[int, dict[str, float]], None] | None = None
    """Called with (step, numbers) every `log_every` steps."""
    every: int = 0
    """Steps between two calls of `watch`; 0: never."""
    watch: Callable[[int], bool] | None = None
    """Called with the number of steps done, model in eval mode; returns True to stop early."""
    watch_state: Callable[[], dict[str, Any]] | None = None
    """What `watch` needs to go on after a resume; saved with the resume state."""
    restore_watch: Callable[[dict[str, Any]], None] | None = None
    """Given back what `watch_state` returned."""
    after_step: Callable[[float], None] | None = None
    """Called after every update, before anything is saved, with the share of the steps that is done: for objectives
    whose teacher averages weights, or that grow harder. What it changes must be in the model's state."""
    title: str = "training"
    """What the progress bar says."""
    skips: list[SkippedStep] = field(default_factory=list)
    """Filled in while training: the updates that were left out, in order, those before a resume included."""


class Training(lightning.LightningModule):
    """Adds up the named losses of an objective; everything else is what and in which order."""

    def __init__(self, job: Job, resumed: dict[str, Any] | None) -> None:
        super().__init__()
        self.job, self.model, self.resumed = job, job.model, resumed
        self.done = self.start_step = 0 if resumed is None else int(resumed["step"])
        self.sums: dict[str, Tensor] = {}
        self.saved = time.monotonic()
        self.bar: Any = None
        self.late = False
        self.verdicts: list[Verdict] = []
        self.streak = 0
        self.good: dict[str, Any] = {}
        self.unproven: dict[str, Any] = {}

    def on_train_batch_start(self, batch: RawBatch, batch_idx: int) -> None:
        """Before the first micro-batch of an update: what it must not spoil."""
        if batch.micro_batch == 0:
            self.running.keep()
            self.bad_loss = torch.zeros((), dtype=torch.bool, device=self.device)

    def training_step(self, raw: RawBatch, index: int) -> Tensor:
        """One micro-batch."""
        job = self.job
        torch.manual_seed(key_of(job.seed, raw.step, raw.micro_batch, self.global_rank) & ((1 << 63) - 1))
        batch, chance = on_device(job.source, raw, job.seed, job.augment, self.device)
        losses = job.losses(batch, chance)
        total = torch.stack(list(losses.values())).sum()
        finite = torch.isfinite(total.detach())
        self.bad_loss |= ~finite
        for name, value in {**losses, "loss": total, "counted": finite}.items():  # curves show the finite ones
            one = torch.where(finite, value.detach().float(), 0.0)
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + one
        return total

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Forward and backward of the last micro-batch, and the update, unless it is bad."""
        optimizer_closure()
        either = is_bad(self.bad_loss, self.model.parameters())
        self.verdicts.append(Verdict(self.done, either))
        bad = either[1]
        if self.late:
            optimizer.optimizer.found_inf, optimizer.optimizer.grad_scale = bad.float(), None
        if self.late or not bad:
            optimizer.step(closure=lambda: None)
        if self.late or bad:
            self.running.undo(bad)

    def on_train_batch_end(self, outputs: Any, batch: RawBatch, batch_idx: int) -> None:
        """After a whole update: curves, gates, validation, resume state."""
        if batch.micro_batch + 1 < self.job.machine.accumulate:
            return
        plan = self.job.optimisation
        self.done = batch.step + 1
        last = self.done == plan.steps
        point = self.done % plan.log_every == 0 or last
        keep = self.done % plan.keep_good_every == 0
        bad = self._settle(1 if self.late and not (point or keep) else 0)
        if self.job.after_step is not None and not bad:
            self.job.after_step(self.done / plan.steps)
        if keep:
            self.unproven = self._state()
        if point:
            self._log()
        if self.job.every and self.job.watch is not None and (self.done % self.job.every == 0 or last):
            self.eval()
            self.trainer.should_stop = self.job.watch(self.done) or self.trainer.should_stop
            self.train()
        if self.done % plan.log_every == 0:
            self._save()  # a point of the curve averages the steps since the last one: a resume starts at a point
        if self.bar is not None:
            self.bar.update(self.done - self.bar.n)

    def _settle(self, leave: int) -> bool:
        """Read the verdicts on all but the last `leave` updates, and do what they ask for. Returns whether the last one
        read was bad."""
        update = False
        while len(self.verdicts) > leave:
            verdict = self.verdicts.pop(0)
            loss, update = verdict.read()
            if not update:
                self.streak = 0
                if self.unproven:  # its weights have given a finite loss and gradient
                    self.good, self.unproven = self.unproven, {}
                continue
            self._skip(verdict.step, loss)
        return update

    def _skip(self, step: int, bad_loss: bool) -> None:
        job, plan = self.job, self.job.optimisation
        one = skipped(step, "loss" if bad_loss else "gradient", job.source, job.seed, plan.batch_size)
        self.streak += 1
        if self.streak >= plan.roll_back_after:
            one = dataclasses.replace(one, back_to=self.good["step"])
        job.skips.append(one)
        if self.global_rank == 0:
            log.warning("%s", sentence(one))
            if job.log is not None:
                job.log(step + 1, {"skipped_steps": len(job.skips)})
        if one.back_to >= 0:
            self._roll_back()

    def _roll_back(self) -> None:
        """Weights and optimiser of the last good state; the order of samples goes on, past the bad ones."""
        job, plan = self.job, self.job.optimisation
        if sum(one.back_to >= 0 for one in job.skips) > plan.max_roll_backs:
            self._give_up()
        self._put(self.good)
        self.streak, self.unproven = 0, {}
        self.verdicts.clear()  # what was queued since then was done to weights that are gone
        if self.global_rank == 0:
            log.warning("%d updates in a row were not finite; going back to the state after step %d.",
                        plan.roll_back_after, self.good["step"])

    def _give_up(self) -> None:
        job, plan = self.job, self.job.optimisation
        kept = ""
        if job.resume is not None:
            if not job.resume.exists() and self.global_rank == 0:
                self._write(self.good, self.good["step"], {})
            kept = f" The last good state is kept in {job.resume}."
        raise NotFinite(
            f"the loss or its gradient was not finite in {plan.roll_back_after} updates in a row up to number "
            f"{job.skips[-1].step}, again after going back to a good state {plan.max_roll_backs} times. Rows of the "
            f"index in the last one: {list(job.skips[-1].rows[:SHOWN])}; all are in skipped.csv of the report.{kept} "
            "Expected finite numbers. Lower learning_rate, set clip: 1.0, or look at these samples with "
            "`lacuna describe`.")

    def on_train_start(self) -> None:
        """The state of a killed run. Steps on stderr; in a log the bar writes a line now and then."""
        optimizer = self.trainer.optimizers[0]
        self.running = Running(self.model)
        # Objectives that follow their weights after each update must know at once whether there was one
        self.late = self.job.after_step is None and can_skip_on_device(optimizer)
        if self.resumed is not None:
            self._restore(self.resumed)
        else:
            self.good = self._state()
        if self.global_rank == 0:
            self.bar = tqdm(total=self.job.optimisation.steps, initial=self.done, desc=self.job.title, unit="step",
                            leave=False, mininterval=0.5 if sys.stderr.isatty() else 30)

    def on_train_end(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def _save(self) -> None:
        """Write the resume state, atomically, when it is time."""
        job = self.job
        if job.resume is None or time.monotonic() - self.saved < job.machine.save_every_seconds or self.global_rank:
            return
        self.saved = time.monotonic()
        self._write({"model": self.model.state_dict(), "optimizer": self.trainer.optimizers[0].state_dict()}, self.done,
                    {"good": self.good, "unproven": bool(self.unproven), "streak": self.streak,
                     "skips": [dataclasses.asdict(one) for one in job.skips]})

    def _write(self, state: dict[str, Any], step: int, about: dict[str, Any]) -> None:
        assert self.job.resume is not None
        buffer = io.BytesIO()
        torch.save({**state, "step": step, "watch": self.job.watch_state() if self.job.watch_state else {},
                    **about}, buffer)
        write_bytes(self.job.resume, buffer.getvalue())

    def _restore(self, resumed: dict[str, Any]) -> None:
        """Go on as the killed run would have. Its weights are in the model since before the Trainer was made."""
        self._put_optimizer(resumed["optimizer"])
        self.streak = resumed.get("streak", 0)
        self.job.skips.extend(SkippedStep(**{**one, "rows": tuple(one["rows"]), "not_finite": tuple(one["not_finite"])})
                              for one in resumed.get("skips", []))
        self.good = resumed.get("good") or self._state()
        if resumed.get("unproven"):  # no update was made since it was taken
            self.unproven = self._state()

    def _state(self) -> dict[str, Any]:
        """Weights and optimiser as they are, on the host."""
        state: dict[str, Any] = on_host({"step": self.done, "model": self.model.state_dict(),
                                         "optimizer": self.trainer.optimizers[0].state_dict()})
        return state

    def _put(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._put_optimizer(state["optimizer"])

    def _put_optimizer(self, state: dict[str, Any]) -> None:
        optimizer = self.trainer.optimizers[0]
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule has set it for the step that comes

    def _log(self) -> None:
        counted = float(self.sums.pop("counted"))
        numbers = {name: float(value) / counted for name, value in self.sums.items()} if counted else {}
        self.sums = {}
        if numbers and self.job.log is not None and self.global_rank == 0:
            numbers["learning_rate"] = self.optimizers().param_groups[-1]["lr"]  # type: ignore[union-attr]
            self.job.log(self.done, numbers)

    def configure_optimizers(self) -> Any:
        """The optimiser, with a warm-up and cosine that are functions of the absolute step."""
        plan = self.job.optimisation
        groups = parameter_groups(self.model, plan, self.job.num_blocks)
        optimizer = make_optimiser(groups, plan)
        start = self.start_step
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(plan, start + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make_optimiser(groups: list[dict[str, Any]], plan: Optimisation) -> torch.optim.Optimizer:
    """What the settings name; each group brings its own rate and decay."""
    if plan.optimiser == "adan":
        return Adan(groups, plan.learning_rate, (plan.betas[0], plan.betas[1], plan.betas[2]), cautious=plan.cautious)
    betas = (plan.betas[0], plan.betas[1])
    if plan.cautious:
        return CautiousAdamW(groups, plan.learning_rate, betas)
    # One pass over each weight and its state, on a CPU too: a quarter of the time of one operation after another.
    optimiser = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=betas, fused=True)
    # Lightning refuses to clip for optimisers that undo a gradient scaler's factor themselves; bf16 has no scaler.
    optimiser._step_supports_amp_scaling = False
    return optimiser


def learning_rate_share(plan: Optimisation, step: int) -> float:
    """Share of the peak learning rate used for the update number `step` (from 0): linear warm-up, then a cosine."""
    warm = max(round(plan.warmup * plan.steps), 1) if plan.warmup else 0
    if step < warm:
        return (step + 1) / warm
    along = (step - warm) / max(plan.steps - warm, 1)
    return plan.final_share + (1 - plan.final_share) * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))


def parameter_groups(model: nn.Module, plan: Optimisation, num_blocks: int) -> list[dict[str, Any]]:
    """Groups by layer and decay. Layer 0 embeds, block i is layer i + 1, the rest is the last (BEiT; MAE's util)."""
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.split(".")[-1]
        tables = ("class_position", "rows", "relative_position_bias_table")
        exempt = parameter.dim() < 2 or "token" in last or last in tables or ".channel." in name
        decay = 0.0 if exempt else plan.weight_decay
        layer = layer_of(name, num_blocks)
        rate = plan.learning_rate * plan.layer_decay ** (num_blocks + 1 - layer)
        group = groups.setdefault((layer, decay), {"params": [], "weight_decay": decay, "lr": rate})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def layer_of(name: str, num_blocks: int) -> int:
    """Which layer a weight of an encoder belongs to, for layer-wise learning rates."""
    parts = name.split(".")
    if "encoder" not in parts:
        return num_blocks + 1
    inside = parts[parts.index("encoder") + 1:]
    if inside[0] in ("tokenizer", "place_code", "class_token", "class_position"):
        return 0
    return int(inside[1]) + 1 if inside[0] == "blocks" else num_blocks + 1


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an update can be left out by a number that only the device knows: the host need not wait for it."""
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.param_groups[0].get("fused"))


def on_host(state: Any) -> Any:
    """A copy of nested dictionaries and lists with all tensors on the host."""
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state.detach().to("cpu", copy=True) if isinstance(state, Tensor) else state


def fit(job: Job) -> int:
    """Train `job.model` in place. Returns the number of steps done (fewer when `watch` stopped it).

    Raises:
        NotFinite: on losses or gradients that are not finite, again and again.
        DiskFull, Unwritable: the resume state cannot be saved; the last one is kept.
    """
    machine, plan = job.machine, job.optimisation
    resumed = None
    if job.resume and job.resume.exists():
        resumed = torch.load(job.resume, map_location="cpu", weights_only=True)
    start = 0 if resumed is None else int(resumed["step"])
    if resumed is not None:
        job.model.load_state_dict(resumed["model"])
        if job.restore_watch is not None:
            job.restore_watch(resumed["watch"])
    if start >= plan.steps:
        return start
    if machine.compile:
        job.model.compile()
    module = Training(job, resumed)
    trainer = make_trainer(machine, plan, plan.steps - start)
    job.model.train()
    batches = _Ranked(job, start, module)
    with warnings.catch_warnings():
        # Our iterable is deterministic and in-process on purpose; Lightning advises worker processes.
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*treespec.*")  # Lightning's own call of a deprecated function
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # torch, when the first update is left out
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # teachers are meant to
        trainer.fit(module, train_dataloaders=batches)
    job.model.eval()
    if job.skips and len(job.skips) >= module.done:
        raise NotFinite(f"the loss or its gradient was not finite in all {module.done} updates, so nothing was learnt. "
                        "Expected finite numbers. Look at the samples with `lacuna describe`; skipped.csv of the "
                        "report names them.")
    return module.done


class _Ranked:
    """TrainingBatches of this rank; the rank is known only once the trainer has started its processes."""

    def __init__(self, job: Job, start: int, module: Training) -> None:
        self.job, self.start, self.module = job, start, module

    def __len__(self) -> int:
        return (self.job.optimisation.steps - self.start) * self.job.machine.accumulate

    def __iter__(self) -> Any:
        job, plan = self.job, self.job.optimisation
        return iter(TrainingBatches(job.source, job.seed, plan.batch_size, plan.steps, self.start,
                                    job.machine.accumulate, self.module.global_rank, self.module.trainer.world_size))


def make_trainer(machine: Machine, plan: Optimisation, steps: int) -> lightning.Trainer:
    """A Trainer out of settings. Its own checkpoints and loggers are off: resume state and tracking are ours."""
    devices, num_nodes = started(machine.devices, machine.num_nodes)
    strategy: Any = machine.strategy
    if strategy == "auto" and devices * num_nodes > 1:
        strategy = "ddp"
    return lightning.Trainer(
        accelerator=machine.accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy,
        precision=precision_of(machine), max_steps=steps, max_epochs=-1, accumulate_grad_batches=machine.accumulate,
        gradient_clip_val=plan.clip or None, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False, num_sanity_val_steps=0)


def precision_of(machine: Machine) -> Any:
    """The setting, or what "auto" comes to on this machine."""
    if machine.precision != "auto":
        return machine.precision
    gpu = machine.accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if gpu else "32-true"


def device_of(machine: Machine) -> torch.device:
    """Where to compute outside the Trainer (validation, prediction)."""
    return torch.device("cuda" if machine.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
