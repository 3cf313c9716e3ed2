"""One training: its settings, and what runs it.

Every step seeds the generators from (seed, step, micro-batch, rank), takes its batch from (seed, step), and the resume
state is the step, the weights and the optimiser: a killed run that resumes ends with the weights of one that was not.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from models.encoder.chance import Chance
from pipelines.training.bad_steps import NotFinite, SkippedStep
from pipelines.training.batches import Batch, RawBatch, Source, TrainingBatches
from pipelines.training.prefetch import ahead
from pipelines.training.processes import follows

if TYPE_CHECKING:
    from pipelines.training.training_module import Training

MOST_AHEAD = 16
"""Batches; each one that waits takes its memory."""
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
    """What the run runs on. Nothing here changes what is learnt, up to rounding, but `accumulate`, which draws anew."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU when there is one."""
    devices: int = 1
    """Devices per node. Under torchrun or srun, which start the processes, their number is taken."""
    num_nodes: int = 1
    """Nodes; likewise."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """auto: one device, or DDP for several. fsdp: weights, gradients and optimiser state are cut over the devices, for
    pretraining a model that one of them cannot hold (docs/scaling.md)."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bf16 on a GPU that has it, float32 elsewhere."""
    accumulate: int = 1
    """Micro-batches per update, for batches that do not fit. Each draws its own crops and masks, so another number is
    another draw."""
    compile: bool = False
    """torch.compile the model: faster after a minute, on a GPU."""
    save_every_seconds: float = 300.0
    """Least time between two saves of the resume state."""
    prefetch: int = 0
    """Batches that a thread reads ahead while the device works; 0: each is read when it is wanted. The bits are the
    same."""
    check_reads: bool = True
    """Compare each sample with its hash when it is read first (about 30 microseconds for 50 kB, once in a run), so that
    nothing is learnt from a damaged disk. false where `lacuna verify` has just said so, or where a crop should not cost
    the reading of its whole volume."""

    def __post_init__(self) -> None:
        if not 0 <= self.prefetch <= MOST_AHEAD:
            raise ValueError(f"prefetch: found {self.prefetch}, expected 0 to {MOST_AHEAD} batches.")


class TrainingFailed(RuntimeError):
    """Training cannot go on. The text says at which step, on which samples, and what to do."""


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


def fit(job: Job) -> int:
    """Train `job.model` in place. Returns the number of steps done (fewer when `watch` stopped it).

    Raises:
        ValueError: the resume state cannot be read.
        NotFinite: on losses or gradients that are not finite, again and again.
        DiskFull, Unwritable: the resume state cannot be saved; the last one is kept.
        KeyboardInterrupt: on Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP; where `resume` is set, the update is finished and
            saved first.
    """
    # Lightning takes seconds to load: whoever only asks for settings, or is refused, does not wait for it
    from pipelines.training.sharding import copied_parts
    from pipelines.training.stopping import stopping_after_an_update
    from pipelines.training.training_module import Training, make_trainer
    machine, plan = job.machine, job.optimisation
    resumed = _left_by_a_killed_run(job.resume) if job.resume and job.resume.exists() else None
    start = 0 if resumed is None else int(resumed["step"])
    if resumed is not None:
        job.model.load_state_dict(resumed["model"])
        if job.restore_watch is not None:
            job.restore_watch(resumed["watch"])
    if start and not follows():
        print(f"{job.title}: going on after update {start} of {plan.steps}.", flush=True)
    if resumed is not None and (start >= plan.steps or resumed.get("ended")):
        return start
    if machine.strategy == "fsdp" and (plan.optimiser != "adamw" or plan.cautious):
        raise ValueError("strategy fsdp: found another optimiser, expected adamw that is not cautious, which is "
                         "what is tested on sharded weights. Change `optimiser`, or take strategy: ddp.")
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
        with copied_parts(job.model) if machine.strategy == "fsdp" else nullcontext():
            try:
                with stopping_after_an_update(job.resume is not None) as module.stop:
                    trainer.fit(module, train_dataloaders=batches)
            finally:
                batches.close()
    if module.trained:
        job.model.load_state_dict(module.trained)
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
        self.begun: Generator[RawBatch] | None = None

    def __len__(self) -> int:
        return (self.job.optimisation.steps - self.start) * self.job.machine.accumulate

    def __iter__(self) -> Iterator[RawBatch]:
        job, plan = self.job, self.job.optimisation
        self.close()
        self.begun = ahead(TrainingBatches(
            job.source, job.seed, plan.batch_size, plan.steps, self.start, job.machine.accumulate,
            self.module.global_rank, self.module.trainer.world_size), job.machine.prefetch)
        return self.begun

    def close(self) -> None:
        """End the thread that reads ahead, where there is one."""
        if self.begun is not None:
            self.begun.close()


def _left_by_a_killed_run(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: found no resume state that can be read ({type(error).__name__}), expected tensors "
                         "and numbers. It is damaged, or not ours. Remedy: remove it; the run then begins anew."
                         ) from error
    return state


def precision_of(machine: Machine) -> Any:
    """The setting, or what "auto" comes to on this machine."""
    if machine.precision != "auto":
        return machine.precision
    gpu = machine.accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if gpu else "32-true"


def device_of(machine: Machine) -> torch.device:
    """Where to compute outside the Trainer (validation, prediction)."""
    return torch.device("cuda" if machine.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
