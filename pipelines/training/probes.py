"""Frozen features: a linear layer on them, or the vote of the nearest ones.

Legend: n rows, E features, O outputs, L numbers per label.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.heads.predict_sample import PredictSample
from models.heads.task_loss import TaskLoss
from models.heads.tuned import PredictByNeighbours, Tuned
from pipelines.training.batches import Source, in_order

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Weight penalties tried for the linear layer; validation loss chooses."""
MAX_STEPS = 200
"""L-BFGS iterations: the problem is convex and ends well before."""


def frozen_features(model: Tuned, source: Source, device: torch.device, batch_size: int = 128) -> Tensor:
    """The pooled features that the head sees: n E float32, on the host."""
    model.to(device).eval()
    return torch.from_numpy(in_order(source, lambda batch: model.features(batch.x, batch.known), batch_size, device))


def labels_of(source: Source) -> Tensor:
    """n L float32 of the source's own rows, NaN unknown."""
    assert source.labels is not None, "a probe needs labels"
    return torch.from_numpy(source.labels[source.rows])


def fit_linear(model: Tuned, train: Source, val: Source, device: torch.device) -> int:
    """Logistic (or ridge) regression on frozen features, penalty chosen on validation. Returns L-BFGS iterations.

    Features are standardised by the training rows' statistics first, as MAE's linear probe does: masked encoders leave
    them at very different scales.
    """
    head = model.head
    assert isinstance(head, PredictSample) and isinstance(head.norm, nn.BatchNorm1d), "FinetuneRun has checked it"
    x, x_val = frozen_features(model, train, device), frozen_features(model, val, device)
    assert head.norm.running_mean is not None and head.norm.running_var is not None
    head.norm.running_mean.copy_(x.mean(0))
    head.norm.running_var.copy_(x.var(0, correction=0))
    model.cpu().eval()
    x, x_val = head.norm(x), head.norm(x_val)
    best: tuple[float, dict[str, Tensor]] = (float("inf"), {})
    for penalty in PENALTIES:
        _minimise(model, head.output, x, labels_of(train), penalty)
        with torch.no_grad():
            loss = float(model.loss(head.output(x_val), labels_of(val)))
        if loss < best[0]:
            best = (loss, {key: value.clone() for key, value in head.output.state_dict().items()})
    head.output.load_state_dict(best[1])
    return MAX_STEPS * len(PENALTIES)


def fit_neighbours(model: Tuned, train: Source, device: torch.device) -> int:
    """Remember the features and labels of the training rows. Returns the updates made: none."""
    assert isinstance(model.head, PredictByNeighbours), "the settings pair protocol knn with a nearest head"
    features = frozen_features(model, train, device)
    labels = labels_of(train)
    assert isinstance(model.loss, TaskLoss), "a nearest head knows no masks"
    if model.loss.kind == "single_label":
        labels = nn.functional.one_hot(labels[:, 0].long(), model.head.labels.shape[1]).float()
    elif model.loss.kind == "regression":
        labels = (labels - model.loss.mean.cpu()) / model.loss.std.cpu()
    model.head.remember(features, labels)
    return 0


def _minimise(model: Tuned, layer: nn.Linear, x: Tensor, labels: Tensor, penalty: float) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=MAX_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(layer(x), labels) + penalty * layer.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
