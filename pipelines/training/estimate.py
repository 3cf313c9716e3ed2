"""Before a long training: what it will take, measured on its own first steps. Out of memory: what to do about it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from domains.publish import DiskFull
from pipelines.training.batches import TrainingBatches, on_device
from pipelines.training.processes import follows, started
from pipelines.training.resources import disk_free, memory, peak_memory, size_text, time_text
from pipelines.training.training import Job, TrainingFailed, device_of, precision_of

PATIENCE = 10.0
"""Seconds. A first step that takes longer is the measurement; otherwise the first warms up and the next ones count."""
TIMED_STEPS = 2
LONG = 1800.0
"""Seconds on a CPU from which it is said what makes a training shorter."""
RESERVE = 2**28
"""Bytes of disk left for reports and tracking, which are small."""


@dataclass(frozen=True)
class Cost:
    """What one training takes, or several alike."""

    seconds: float
    """Steps alone, without validation and pictures."""
    memory: int
    """Most bytes held: on the GPU where there is one, by the process elsewhere."""
    memory_free: int
    """Bytes that are there for it; 0 where the system does not say."""
    disk: int
    """Bytes of checkpoints and resume state."""
    disk_free: int
    """Bytes free where they go."""
    device: str
    """What memory is of."""
    at_once: int = 1
    """Trainings at the same time."""

    def text(self, title: str, steps: int, num_samples: int, parameters: int, batch_size: int, repeats: int) -> str:
        """One paragraph for people."""
        runs = f"{repeats} trainings of {steps} steps" if repeats > 1 else f"{steps} steps"
        if self.at_once > 1:
            runs += f", {self.at_once} at once"
        passes = steps * batch_size / max(num_samples, 1)
        there = f" ({size_text(self.memory_free)} there)" if self.memory_free else ""
        return (f"{title}: {runs} of {batch_size} samples, {passes:.3g} passes over {num_samples}; "
                f"{parameters / 1e6:.3g} M weights\n"
                f"  about {time_text(self.seconds)}, {size_text(self.memory)} of memory on {self.device}{there}, "
                f"{size_text(self.disk)} of disk ({size_text(self.disk_free)} free)")


def estimate(seconds_per_step: float, peak_bytes: int, steps: int, parameters: int, trainable: int, folder: Path,
             device: str = "cpu", memory_free: int = 0, repeats: int = 1, kept: int = 2, at_once: int = 1,
             published: int = 0) -> Cost:
    """From measured steps to a whole training.

    Args:
        peak_bytes: most memory held while weights, activations and gradients were there, but no optimiser state.
        parameters, trainable: numbers of weights.
        folder: where checkpoints go.
        repeats: trainings of the same cost (arms, seeds, learning rates).
        kept: numbers that the optimiser keeps for each trainable weight: AdamW two, Adan four.
        at_once: how many of the trainings run at the same time, on this device or one each.
        published: how many of their models lie on the disk at the same time; 0: all.
    """
    moments = 4 * kept * trainable
    good = 4 * parameters + moments  # the state to go back to: on the host, and in the resume state
    resume = 2 * (4 * parameters + moments + good)  # the old one stays until the new one is whole
    checkpoints = 4 * parameters * (published or repeats)
    return Cost(seconds=seconds_per_step * steps * math.ceil(repeats / at_once),
                memory=(peak_bytes + moments + good * (device == "cpu")) * at_once, memory_free=memory_free,
                disk=checkpoints + resume * at_once, disk_free=disk_free(folder), device=device, at_once=at_once)


def announce(title: str, job: Job, num_samples: int, repeats: int = 1, at_once: int = 1,
             published: int = 0) -> Cost | None:
    """Print what this training (and `repeats` like it) will take. Weights, buffers and chance stay as they were.

    Returns:
        The cost; None on the processes of a distributed run that only follow.

    Raises:
        DiskFull: the disk is too small for it.
        TrainingFailed: even one step does not fit into memory.
    """
    if follows():
        return None
    plan, device = job.optimisation, device_of(job.machine)
    with with_memory_advice(plan.batch_size, job.machine.accumulate):
        seconds, peak = measure(job, device)
    parameters = sum(weight.numel() for weight in job.model.parameters())
    trainable = sum(weight.numel() for weight in job.model.parameters() if weight.requires_grad)
    folder = job.resume.parent if job.resume else Path.cwd()
    cost = estimate(seconds, peak, plan.steps, parameters, trainable, folder, str(device),
                    _memory_free(device), repeats, 4 if plan.optimiser == "adan" else 2, min(at_once, repeats),
                    published)
    print(cost.text(title, plan.steps, num_samples, parameters, plan.batch_size, repeats))
    if device.type == "cpu" and cost.seconds > LONG:
        print(shorter(repeats), flush=True)
    if cost.memory_free and cost.memory > 0.9 * cost.memory_free:
        print("  That is close to all the memory there is. " + _remedy(plan.batch_size, job.machine.accumulate))
    left = job.resume.stat().st_size if job.resume and job.resume.exists() else 0  # of a stopped run, and counted too
    if cost.disk + RESERVE > cost.disk_free + left:
        missing = cost.disk + RESERVE - cost.disk_free - left
        raise DiskFull(f"disk: found {size_text(cost.disk_free)} free, expected {size_text(cost.disk + RESERVE)} for "
                       f"checkpoints and resume state, {missing} bytes more. Remedy: free some, or take a smaller "
                       "encoder.")
    return cost


def shorter(repeats: int) -> str:
    """What to change where a first look should not take hours."""
    return ("  That is long for a first look. Shorter: encoder.size: tiny and a lighter objective.decoder, a smaller "
            "read.size (half of each side: a quarter of the patches),\n  fewer optimisation.steps"
            + (", one of the seeds" if repeats > 1 else "") + "; with --data: --set encoder.size=tiny "
            "--set read.size=[96,96] --steps 200; or a GPU. Ctrl-C stops here, and the same command goes on.")


def measure(job: Job, device: torch.device) -> tuple[float, int]:
    """(seconds per update, peak bytes) of forward and backward on this machine's share of a batch."""
    machine, plan = job.machine, job.optimisation
    batches = TrainingBatches(job.source, job.seed, plan.batch_size, plan.steps, accumulate=machine.accumulate,
                              world=math.prod(started(machine.devices, machine.num_nodes)))
    buffers = {name: value.clone() for name, value in job.model.named_buffers()}
    was_training = job.model.training
    job.model.to(device).train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seconds = _step(job, batches, 0, device)
        if seconds < PATIENCE:
            seconds = sum(_step(job, batches, step, device) for step in range(TIMED_STEPS)) / TIMED_STEPS
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    with torch.no_grad():
        for name, value in job.model.named_buffers():
            value.copy_(buffers[name])
    job.model.train(was_training)
    return seconds * machine.accumulate, peak


