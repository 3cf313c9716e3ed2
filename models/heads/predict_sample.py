"""A head that says one thing about a whole sample: its class, its findings, its numbers.

Legend: B batch, V visible, E width, O outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.batch_norm import SyncedBatchNorm1d
from models.encoder.patches import Features, Patches
from models.encoder.transformer import max_of_valid, mean_of_valid


@dataclass(frozen=True)
class SampleHead:
    """Pool the tokens, then one linear layer, or a few."""

    kind: Literal["sample"] = "sample"
    pool: Literal["mean", "summary", "summary_max", "mean_max", "mean_with_prompts", "prompts"] = "mean"
    """mean: average of the patches (MAE's fine-tuning), prompts left out. summary: the class token. summary_max: class
    token beside the maximum over patches (Point-MAE). mean_max: average beside maximum. mean_with_prompts: average of
    prompts and patches (VPT on MAE). prompts: average of the prompts."""
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
    activation: Literal["none", "tanh"] = "none"
    """What the output goes through. MONAI's classifiers end in a tanh, which leaves logits between -1 and 1."""
    layers: tuple[int, ...] = ()
    """Widths of layers before the output, each with batch norm, ReLU and dropout: 256, 256 in Point-MAE's classifiers,
    whose `norm` is none."""
    layer_dropout: float = 0.5
    """Share of activations dropped after each of these layers while training."""

    def __post_init__(self) -> None:
        if self.hidden and self.layers:
            raise ValueError(f"head: found hidden {self.hidden} and layers {list(self.layers)}, expected one of them.")
        if self.hidden < 0 or any(width < 1 for width in self.layers):
            raise ValueError(f"head: found hidden {self.hidden} and layers {list(self.layers)}, expected widths of at "
                             "least 1, or none.")


class PredictSample(nn.Module):
    """(Features, Patches, x) -> B O: logits, or standardised numbers for regression."""

    def __init__(self, settings: SampleHead, width: int, num_outputs: int) -> None:
        super().__init__()
        self.settings = settings
        pooled = width * (2 if settings.pool.endswith("_max") else 1)
        self.norm: nn.Module = nn.Identity() if settings.norm == "none" else nn.LayerNorm(pooled, settings.norm_eps)
        if settings.batch_norm:
            self.norm = SyncedBatchNorm1d(pooled, affine=False, eps=1e-6)
        self.drop = nn.Dropout(settings.dropout)
        self.before: nn.Module = nn.Identity()
        if settings.hidden:
            self.before = nn.Sequential(nn.Linear(pooled, settings.hidden), nn.GELU())
        if settings.layers:
            self.before = normed_layers((pooled, *settings.layers), settings.layer_dropout)
        self.output = nn.Linear(settings.layers[-1] if settings.layers else settings.hidden or pooled, num_outputs)
        nn.init.trunc_normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        """-> B O"""
        out: Tensor = self.output(self.before(self.drop(self.norm(self.pool(features)))))
        return out.tanh() if self.settings.activation == "tanh" else out

    def pool(self, features: Features) -> Tensor:
        """-> B E, or B 2E for the two-part pools: what `lacuna embed` writes."""
        match self.settings.pool:
            case "mean":
                return mean_of_valid(features.tokens, features.valid)
            case "summary":
                return features.summary
            case "summary_max":
                return torch.cat([features.summary, max_of_valid(features.tokens, features.valid)], -1)
            case "mean_max":
                return torch.cat([pool(features.tokens, features.valid) for pool in (mean_of_valid, max_of_valid)], -1)
            case "mean_with_prompts":
                return _mean_with(features, _prompts(features))
            case "prompts":
                return _prompts(features).mean(1)


def _prompts(features: Features) -> Tensor:
    """B X E"""
    if features.extra is None:
        raise ValueError("found no prompts, expected an encoder with some: this head pools them. Add an adapter with "
                         "prompts, or choose another pool: mean, summary, summary_max, mean_max.")
    return features.extra


def _mean_with(features: Features, prompts: Tensor) -> Tensor:
    """prompts B X E -> B E, filler at the end of the patches left out."""
    valid = features.valid
    if valid is not None:
        valid = torch.cat([valid.new_ones(prompts.shape[:2]), valid], 1)
    return mean_of_valid(torch.cat([prompts, features.tokens], 1), valid)


def normed_layers(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """widths[0] -> ... -> widths[-1]: linear, batch norm, ReLU and dropout, again and again."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), SyncedBatchNorm1d(after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
