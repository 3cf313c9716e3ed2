"""Domain-adversarial training (Ganin & Lempitsky 2015; Ganin et al. 2016): one network learns to tell by features
whether a sample is of the labelled source or of the target, and the encoder learns to leave it nothing to tell by.

Legend: B batch, E width of pooled features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from models.objectives.running_share import RunningShare


@dataclass(frozen=True)
class DomainAdversarial:
    """Labels of the source, and features that source and target have in common."""

    kind: Literal["domain_adversarial"] = "domain_adversarial"
    weight: float = 1.0
    """Strength of the reversed gradient at the end of the run; it begins at 0."""
    sharpness: float = 10.0
    """How fast it grows: weight x (2 / (1 + exp(-sharpness x share of the steps)) - 1), the paper's gamma."""
    hidden: int = 256
    """Width of both hidden layers of the network that tells the domains apart (1024 in the paper's larger networks, 100
    in its smallest)."""

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.sharpness <= 0 or self.hidden < 1:
            raise ValueError(f"domain_adversarial: found weight {self.weight}, sharpness {self.sharpness} and hidden "
                             f"{self.hidden}, expected more than 0, more than 0 and at least 1.")


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(strength)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        strength, = ctx.saved_tensors
        return -strength * gradient, None


def reverse_gradient(x: Tensor, strength: Tensor) -> Tensor:
    """x as it is; on the way back its gradient times -strength (a scalar)."""
    out: Tensor = _Reverse.apply(x, strength)
    return out


def strength_at(share: float, sharpness: float) -> float:
    """How much of the full strength there is when this share of the steps is done: 0 at the start, towards 1."""
    return 2 / (1 + math.exp(-sharpness * share)) - 1


class DomainAdversary(nn.Module):
    """The network that tells the domains apart, behind a reversed gradient."""

    strength: Tensor

    def __init__(self, settings: DomainAdversarial, width: int) -> None:
        super().__init__()
        self.settings = settings
        hidden = settings.hidden
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                    nn.Linear(hidden, 1))
        self.register_buffer("strength", torch.zeros(()))
        self.told = RunningShare(0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Pooled features B E of either domain -> scalar: how badly the domains are told apart. Its gradient teaches
        this network to tell them, and, reversed, whoever made the features to prevent it."""
        features = torch.cat([source, target])
        domain = torch.cat([source.new_zeros(len(source)), source.new_ones(len(target))])            # 2B
        guess = self.layers(reverse_gradient(features, self.strength))[:, 0]                         # 2B
        self.told.note((guess > 0) == (domain > 0.5))
        return binary_cross_entropy_with_logits(guess, domain)

    def after_step(self, share: float) -> None:
        """The strength of the next step's reversal; share: of the steps that is done."""
        self.strength.fill_(self.settings.weight * strength_at(share, self.settings.sharpness))
        self.told.settle()

    def shown(self) -> dict[str, float]:
        """For curves: which share of samples' domains is told right. 0.5: by chance, as is hoped for."""
        return {"domains_told": float(self.told.value)}
