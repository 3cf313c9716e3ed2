"""Making a model surer of the samples that it is asked about: entropy minimisation (Wang et al. 2021, "Tent: Fully
Test-Time Adaptation by Entropy Minimization"). Scales and shifts of its norms alone are trained, and put back after.

Legend: B batch, C channels, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

Batch = tuple[Tensor, Tensor | None]
"""x B C ... and which of it is known, as a model takes them."""


@dataclass(frozen=True)
class Tent:
    """Entropy minimisation by the norms' scales and shifts."""

    kind: Literal["tent"] = "tent"
    learning_rate: float = 1e-3
    """Of Adam."""
    steps: int = 1
    """Updates per batch; answers are given after them."""
    batch_size: int = 64
    """Samples that are looked at together."""
    episodic: bool = False
    """Begin every batch with the checkpoint's weights. False: go on with what the batches before have made of them."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.steps < 1 or self.batch_size < 2:
            raise ValueError(f"tent: found learning_rate {self.learning_rate}, steps {self.steps} and batch_size "
                             f"{self.batch_size}, expected above 0, at least 1 and at least 2.")


def norms_of(model: nn.Module) -> list[nn.Module]:
    """Layer, group and batch norms with a scale or shift of their own."""
    return [module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm | BatchNorm)
            and any(True for _ in module.parameters(recurse=False))]


def entropy(logits: Tensor, kind: str) -> Tensor:
    """B O -> B, in nats: of the classes (single_label), or of all findings together (multi_label)."""
    if kind == "single_label":
        log_p = logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)
    return -(logits.sigmoid() * logsigmoid(logits) + (-logits).sigmoid() * logsigmoid(-logits)).sum(-1)


def minimise_entropy(model: nn.Module, answer: Callable[[Tensor, Tensor | None], Tensor], batches: Iterable[Batch],
                     kind: str, settings: Tent) -> list[Tensor]:
    """Logits of every batch, B O each, after its updates. The model is afterwards what it was before, to the bit.

    Args:
        answer: (x, known) -> logits B O, through `model`.

    Batch norms normalise by the batch itself while this lasts, as in the paper.

    Raises:
        ValueError: the task has no entropy, or the model no norms that its answers depend on.
    """
    if kind == "regression":
        raise ValueError("tent: found a regression, expected classes or findings: a number has no entropy to minimise. "
                         "Take `norm`, or none.")
    norms = norms_of(model)
    weights = [weight for norm in norms for weight in norm.parameters(recurse=False)]
    told = []
    with left_as_found(model, norms), torch.enable_grad():
        begin = [weight.detach().clone() for weight in weights]
        optimiser = torch.optim.Adam(weights, settings.learning_rate) if weights else None
        for x, known in batches:
            if optimiser is None or settings.episodic:
                _put(weights, begin)
                optimiser = torch.optim.Adam(weights, settings.learning_rate) if weights else None
            for _ in range(settings.steps):
                loss = entropy(answer(x, known), kind).mean()
                if optimiser is None or not loss.requires_grad:
                    raise ValueError("tent: found no norm that the answers depend on, expected some to train. Take "
                                     "`lame`, which needs none.")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                told.append(answer(x, known))
    return told


@contextmanager
def left_as_found(model: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    """Train these norms' own weights and nothing else; put weights, statistics and modes back at the end, whatever
    happens."""
    wanted = [(weight, weight.requires_grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    state = [{name: value.detach().clone() for name, value in norm.state_dict().items()} for norm in norms]
    try:
        model.eval()
        model.requires_grad_(False)
        for norm in norms:
            norm.requires_grad_(True)
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.training = True
        yield
    finally:
        for weight, before in wanted:
            weight.requires_grad_(before)
            weight.grad = None
        for module, training in modes:
            module.training = training
        for norm, before_all in zip(norms, state, strict=True):
            norm.load_state_dict(before_all)


@torch.no_grad()
def _put(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
