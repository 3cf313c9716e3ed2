"""The one LightningModule, which sums the losses, leaves bad updates out, logs, validates and saves; and its Trainer.
The only import of lightning, which takes seconds: it is loaded when a training begins.

An update that is not finite is left out (pipelines/training/bad_steps.py); the state to go back to when that
happens too often is taken at fixed steps, so that it is a function of the step as well, and is part of the resume
state.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import os
import sys
import time
from contextlib import nullcontext
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.publish import write_bytes
from models.encoder.chance import key_of, seed_dropout
from pipelines.told_to_stop import say
from pipelines.training.bad_steps import SHOWN, NotFinite, Running, SkippedStep, Verdict, is_bad, sentence, skipped
from pipelines.training.batches import RawBatch, on_device
from pipelines.training.processes import started
from pipelines.training.schedule import learning_rate_share, make_optimiser, parameter_groups
from pipelines.training.sharding import gather, shard, spread, whole
from pipelines.training.stopping import Stop
from pipelines.training.training import Job, Machine, Optimisation, precision_of

# Lightning greets every Trainer with a dozen lines and an advertisement; a stage makes many Trainers.
for _name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
    logging.getLogger(_name).setLevel(logging.WARNING)

log = logging.getLogger(__name__)


class Training(lightning.LightningModule):
    """Adds up the named losses of an objective; everything else is what and in which order."""

    def __init__(self, job: Job, resumed: dict[str, Any] | None) -> None:
        super().__init__()
        self.job, self.model, self.resumed = job, job.model, resumed
        self.sharded = job.machine.strategy == "fsdp"
        self.trained: dict[str, Any] = {}
        self.done = self.start_step = 0 if resumed is None else int(resumed["step"])
        self.sums: dict[str, Tensor] = {}
        self.saved = time.monotonic()
        self.bar: Any = None
        self.late = False
        self.verdicts: list[Verdict] = []
        self.streak = 0
        self.good: dict[str, Any] = {}
        self.unproven: dict[str, Any] = {}
        self.stop = Stop()

    def configure_model(self) -> None:
        """Cut the model over the devices, where that is asked for."""
        if self.sharded:
            shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    def on_train_batch_start(self, batch: RawBatch, batch_idx: int) -> None:
        """Before the first micro-batch of an update: what it must not spoil."""
        if batch.micro_batch == 0:
            self.running.keep()
            self.bad_loss = torch.zeros((), dtype=torch.bool, device=self.device)

    def training_step(self, raw: RawBatch, index: int) -> Tensor:
        """One micro-batch."""
        job = self.job
        seed_dropout(key_of(job.seed, raw.step, raw.micro_batch, self.global_rank), self.device)
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
            with whole(self.model) if self.sharded else nullcontext():
                self.trainer.should_stop = self.job.watch(self.done) or self.trainer.should_stop
            self.train()
        if self.done % plan.log_every == 0:
            self._save()  # a point of the curve averages the steps since the last one: a resume starts at a point
        if asked := self.stop.agreed():
            self._save_and_leave(asked)
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
        self.stop.begin(self.trainer.world_size)
        optimizer = self.trainer.optimizers[0]
        self.running = Running(self.model)
        # Objectives that follow their weights after each update must know at once whether there was one
        self.late = self.job.after_step is None and not self.sharded and can_skip_on_device(optimizer)
        if self.resumed is not None:
            self._restore(self.resumed)
        else:
            self.good = self._state()
        if self.global_rank == 0:
            self.bar = tqdm(total=self.job.optimisation.steps, initial=self.done, desc=self.job.title, unit="step",
                            leave=False, mininterval=0.5 if sys.stderr.isatty() else 30)

    def on_train_end(self) -> None:
        """Take the bar away, and put sharded weights together."""
        if self.sharded:
            self.trained = gather(self.model, self.trainer.optimizers[0])["model"]
        if self.bar is not None:
            self.bar.close()

    def _save(self) -> None:
        """Write the resume state, atomically, when it is time."""
        job = self.job
        due = job.resume is not None and time.monotonic() - self.saved >= job.machine.save_every_seconds
        if self.sharded:
            due = self.trainer.strategy.broadcast(due)  # all gather, or none
        if not due or (self.global_rank and not self.sharded):
            return
        self.saved = time.monotonic()
        optimizer = self.trainer.optimizers[0]
        state = (gather(self.model, optimizer) if self.sharded else
                 {"model": self.model.state_dict(), "optimizer": optimizer.state_dict()})
        if self.global_rank:
            return
        self._write(state, self.done,
                    {"good": self.good, "unproven": bool(self.unproven), "streak": self.streak,
                     "skips": [dataclasses.asdict(one) for one in job.skips], "sums": on_host(self.sums),
                     "ended": self.trainer.should_stop})

    def _save_and_leave(self, asked: int) -> None:
        """Somebody waits: also between two points of the curve, whose sums are saved."""
        self._settle(0)
        self.saved = -math.inf
        self._save()
        if self.job.resume is not None and self.global_rank == 0:
            say(f"\n{self.job.title}: stopped after update {self.done} of {self.job.optimisation.steps}, saved in "
                f"{os.path.relpath(self.job.resume)}; the same command goes on from there.")
        self.stop.leave(asked, list(getattr(self.trainer.strategy.launcher, "procs", [])))

    def _write(self, state: dict[str, Any], step: int, about: dict[str, Any]) -> None:
        assert self.job.resume is not None
        buffer = io.BytesIO()
        torch.save({**state, "step": step, "watch": self.job.watch_state() if self.job.watch_state else {},
                    **about}, buffer)
        write_bytes(self.job.resume, buffer.getvalue())

    def _restore(self, resumed: dict[str, Any]) -> None:
        """Go on as the killed run would have."""
        self._put(resumed)
        self.streak = resumed.get("streak", 0)
        self.job.skips.extend(SkippedStep(**{**one, "rows": tuple(one["rows"]), "not_finite": tuple(one["not_finite"])})
                              for one in resumed.get("skips", []))
        self.sums = {name: value.to(self.device) for name, value in resumed.get("sums", {}).items()}
        self.good = resumed.get("good") or self._state()
        if resumed.get("unproven"):  # no update was made since it was taken
            self.unproven = self._state()

    def _state(self) -> dict[str, Any]:
        """Weights and optimiser as they are, on the host."""
        if self.sharded:
            return {"step": self.done, **gather(self.model, self.trainer.optimizers[0])}
        state: dict[str, Any] = on_host({"step": self.done, "model": self.model.state_dict(),
                                         "optimizer": self.trainer.optimizers[0].state_dict()})
        return state

    def _put(self, state: dict[str, Any]) -> None:
        optimizer = self.trainer.optimizers[0]
        rates = [group["lr"] for group in optimizer.param_groups]
        if self.sharded:
            spread(self.model, optimizer, state)
        else:
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule has set it for the step that comes

    def _log(self) -> None:
        """A point of the curve: means over the samples of all processes since the last one."""
        sums, self.sums = self.sums, {}
        if self.trainer.world_size > 1:
            whole_sum = self.trainer.strategy.reduce(torch.stack(list(sums.values())), reduce_op="sum")
            sums = dict(zip(sums, whole_sum, strict=True))
        counted = float(sums.pop("counted"))
        numbers = {name: float(value) / counted for name, value in sums.items()} if counted else {}
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


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an update can be left out by a number that only the device knows: the host need not wait for it."""
    group = optimizer.param_groups[0]
    return isinstance(optimizer, torch.optim.AdamW) and bool(group.get("fused")) and group["params"][0].is_cuda


def on_host(state: Any) -> Any:
    """A copy of nested dictionaries and lists with all tensors on the host."""
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state.detach().to("cpu", copy=True) if isinstance(state, Tensor) else state


def make_trainer(machine: Machine, plan: Optimisation, steps: int) -> lightning.Trainer:
    """A Trainer out of settings. Its own checkpoints and loggers are off: resume state and tracking are ours."""
    devices, num_nodes = started(machine.devices, machine.num_nodes)
    strategy: Any = machine.strategy
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(data_parallel_size=devices * num_nodes, tensor_parallel_size=1)
    if strategy == "auto" and devices * num_nodes > 1:
        strategy = "ddp"
    return lightning.Trainer(
        accelerator=machine.accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy,
        precision=precision_of(machine), max_steps=steps, max_epochs=-1, accumulate_grad_batches=machine.accumulate,
        gradient_clip_val=plan.clip or None, logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False, num_sanity_val_steps=0)
