"""Answers that agree among neighbours: Laplacian adjusted maximum-likelihood estimation (Boudiaf et al. 2022,
"Parameter-free Online Test-time Adaptation"; code in github.com/fiveai/LAME). No weight is touched.

Given what a model says of each sample, p, the answers z minimise

    F(z) = sum_i KL(z_i || p_i) - 1/2 sum_ij w_ij <z_i, z_j>,

close to what was said, and alike where features are. w joins each sample with its nearest in features, half from each
side, so that it is symmetric: then F falls at every step, and its fixed points are z_i = softmax(log p_i + (w z)_i).

Legend: n samples, K classes, E width, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-10
"""Probabilities are kept from 0, whose logarithm would hold a sample for ever."""
CHUNK = 1024
"""Samples whose distances to all others are held at once."""


@dataclass(frozen=True)
class Lame:
    """Answers that agree among neighbours; all samples are answered together."""

    kind: Literal["lame"] = "lame"
    neighbours: int = 5
    """How many nearest samples each is joined with."""
    tolerance: float = 1e-8
    """Stop when F falls by less than this share of itself."""
    max_steps: int = 1000
    """Stop then in any case, which is said."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.max_steps < 1 or self.tolerance <= 0:
            raise ValueError(f"lame: found {self.neighbours} neighbours, {self.max_steps} steps and tolerance "
                             f"{self.tolerance}, expected at least 1 of the first two and a tolerance above 0.")


@dataclass(frozen=True)
class Assigned:
    """What came of it."""

    probabilities: Tensor
    """n K float64, each row sums to 1."""
    energies: tuple[float, ...]
    """F before the first step and after each; it never rises."""
    converged: bool
    """Whether it stopped because F stopped falling."""


def assign(probabilities: Tensor, features: Tensor, settings: Lame) -> Assigned:
    """Answers that agree among samples whose features point the same way.

    Args:
        probabilities: n K, each row sums to 1. features: n E.
    """
    return settle(probabilities, nearest(features, settings.neighbours), settings)


def settle(probabilities: Tensor, near: Tensor, settings: Lame) -> Assigned:
    """Minimise F from z = p on, for neighbours near n k.

    The steps of the paper are z_i <- softmax(log p_i + (w z)_i), all samples at once. F falls at each if w has no
    eigenvalue under -2, since one step's bound is off by -1/2 <d, w d> for the change d, and the divergence from z to
    its update is at least |d|^2. Row sums r_i bound the eigenvalues, so a sample with r_i > 2 goes only the share
    2 / r_i of the way, in logarithms. Fixed points stay the same.
    """
    log_p = probabilities.double().clamp(min=SMALLEST).log()
    share = 2 / joined(near, torch.ones_like(log_p[:, :1])).clamp(min=2)             # n 1
    log_z = log_p.log_softmax(-1)
    energies = [energy(log_z, log_p, near)]
    for _ in range(settings.max_steps):
        log_z = ((1 - share) * log_z + share * (log_p + joined(near, log_z.exp()))).log_softmax(-1)
        energies.append(energy(log_z, log_p, near))
        if energies[-2] - energies[-1] <= settings.tolerance * max(1.0, abs(energies[-1])):
            return Assigned(log_z.exp(), tuple(energies), True)
    return Assigned(log_z.exp(), tuple(energies), False)


def nearest(features: Tensor, neighbours: int) -> Tensor:
    """n E -> n k: the others whose features point the same way most; k is `neighbours`, or all if they are fewer."""
    directions = F.normalize(features.double(), dim=-1)
    count = min(neighbours, len(directions) - 1)
    rows = []
    for first in range(0, len(directions), CHUNK):
        likeness = directions[first:first + CHUNK] @ directions.T
        own = torch.arange(len(likeness), device=likeness.device)
        likeness[own, first + own] = -torch.inf
        rows.append(likeness.topk(count, dim=-1).indices)
    return torch.cat(rows)


def joined(near: Tensor, z: Tensor) -> Tensor:
    """w z for w = (A + A') / 2, where A_ij is 1 if j is in near_i. near n k, z n K -> n K"""
    from_near = z[near].sum(1)
    to_near = torch.zeros_like(z).index_add_(0, near.reshape(-1), z.repeat_interleave(near.shape[1], 0))
    return (from_near + to_near) / 2


def energy(log_z: Tensor, log_p: Tensor, near: Tensor) -> float:
    """F(z)"""
    z = log_z.exp()
    return float((z * (log_z - log_p)).sum() - (z * joined(near, z)).sum() / 2)
