"""Which weights move how fast: the optimiser, its groups by layer and decay, warm-up and cosine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelines.training.optimisers import Adan, CautiousAdamW

if TYPE_CHECKING:
    from pipelines.training.training import Optimisation


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
