"""A fine-tuned model's answers to samples that are looked at together, without their labels: what predict and shift
share. Such an answer depends on what else is asked about; by default none does.

Legend: n samples, B batch, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import yaml
from torch import Tensor

from models.heads.tuned import Tuned
from models.test_time.entropy import Batch, Tent, minimise_entropy
from models.test_time.lame import Lame, assign
from models.test_time.statistics import Norm, batch_norms_of, in_order_of_running, measured_anew, standardised_anew
from pipelines.settings import build
from pipelines.weights.tuned_checkpoints import probabilities

TestTime = Norm | Tent | Lame
WAYS: dict[str, TestTime] = {"norm": Norm(), "tent": Tent(), "lame": Lame()}
"""What a name stands for."""
BATCH_SIZE = 64
"""Samples at once where the way has no size of its own; changes nothing but memory."""


@dataclass(frozen=True)
class Adapted:
    """What came of it."""

    answers: np.ndarray
    """n O: calibrated probabilities, or numbers in the labels' units."""
    said: str
    """What was adapted, for the reader."""


def way_of(text: str) -> TestTime:
    """The way that a name, or settings as params.yaml would have them ({kind: tent, steps: 5}), stand for.

    Raises:
        ValueError: no such way; SettingsError: no such setting.
    """
    if text in WAYS:
        return WAYS[text]
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError:
        raw = None
    if not isinstance(raw, dict):
        raise ValueError(f"test time: found {text!r}, expected one of {', '.join(WAYS)}, or settings such as "
                         "'{kind: tent, steps: 5}'.")
    way: TestTime = build(TestTime, raw, "test_time")  # type: ignore[arg-type]
    return way


def adapted(model: Tuned, temperature: float, samples: Callable[[int], Iterator[Batch]], way: TestTime) -> Adapted:
    """Answer all samples together, after adapting to them. The model is afterwards what it was before.

    Args:
        samples: (batch size) -> all samples in order, (x, known) on the model's device, in batches of nearly that size.

    Raises:
        ValueError: this way means nothing for this model or task; the text says why.
    """
    model.eval()
    match way:
        case Norm():
            return _by_statistics(model, temperature, samples, way)
        case Tent():
            return _by_entropy(model, temperature, samples, way)
        case Lame():
            return _by_neighbours(model, temperature, samples, way)


def batches_of(count: int, size: int) -> list[tuple[int, int]]:
    """(first, last + 1) of as few batches as hold `count` samples, `size` each at the most, of nearly equal size: a
    leftover of one sample would have no statistics."""
    number = max(1, math.ceil(count / size))
    edges = [round(count * i / number) for i in range(number + 1)]
    return list(zip(edges, edges[1:], strict=False))


def _by_statistics(model: Tuned, temperature: float, samples: Callable[[int], Iterator[Batch]], way: Norm) -> Adapted:
    kind = model.loss.kind

    def answer(x: Tensor, known: Tensor | None) -> Tensor:
        return probabilities(kind, model(x, known), temperature).float().cpu()

    norms = in_order_of_running(batch_norms_of(model), model.predict, lambda: samples(BATCH_SIZE))
    with torch.no_grad():
        if norms:
            with measured_anew(model, model.predict, lambda: samples(BATCH_SIZE), way):
                told = [answer(x, known) for x, known in samples(BATCH_SIZE)]
            said = f"norm: the statistics of {len(norms)} batch norms were measured on these samples"
        else:
            first = next(iter(samples(BATCH_SIZE)))[0]
            if first.dim() < 4:
                raise ValueError("norm: found a model without batch norms on points, expected batch norms or channels "
                                 "of a grid: a cloud's scale is its own already, so there is nothing to measure. Take "
                                 "`tent` or `lame`.")
            told = [answer(x, known) for x, known in standardised_anew(lambda: samples(BATCH_SIZE), way)]
            said = ("norm: this model has no batch norms, so mean and deviation of the input channels were measured on "
                    "these samples")
    return Adapted(torch.cat(told).numpy(), said)


def _by_entropy(model: Tuned, temperature: float, samples: Callable[[int], Iterator[Batch]], way: Tent) -> Adapted:
    kind = model.loss.kind
    logits = minimise_entropy(model, lambda x, known: model.predict(x, known) / temperature,
                              samples(way.batch_size), kind, way)
    told = probabilities(kind, torch.cat(logits).float(), 1.0).cpu()
    how = "each batch from the checkpoint's weights" if way.episodic else "batch after batch"
    return Adapted(told.numpy(), f"tent: scales and shifts of the norms were tuned to less entropy, {how}")


@torch.no_grad()
def _by_neighbours(model: Tuned, temperature: float, samples: Callable[[int], Iterator[Batch]], way: Lame) -> Adapted:
    kind = model.loss.kind
    if kind == "regression":
        raise ValueError("lame: found a regression, expected classes or findings: it agrees on probabilities. Take "
                         "`norm`, or none.")
    pairs = [model.predict_with_features(x, known) for x, known in samples(BATCH_SIZE)]
    logits, features = (torch.cat(parts).float().cpu() for parts in zip(*pairs, strict=True))
    p = probabilities(kind, logits.double(), temperature)
    found = ([assign(p, features, way)] if kind == "single_label" else
             [assign(torch.stack([1 - finding, finding], 1), features, way) for finding in p.unbind(1)])
    told = found[0].probabilities if kind == "single_label" else torch.stack(
        [one.probabilities[:, 1] for one in found], 1)
    steps = max(len(one.energies) - 1 for one in found)
    stopped = "" if all(one.converged for one in found) else ", where it was stopped before it had settled"
    return Adapted(told.float().numpy(), f"lame: each answer was drawn towards those of its {way.neighbours} nearest "
                                         f"samples, in {steps} steps{stopped}")
