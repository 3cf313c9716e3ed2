"""Self-training with an averaged teacher (Tarvainen & Valpola 2017; French et al. 2018; FixMatch's threshold, Sohn et
al. 2020): what an average of the model's own weights is sure of, seen undisturbed, is a label for a disturbed view.

Legend: B batch, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from models.heads.tuned import Tuned
from models.objectives.labelling_teacher import LabellingTeacher


@dataclass(frozen=True)
class SelfTraining:
    """Labels of the source, and of the target those that the teacher is sure of."""

    kind: Literal["averaged_teacher"] = "averaged_teacher"
    momentum: float = 0.99
    """Share of the teacher's old weights in an update; smaller at first, so that it does not hold on to random ones."""
    threshold: float = 0.9
    """Least probability of the likelier outcome for it to count as a label."""
    weight: float = 1.0
    """Weight of these labels' loss beside the source's."""
    begins: float = 0.2
    """Share of the steps before which the teacher's word does not count."""
    weak_augment: dict[str, Any] | None = None
    """The domain's augmentation settings for the view that the teacher labels; null: the sample as it is. The student
    sees the run's `augment`."""

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or not 0.5 <= self.threshold < 1 or self.weight <= 0 or not 0 <= self.begins < 1:
            raise ValueError(f"averaged_teacher: found momentum {self.momentum}, threshold {self.threshold}, weight "
                             f"{self.weight} and begins {self.begins}, expected a share below 1, one from 0.5 to 1, "
                             "more than 0, and a share below 1.")


class PseudoLabels(nn.Module):
    """A teacher that follows, and what it says of the target."""

    def __init__(self, settings: SelfTraining, tuned: Tuned) -> None:
        super().__init__()
        if tuned.loss.kind == "regression":
            raise ValueError("averaged_teacher: found a regression, expected a task with classes: a number has no "
                             "probability to be sure of. Take method domain_adversarial.")
        self.settings, self.kind = settings, tuned.loss.kind
        self.teacher = LabellingTeacher(tuned, settings.momentum, settings.begins)

    def forward(self, said: Tensor, x: Tensor, known: Tensor | None) -> Tensor:
        """Scalar: how far the student's logits for disturbed views are from the teacher's labels for undisturbed ones.

        Args:
            said: B O, of the student. x, known: the samples as the teacher sees them.
        """
        with torch.no_grad():
            logits = self.teacher.model.predict(x, known).float()
            labels, sure = pseudo_labels(logits, self.kind, self.settings.threshold)
            self.teacher.sure.note(sure)
        return self.settings.weight * self.teacher.counts * loss_of(said, labels, sure, self.kind)

    def shown(self) -> dict[str, float]:
        """For curves: the share of the target's labels that the teacher is sure of."""
        return self.teacher.shown()


def pseudo_labels(logits: Tensor, kind: str, threshold: float) -> tuple[Tensor, Tensor]:
    """What logits B O say, and where they are sure of it: B classes and B bool, or for multi_label B O and B O."""
    if kind == "single_label":
        highest, labels = logits.softmax(-1).max(-1)
        return labels, highest >= threshold
    positive = logits.sigmoid()
    return (positive > 0.5).to(logits.dtype), torch.maximum(positive, 1 - positive) >= threshold


def loss_of(said: Tensor, labels: Tensor, sure: Tensor, kind: str) -> Tensor:
    """Cross-entropy with the labels that are sure, divided by how many there could be: few sure ones pull little."""
    if kind == "single_label":
        return (cross_entropy(said, labels, reduction="none") * sure).mean()
    return (binary_cross_entropy_with_logits(said, labels, reduction="none") * sure).mean()
