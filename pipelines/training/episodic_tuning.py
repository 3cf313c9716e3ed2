"""Trains adapters on episodes of training groups, the encoder frozen: each step is a few-shot task, and the loss is how
badly the nearest class mean solves it (prototypical networks, Snell et al. 2017; prompts tuned so, as in "Meta Visual
Prompt Tuning", TGRS 2024).

Legend: N classes, K support rows per class, q query rows, E features.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm  # type: ignore[import-untyped]

from models.adapters.adapter import AdapterSettings
from models.adapters.prompts import Prompts
from models.adapters.seams import added
from models.encoder.chance import key_of, seed_dropout
from models.heads.tuned import Tuned
from pipelines.scoring.episodes import Distance, Episode, likeness
from pipelines.training.batches import Source
from pipelines.training.training import TrainingFailed


@dataclass(frozen=True)
class EpisodicTuning:
    """What is trained on episodes, and how."""

    adapters: tuple[AdapterSettings, ...] = (Prompts(num_prompts=10, deep=True),)
    """What is added to the encoder, in this order; it alone is trained."""
    distance: Distance = "euclidean"
    """How like two features are, in the loss."""
    ways: int = 5
    """Classes per training episode; of fewer, all."""
    shots: int = 5
    """Support groups per class."""
    queries: int = 5
    """Query groups per class, at most."""
    steps: int = 200
    """Updates, one episode each."""
    learning_rate: float = 1e-3
    """Peak of AdamW; a tenth of the steps to warm up, then a cosine to 0."""
    weight_decay: float = 0.0
    """Pull on what is trained towards 0."""
    validations: int = 5
    """How often the loss on episodes with validation queries is looked at; the best weights are kept, those before the
    first step among them."""
    validation_episodes: int = 20
    """Episodes in that loss, always the same ones."""

    def __post_init__(self) -> None:
        if not self.adapters:
            raise ValueError("adapters: found none, expected at least one, such as {kind: prompts}. To tune nothing, "
                             "leave `prompts` out.")
        if self.ways < 2 or min(self.shots, self.queries, self.steps, self.validations, self.validation_episodes) < 1:
            raise ValueError(f"found ways {self.ways}, shots {self.shots}, queries {self.queries}, steps {self.steps}, "
                             f"validations {self.validations}, validation_episodes {self.validation_episodes}, "
                             "expected at least two ways and at least 1 of the others.")


Standardise = Callable[[Tensor], Tensor]


def tune(model: Tuned, settings: EpisodicTuning, source: Source, training: Callable[[int], Episode],
         validation: list[Episode], standardise: Standardise, device: torch.device, seed: int,
         log: Callable[[int, dict[str, float]], None]) -> dict[str, Any]:
    """Train what adapters have added to a frozen encoder; the best of it by validation loss is left in the model.

    Args:
        training: number -> episode.
        standardise: features -> features.
        log: (step, numbers).

    Returns:
        val_loss before and at its best, and the step of the latter.

    Raises:
        TrainingFailed: the loss is not finite.
    """
    model.to(device)
    trained = [value for _, value in added(model.encoder)]
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, settings.steps))

    def val_loss() -> float:
        model.eval()
        with torch.no_grad():
            return float(np.mean([float(_loss(model, one, settings, source, standardise, device))
                                  for one in validation]))

    first = val_loss()
    best: dict[str, Any] = {"val_loss": first, "step": 0, "weights": [value.detach().clone() for value in trained]}
    every = max(settings.steps // settings.validations, 1)
    bar = tqdm(range(settings.steps), desc="episodes", unit="step", leave=False,
               mininterval=0.5 if sys.stderr.isatty() else 30)
    for step in bar:
        seed_dropout(key_of(seed, step), device)
        model.train()
        loss = _loss(model, training(step), settings, source, standardise, device)
        if not bool(loss.isfinite()):
            raise TrainingFailed(f"few_shot: found a loss that is not finite at step {step}, expected a number. Lower "
                                 f"prompts.learning_rate, which is {settings.learning_rate:g}.")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            now = val_loss()
            log(step + 1, {"loss": float(loss.detach()), "val_loss": now})
            if now < best["val_loss"]:
                best.update(val_loss=now, step=step + 1, weights=[value.detach().clone() for value in trained])
    with torch.no_grad():
        for value, kept in zip(trained, best["weights"], strict=True):
            value.copy_(kept)
    model.eval()
    return {"val_loss_before": first, "val_loss": best["val_loss"], "best_step": best["step"]}


def _loss(model: Tuned, episode: Episode, settings: EpisodicTuning, source: Source, standardise: Standardise,
          device: torch.device) -> Tensor:
    """Cross-entropy of the query rows."""
    ways, shots = episode.support.shape
    raw, _ = source.read(np.concatenate([episode.support.reshape(-1), episode.query]), None)
    x, known = source.normalise(raw.to(device))
    features = standardise(model.features(x, known))
    support = features[:ways * shots].reshape(ways, shots, -1)
    truth = torch.from_numpy(episode.truth).to(device)
    return cross_entropy(likeness(features[ways * shots:], support, settings.distance), truth)


def _share(step: int, steps: int) -> float:
    """Of the peak learning rate."""
    warm = max(steps // 10, 1)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))
