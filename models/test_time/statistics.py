"""Normalising by the samples that a model is asked about, in place of those that it learnt from: no weight is touched.

Batch norms get the mean and variance of what comes to them (Schneider et al. 2020, "Improving robustness against common
corruptions by covariate shift adaptation"; Nado et al. 2020). A model without batch norms, as most vision transformers
are, has only one statistic of its training data in it: the mean and deviation that its input channels are standardised
by. There these are measured anew. Layer norms need nothing, since they measure every token by itself.

Legend: B batch, C channels, L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from models.test_time.entropy import Batch

Call = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Norm:
    """Statistics measured on the samples that are asked about."""

    kind: Literal["norm"] = "norm"
    source_weight: float = 16.0
    """The old statistics count as so many samples, so that a few new ones do not overturn them. 0: the new ones alone.
    """

    def __post_init__(self) -> None:
        if self.source_weight < 0:
            raise ValueError(f"norm: found source_weight {self.source_weight}, expected at least 0.")


def batch_norms_of(model: nn.Module) -> list[BatchNorm]:
    """Those with statistics of their training data."""
    return [module for module in model.modules() if isinstance(module, BatchNorm) and module.running_mean is not None]


@contextmanager
def measured_anew(model: nn.Module, answer: Call, batches: Callable[[], Iterable[Batch]],
                  settings: Norm) -> Iterator[None]:
    """While this lasts, the model's batch norms have the statistics of these samples. They are put back at the end.

    One norm after the other, in the order in which they run, each with all samples: the result depends neither on how
    they lie in batches nor on their order, up to rounding.

    Args:
        answer: (x, known) -> anything, through `model`. batches: all samples, once per call.
    """
    norms = batch_norms_of(model)
    before = [{name: value.clone() for name, value in norm.state_dict().items()} for norm in norms]
    try:
        for norm in in_order_of_running(norms, answer, batches):
            _measure(norm, answer, batches, settings.source_weight)
        yield
    finally:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)


@torch.no_grad()
def in_order_of_running(norms: list[BatchNorm], answer: Call,
                        batches: Callable[[], Iterable[Batch]]) -> list[BatchNorm]:
    """Those that take part in an answer, in their order."""
    ran: list[BatchNorm] = []
    hooks = [norm.register_forward_pre_hook(lambda module, _: ran.append(module)) for norm in norms]
    try:
        for x, known in batches():
            answer(x, known)
            break
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(ran))


@torch.no_grad()
def _measure(norm: BatchNorm, answer: Call, batches: Callable[[], Iterable[Batch]], source_weight: float) -> None:
    """Give one norm the mean and variance of all that comes to it, mixed with its own."""
    total = _Moments()
    hook = norm.register_forward_pre_hook(lambda _, given: total.add(given[0].transpose(0, 1).flatten(1)))
    samples = 0
    try:
        for x, known in batches():
            answer(x, known)
            samples += len(x)
    finally:
        hook.remove()
    assert norm.running_mean is not None and norm.running_var is not None
    own = samples / (samples + source_weight)
    norm.running_mean.lerp_(total.mean.to(norm.running_mean.dtype), own)
    norm.running_var.lerp_(total.variance.to(norm.running_var.dtype), own)


class _Moments:
    """Mean and variance (biased) of rows of numbers, C each, gathered in float64."""

    def __init__(self) -> None:
        self.count: Any = 0.0
        self.sum: Any = 0.0
        self.square: Any = 0.0

    def add(self, values: Tensor, known: Tensor | None = None) -> None:
        """values C n, known C n; what is not known must be 0."""
        values = values.double()
        count = float(values.shape[1]) if known is None else known.double().sum(1)
        self.count = self.count + count
        self.sum = self.sum + values.sum(1)
        self.square = self.square + values.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """C; 0 where nothing is known."""
        found: Tensor = self.sum / _at_least_one(self.count)
        return found

    @property
    def variance(self) -> Tensor:
        """C"""
        found: Tensor = self.square / _at_least_one(self.count) - self.mean.square()
        return found.clamp(min=0.0)


def _at_least_one(count: Any) -> Any:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1.0)


@torch.no_grad()
def standardised_anew(batches: Callable[[], Iterable[Batch]], settings: Norm) -> Iterator[Batch]:
    """The same samples, each channel standardised by all of them together, B C ... each.

    x comes with mean 0 and variance 1 over the training data, so these are the old statistics.
    """
    total, samples = _Moments(), 0
    for x, known in batches():
        total.add(x.transpose(0, 1).flatten(1), None if known is None else known.transpose(0, 1).flatten(1))
        samples += len(x)
    own = samples / max(samples + settings.source_weight, 1e-12)
    mean, variance = own * total.mean, (1 - own) + own * total.variance
    for x, known in batches():
        shape = (1, -1, *(1,) * (x.dim() - 2))
        there = (x - mean.view(shape).to(x.dtype)) / variance.clamp(min=1e-6).sqrt().view(shape).to(x.dtype)
        yield (there if known is None else there.masked_fill(~known, 0.0)), known
