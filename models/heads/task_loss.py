"""How wrong predictions are, by kind of task. An unknown label is masked from the loss; it is never a negative.

Legend: B batch, O outputs, L numbers per label: 1 for single_label (the class index), O otherwise. NaN = unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Imbalance:
    """What to do when some classes are rare."""

    weighting: Literal["none", "balanced", "sqrt"] = "balanced"
    """Weight of a class in the loss: none, inverse frequency in the training split, or its square root."""
    limit: float = 10.0
    """Largest weight, so that a class seen once cannot carry the loss."""


class TaskLoss(nn.Module):
    """Cross-entropy, masked binary cross-entropy or squared error of standardised numbers.

    A mean over known labels. While training it is divided by how many a batch has on average, not by how many this one
    has: so micro-batches, and the shares of several devices, add up to their batch wherever the unknown ones lie.
    """

    weight: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, num_outputs: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.kind, self.label_smoothing = kind, label_smoothing
        self.register_buffer("weight", torch.ones(num_outputs))
        self.register_buffer("mean", torch.zeros(num_outputs))
        self.register_buffer("std", torch.ones(num_outputs))
        self.known_per_row: float | None = None
        """Labels that a training row has on average; None before `fit`."""

    def fit(self, labels: Tensor, imbalance: Imbalance) -> None:
        """Take class weights, or the mean and scale of numbers, from the training labels (n L)."""
        self.known_per_row = float((~labels.isnan()).sum(1).float().mean())
        if self.kind == "regression":
            for i, column in enumerate(labels.T):
                seen = column[~column.isnan()]
                self.mean[i], self.std[i] = seen.mean(), seen.std(correction=0).clamp(min=1e-6)
        elif imbalance.weighting != "none":
            self.weight.copy_(_class_weights(self.kind, labels, len(self.weight), imbalance))

    def forward(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """prediction B O, labels B L -> scalar; 0 when every label of the batch is unknown."""
        known = ~labels.isnan()
        count: Tensor | float = known.sum().clamp(min=1)
        if self.training and self.known_per_row:
            count = len(labels) * self.known_per_row
        match self.kind:
            case "single_label":
                target = labels[:, 0].nan_to_num(nan=-100).long()
                loss = functional.cross_entropy(prediction, target, self.weight, ignore_index=-100, reduction="none",
                                                label_smoothing=self.label_smoothing)
                return loss.sum() / count
            case "multi_label":
                loss = functional.binary_cross_entropy_with_logits(prediction, labels.nan_to_num(), reduction="none",
                                                                   pos_weight=self.weight)
                return (loss * known).sum() / count
            case "regression":
                error = (prediction - (labels.nan_to_num() - self.mean) / self.std).square()
                return (error * known).sum() / count
            case _:
                raise ValueError(f"task kind: found {self.kind!r}, expected single_label, multi_label or regression.")

    def in_label_units(self, prediction: Tensor) -> Tensor:
        """Undo the standardisation of numbers; logits pass unchanged."""
        return prediction * self.std + self.mean if self.kind == "regression" else prediction


def _class_weights(kind: str, labels: Tensor, num_outputs: int, imbalance: Imbalance) -> Tensor:
    """single_label: a weight per class with mean 1 over the training rows. multi_label: negatives per positive."""
    if kind == "single_label":
        classes = labels[~labels[:, 0].isnan(), 0].long()
        count = torch.bincount(classes, minlength=num_outputs).float()
        weight = count.sum() / ((count > 0).sum() * count.clamp(min=1))
    else:
        positive = (labels == 1).sum(0).float().clamp(min=1)
        weight = (labels == 0).sum(0).float().clamp(min=1) / positive
    if imbalance.weighting == "sqrt":
        weight = weight.sqrt()
    return weight.clamp(max=imbalance.limit)
