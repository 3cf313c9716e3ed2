"""What trials share that no verdict can make: a short training loop, and what a model said, kept in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def train(model: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float, clip: float) -> None:
    """Train in place: AdamW, a tenth of the steps to warm up, then down in a line.

    Args:
        loss: step -> the loss of its batch, with a gradient.
        clip: largest norm of the gradient.
    """
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    paced = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: min(1.0, 10 * (i + 1) / steps) * (1 - i / steps))
    for step in range(steps):
        value = loss(step)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        paced.step()
    model.eval()


def kept(file: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in an .npz file, made and written first where it is not there."""
    if not file.is_file():
        said = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".tmp").open("wb") as out:
            np.savez(out, **said)  # type: ignore[arg-type]
        file.with_suffix(".tmp").replace(file)
    with np.load(file, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}
