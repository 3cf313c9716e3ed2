"""A head that says one thing about a whole sample: its class, its findings, its numbers.

Legend: B batch, V visible, E width, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.patches import Features, Patches
from models.encoder.transformer import mean_of_valid


@dataclass(frozen=True)
class SampleHead:
    """Pool the tokens, then one linear layer."""

    kind: Literal["sample"] = "sample"
    pool: Literal["mean", "summary", "summary_max", "mean_max"] = "mean"
    """mean: average of the patches (MAE's fine-tuning). summary: the class token. summary_max: class token beside the
    maximum over patches (Point-MAE). mean_max: average beside maximum."""
    hidden: int = 0
    """Width of a hidden layer with GELU before the output; 0: none."""
    dropout: float = 0.0
    """Share of pooled features dropped while training."""
    batch_norm: bool = False
    """Standardise pooled features by batch statistics without parameters first: what MAE's linear probe does, because
    masked encoders leave features at very different scales."""
    norm: Literal["layer", "none"] = "layer"
    """What stands between pooled features and output, unless `batch_norm` does. MAE's classifiers on the class token
    have none: the encoder's last norm has just run."""
    norm_eps: float = 1e-5
    """Added to the variance in that norm."""


class PredictSample(nn.Module):
    """(Features, Patches, x) -> B O: logits, or standardised numbers for regression."""

    def __init__(self, settings: SampleHead, width: int, num_outputs: int) -> None:
        super().__init__()
        self.settings = settings
        pooled = width * (2 if settings.pool.endswith("_max") else 1)
        self.norm: nn.Module = nn.Identity() if settings.norm == "none" else nn.LayerNorm(pooled, settings.norm_eps)
        if settings.batch_norm:
            self.norm = nn.BatchNorm1d(pooled, affine=False, eps=1e-6)
        self.drop = nn.Dropout(settings.dropout)
        self.before = nn.Sequential(nn.Linear(pooled, settings.hidden), nn.GELU()) if settings.hidden else nn.Identity()
        self.output = nn.Linear(settings.hidden or pooled, num_outputs)
        nn.init.trunc_normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        """-> B O"""
        return self.output(self.before(self.drop(self.norm(self.pool(features)))))

    def pool(self, features: Features) -> Tensor:
        """-> B E, or B 2E for the two-part pools: what `lacuna embed` writes."""
        match self.settings.pool:
            case "mean":
                return mean_of_valid(features.tokens, features.valid)
            case "summary":
                return features.summary
            case "summary_max":
                return torch.cat([features.summary, _max_of_valid(features)], -1)
            case "mean_max":
                return torch.cat([mean_of_valid(features.tokens, features.valid), _max_of_valid(features)], -1)


def _max_of_valid(features: Features) -> Tensor:
    if features.valid is None:
        return features.tokens.amax(1)
    return features.tokens.masked_fill(~features.valid[..., None], float("-inf")).amax(1)
