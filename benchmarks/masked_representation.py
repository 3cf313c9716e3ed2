"""What masked representation modelling adds to self-training, on made pictures of two domains.

A disc and a bar lie on noise; the disc alone is class 1. In the target the contrast is lower, a shadow falls across the
picture and the noise is coarser. Labels are the source's alone. Arms share first weights, samples and order.

    python -m benchmarks.masked_representation --seeds 5 --out build/masked_representation.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from domains.publish import write_text
from models.encoder.chance import chance_of
from models.encoder.tokenizers import Grid
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.mask_loss import MaskLoss
from models.heads.segment_grid import SegmentHead
from models.heads.tuned import Tuned, build_head
from models.objectives.masked_representation import MaskedRepresentation, MaskedRepresentations

SIDE, PATCH = 32, 4
ARMS: dict[str, dict[str, float] | None] = {
    "source_only": None,
    "averaged_teacher": {"weight": 1.0, "rebuild": 0.0},
    "masked_representation": {"weight": 1.0, "rebuild": 1.0},
    "rebuilt_alone": {"weight": 0.0, "rebuild": 1.0},
}


def pictures(count: int, target: bool, seed: int) -> tuple[Tensor, Tensor]:
    """count 1 SIDE SIDE floats and count SIDE SIDE classes."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    place = 8 + torch.rand(count, 4, generator=draw) * (SIDE - 16)
    radius = 3 + 3 * torch.rand(count, 1, 1, generator=draw)
    disc = (y - place[:, 0, None, None]) ** 2 + (x - place[:, 1, None, None]) ** 2 < radius ** 2
    bar = ((y - place[:, 2, None, None]).abs() < 1.5) & ((x - place[:, 3, None, None]).abs() < 8) & ~disc
    contrast = 0.9 if target else 1.6
    values = contrast * (disc.float() + bar.float())
    noise = torch.randn(count, 1, SIDE, SIDE, generator=draw)
    if target:
        coarse = interpolate(torch.randn(count, 1, SIDE // 4, SIDE // 4, generator=draw), (SIDE, SIDE), mode="bilinear")
        slope = torch.rand(count, 2, 1, 1, generator=draw) * 2 - 1
        shadow = slope[:, :1, 0, 0, None] * (y / SIDE - 0.5) + slope[:, 1:, 0, 0, None] * (x / SIDE - 0.5)
        noise = 0.5 * noise + 0.5 * coarse + 1.2 * shadow[:, None]
    else:
        noise = 0.5 * noise
    return values[:, None] + noise, disc.long()


def model_of(seed: int) -> Tuned:
    """A small transformer with a pyramid head."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderSettings(tokenizer=Grid(patch=(PATCH, PATCH)), size=Shape(48, 4, 4)), 1)
    return Tuned(encoder, build_head(SegmentHead(width=8), 48, 1, encoder=encoder), MaskLoss())


def dice(model: Tuned, x: Tensor, truth: Tensor) -> float:
    """Mean over samples."""
    with torch.no_grad():
        found = torch.cat([model.eval()(part).argmax(1) == 1 for part in x.split(64)])
    both = (found & (truth == 1)).sum((1, 2))
    return float((2 * both / (found.sum((1, 2)) + (truth == 1).sum((1, 2))).clamp(min=1)).mean())


def train(arm: str, seed: int, steps: int, batch: int) -> dict[str, float]:
    """Dice at source and target of one arm."""
    (x, truth), (other, _) = pictures(256, False, 10 * seed), pictures(256, True, 10 * seed + 1)
    model, asked = model_of(seed), ARMS[arm]
    torch.manual_seed(seed + 1000)
    beside = None if asked is None else MaskedRepresentations(
        MaskedRepresentation(width=48, num_heads=4, threshold=0.8, **asked), model)  # type: ignore[arg-type]
    weights = [*model.parameters(), *(beside.rebuilder.parameters() if beside else [])]
    optimiser = torch.optim.AdamW(weights, 1e-3, weight_decay=0.05)
    order = np.random.default_rng(seed)
    for step in range(steps):
        own, theirs = (torch.from_numpy(order.integers(0, 256, batch)) for _ in range(2))
        model.train()
        loss = model.mistakes(x[own], None, torch.ones(batch, 1), truth[own])
        if beside is not None:
            loss = loss + beside(model, other[theirs], None, chance_of(seed, step, 0, theirs, torch.zeros_like(theirs)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if beside is not None:
            beside.teacher.follow(model, (step + 1) / steps)
    kept = model if beside is None else beside.teacher.model
    return {name: dice(kept, *pictures(200, name == "target", 10 * seed + 5)) for name in ("source", "target")}


def report(scores: dict[str, list[dict[str, float]]]) -> list[str]:
    """A line per arm: means and standard deviations over seeds, and the paired difference to self-training."""
    lines = []
    usual = np.array([one["target"] for one in scores.get("averaged_teacher", next(iter(scores.values())))])
    for arm, found in scores.items():
        source, target = (np.array([one[name] for one in found]) for name in ("source", "target"))
        gap = target - usual
        lines.append(f"{arm:22} source {source.mean():.3f}  target {target.mean():.3f} (sd {target.std(ddof=1):.3f})  "
                     f"against averaged_teacher {gap.mean():+.3f} (sd {gap.std(ddof=1):.3f}, higher in "
                     f"{int((gap > 0).sum())} of {len(gap)})")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Train all arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    scores: dict[str, list[dict[str, float]]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):
        for arm in options.arms:
            scores[arm].append(train(arm, seed, options.steps, options.batch))
            print(f"seed {seed} {arm}: {scores[arm][-1]}", flush=True)
    print("\n".join(report(scores)))
    if options.out:
        write_text(options.out, json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
