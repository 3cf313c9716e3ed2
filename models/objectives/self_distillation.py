"""Self-distillation for further pretraining (Lee et al. 2023): an encoder that was pretrained further on the data at
hand teaches one that begins again with the first weights.

Legend: B batch, V visible, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.encoder.build import AnyEncoder
from models.encoder.patches import Features
from models.encoder.transformer import mean_of_valid


@dataclass(frozen=True)
class SelfDistillation:
    """Pretrain further; then begin again with the start's weights, and stay near what the first encoder says."""

    kind: Literal["self_distillation"] = "self_distillation"
    weight: float = 1.0
    """Weight of the distance between the features of student and teacher beside the objective's losses."""
    compare: Literal["summary", "tokens"] = "summary"
    """What is compared, after the last norm. summary: one vector per sample, the class token, or the mean of the
    patches where there is none. tokens: every patch."""
    teacher_steps: int = 0
    """Steps of the further pretraining that makes the teacher; 0: as many as the student's, `optimisation.steps`."""

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.teacher_steps < 0:
            raise ValueError(f"self_distillation: found weight {self.weight} and teacher_steps {self.teacher_steps}, "
                             "expected more than 0 and at least 0. For no distance at all take method further.")


def feature_distance(student: AnyEncoder, teacher: AnyEncoder, x: Tensor, known: Tensor | None,
                     compare: Literal["summary", "tokens"]) -> Tensor:
    """Squared distance of what two encoders of one shape make of whole samples: summed over the width, averaged over
    samples, and over the patches of a sample first where these are compared.

    Args:
        x: B C (D) H W or B M 3. known: likewise bool, or None.
        teacher: in eval mode; no gradient reaches it.

    Returns:
        Scalar.
    """
    patches = student.tokenizer.patchify(x, known)
    own: Features = student(patches)
    with torch.no_grad():
        told: Features = teacher(patches)
    if compare == "summary":
        return (own.summary.float() - told.summary.float()).square().sum(-1).mean()
    apart = (own.tokens.float() - told.tokens.float()).square().sum(-1, keepdim=True)                # B V 1
    return mean_of_valid(apart, own.valid).mean()