def _step(job: Job, batches: TrainingBatches, step: int, device: torch.device) -> float:
    """Seconds that reading, forward and backward of one micro-batch take."""
    began = time.perf_counter()
    raw = batches.batch(step, 0)
    mixed: AbstractContextManager[object] = nullcontext()
    if precision_of(job.machine) == "bf16-mixed":
        mixed = torch.autocast(device.type, torch.bfloat16)
    with mixed:
        batch, chance = on_device(job.source, raw, job.seed, job.augment, device)
        losses: list[Tensor] = list(job.losses(batch, chance).values())
    torch.stack([loss.float() for loss in losses]).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    job.model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


@contextmanager
def with_memory_advice(batch_size: int, accumulate: int) -> Iterator[None]:
    """Turn running out of memory inside the block into a TrainingFailed that says what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(out_of_memory_advice(error, batch_size, accumulate)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the device's or the machine's way of saying that memory is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def out_of_memory_advice(error: BaseException, batch_size: int, accumulate: int) -> str:
    """Found, expected, remedy. The batch that the optimiser sees stays the same, so the result does too."""
    where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
    found = f"a batch of {batch_size}" + (f" in {accumulate} micro-batches" if accumulate > 1 else "")
    return f"memory: {where} could not hold {found}. {_remedy(batch_size, accumulate)}"


def _remedy(batch_size: int, accumulate: int) -> str:
    finer = next((n for n in range(accumulate + 1, batch_size + 1) if batch_size % n == 0), None)
    if finer is None:
        return ("Remedy: every micro-batch is one sample already; take a smaller encoder, fewer patches (a larger "
                "patch or a smaller size), or a device with more memory.")
    return (f"Remedy: set machine.accumulate: {finer} (micro-batches of {batch_size // finer}; the same updates, "
            "slower), or lower optimisation.batch_size, which changes what is learnt, or take a smaller encoder.")


def _memory_free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    available, _ = memory()
    return available + peak_memory() if available else 0  # what this process holds is there for it
