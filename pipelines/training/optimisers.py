"""The optimisers that torch does not have: Adan, and AdamW that moves cautiously.

Lists of tensors go through torch's foreach operations: one kernel for many weights instead of one each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-8
"""Added to the root of the second moment, as AdamW and Adan's release do."""
LEAST_SHARE = 1e-3
"""The cautious update is enlarged at most 1 / this."""

Group = dict[str, Any]


class Adan(torch.optim.Optimizer):
    """Adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677, algorithm 1, without restarts).

    Three averages: of the gradient, of its change since the last step, and of the square of what Nesterov's method
    would look at, gradient + betas[1] * change. `betas` are the shares kept, as in the release (0.98, 0.92, 0.99); the
    paper writes 1 minus these. Averages begin at 0 and are corrected for that, as in the release. Weight decay is
    proximal: a division by 1 + rate * decay after the step.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
                 weight_decay: float = 0.0, *, cautious: bool = False) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.cautious = cautious

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every weight that has a gradient. Returns what `closure` does."""
        return _update_groups(self, self._update, closure)

    def _update(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            if not self.state[weight]:
                self.state[weight] = {"step": 0, "mean": torch.zeros_like(weight), "change": torch.zeros_like(weight),
                                      "square": torch.zeros_like(weight), "previous": gradient.clone()}
            self.state[weight]["step"] += 1
        steps, mean, change, square, previous = _columns(self, weights, "step", "mean", "change", "square", "previous")
        first, second, third = group["betas"]
        difference = torch._foreach_sub(gradients, previous)
        torch._foreach_copy_(previous, gradients)
        torch._foreach_lerp_(mean, gradients, 1 - first)
        torch._foreach_lerp_(change, difference, 1 - second)
        ahead = torch._foreach_add(gradients, difference, alpha=second)
        torch._foreach_mul_(square, third)
        torch._foreach_addcmul_(square, ahead, ahead, 1 - third)
        direction = torch._foreach_div(mean, [1 - first ** step for step in steps])
        torch._foreach_add_(direction, torch._foreach_div(change, [(1 - second ** step) / second for step in steps]))
        torch._foreach_div_(direction, _root(square, [1 - third ** step for step in steps]))
        if self.cautious:
            keep_agreeing(direction, gradients)
        torch._foreach_add_(weights, direction, alpha=-group["lr"])
        torch._foreach_div_(weights, 1 + group["lr"] * group["weight_decay"])


class CautiousAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) whose update leaves out what points against the gradient: C-AdamW of Liang et
    al. 2024, arXiv 2411.16085. Weight decay is not masked."""

    def __init__(self, parameters: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.999),
                 weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every weight that has a gradient. Returns what `closure` does."""
        return _update_groups(self, self._update, closure)

    def _update(self, group: Group, weights: list[Tensor], gradients: list[Tensor]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
            self.state[weight]["step"] += 1
        steps, mean, square = _columns(self, weights, "step", "mean", "square")
        first, second = group["betas"]
        torch._foreach_lerp_(mean, gradients, 1 - first)
        torch._foreach_mul_(square, second)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - second)
        direction = torch._foreach_div(mean, [1 - first ** step for step in steps])
        torch._foreach_div_(direction, _root(square, [1 - second ** step for step in steps]))
        keep_agreeing(direction, gradients)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, direction, alpha=-group["lr"])


def keep_agreeing(direction: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Set to 0, in place, what a step along -direction would do against the gradient, and enlarge the rest of each
    tensor by one over the share that is left (Liang et al. 2024, arXiv 2411.16085)."""
    for one, product in zip(direction, torch._foreach_mul(list(direction), list(gradients)), strict=True):
        agrees = (product > 0).to(one.dtype)
        one.mul_(agrees / agrees.mean().clamp(min=LEAST_SHARE))


def _update_groups(optimiser: torch.optim.Optimizer, update: Callable[[Group, list[Tensor], list[Tensor]], None],
                   closure: Callable[[], float] | None) -> float | None:
    """Update each group's weights that have a gradient. Lightning computes loss and gradients inside the step, by
    `closure`; what it returns is returned."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in optimiser.param_groups:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if weights:
            update(group, weights, [weight.grad for weight in weights])
    return loss


def _columns(optimiser: torch.optim.Optimizer, weights: list[Tensor], *names: str) -> list[list[Any]]:
    """The state of all weights, one list per name."""
    return [[optimiser.state[weight][name] for weight in weights] for name in names]


def _root(square: list[Tensor], correction: list[float]) -> tuple[Tensor, ...]:
    """sqrt(square / correction) + EPSILON"""
    root = torch._foreach_div(square, correction)
    torch._foreach_sqrt_(root)
    torch._foreach_add_(root, EPSILON)
    return root
