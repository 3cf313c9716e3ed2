"""An encoder with a head on it: what fine-tuning makes and prediction uses.

Legend: B batch, C channels, O outputs, L numbers per label, E width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from models.adapters.seams import added
from models.encoder.build import AnyEncoder
from models.encoder.nearest import nearest_labels
from models.encoder.patches import Features, Patches
from models.encoder.tokenizers import ByChannel, GridTokenizer, GroupTokenizer
from models.encoder.transformer import Encoder, mean_of_valid
from models.heads.mask_loss import MaskLoss
from models.heads.predict_sample import PredictSample, SampleHead
from models.heads.segment_grid import SegmentHead, SegmentLinear, SegmentPyramid
from models.heads.segment_points import SegmentPoints
from models.heads.task_loss import TaskLoss


@dataclass(frozen=True)
class NearestHead:
    """Vote of the nearest training samples in feature space; nothing is trained."""

    kind: Literal["nearest"] = "nearest"
    neighbours: int = 20
    """How many vote."""
    temperature: float = 0.07
    """Sharpness of the vote by similarity."""


HeadSettings = SampleHead | NearestHead | SegmentHead


class PredictByNeighbours(nn.Module):
    """(Features, Patches, x) -> B O: log-probabilities, or standardised numbers, of the neighbours' labels."""

    reference: Tensor
    labels: Tensor

    def __init__(self, settings: NearestHead, width: int, num_outputs: int, num_reference: int) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("reference", torch.zeros(num_reference, width))
        self.register_buffer("labels", torch.full((num_reference, num_outputs), torch.nan))

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """features n E, labels n O (one-hot, 0/1 or standardised numbers; NaN unknown)."""
        self.reference.copy_(features)
        self.labels.copy_(labels)

    def pool(self, features: Features) -> Tensor:
        """-> B E"""
        return mean_of_valid(features.tokens, features.valid)

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        """-> B O"""
        return nearest_labels(self.reference, self.labels, self.pool(features), self.settings.neighbours,
                              self.settings.temperature)


Head = PredictSample | PredictByNeighbours | SegmentLinear | SegmentPyramid | SegmentPoints


class Tuned(nn.Module):
    """Patchify, encode, head."""

    def __init__(self, encoder: AnyEncoder, head: Head, loss: TaskLoss | MaskLoss) -> None:
        super().__init__()
        self.encoder, self.head, self.loss = encoder, head, loss
        self.trunk_frozen = False

    def freeze_trunk(self) -> None:
        """Leave the encoder's own weights and batch statistics as they are; what adapters have added is trained."""
        self.trunk_frozen = True
        self.encoder.requires_grad_(False)
        for _, value in added(self.encoder):
            value.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Tuned:
        """As every module's, but batch norms of a frozen encoder keep to the statistics that they have, unless an
        adapter has added them."""
        super().train(mode)
        if self.trunk_frozen:
            for module in self.encoder.modules():
                if isinstance(module, BatchNorm) and not getattr(module, "ADDED", ()):
                    module.eval()
        return self

    def forward(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """x B C (D) H W or B M 3 -> B O: logits, or numbers in the labels' units for regression; of masks, logits B O
        (D) H W with the background's first."""
        return self.loss.in_label_units(self.predict(x, known))

    def predict(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """-> B O: logits, or standardised numbers for regression: what the loss compares. Of masks as `forward`."""
        patches = self.encoder.tokenizer.patchify(x, known)
        return self._answer(self.encode(patches), patches, x)

    def mistakes(self, x: Tensor, known: Tensor | None, labels: Tensor, target: Tensor | None = None) -> Tensor:
        """How wrong the prediction is: a scalar. target: the true classes B (D) H W, of masks."""
        prediction = self.predict(x, known)
        if isinstance(self.loss, TaskLoss):
            loss: Tensor = self.loss(prediction, labels)
            return loss
        assert target is not None, "a task of masks has them in every batch"
        loss = self.loss(prediction, target, labels)
        return loss

    def predict_with_features(self, x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> B O as `predict`, B E as `features`, from one pass through the encoder."""
        patches = self.encoder.tokenizer.patchify(x, known)
        features = self.encode(patches)
        return self._answer(features, patches, x), self.head.pool(features)

    def encode(self, patches: Patches) -> Features:
        """With the blocks that the head taps."""
        taps = getattr(self.head, "taps", ())
        features: Features = self.encoder(patches, layers=taps) if taps else self.encoder(patches)
        return features

    def _answer(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        out: Tensor = self.head(features, patches, x)
        if isinstance(self.head, PredictByNeighbours) and self.loss.kind != "regression":
            share = out.nan_to_num(nan=1 / out.shape[1]).clamp(1e-4, 1 - 1e-4)
            return share.log() if self.loss.kind == "single_label" else share.logit()
        return out

    def features(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """-> B E: the pooled features that the head sees."""
        patches = self.encoder.tokenizer.patchify(x, known)
        return self.head.pool(self.encoder(patches))


def build_head(settings: HeadSettings, width: int, num_outputs: int, num_reference: int = 0,
               encoder: AnyEncoder | None = None) -> Head:
    """The module that these settings describe.

    Args:
        num_outputs: of masks, the classes without the background.
        encoder: what a head of masks stands on. Raises ValueError where it has none to stand on.
    """
    match settings:
        case SampleHead():
            return PredictSample(settings, width, num_outputs)
        case NearestHead():
            return PredictByNeighbours(settings, width, num_outputs, num_reference)
        case SegmentHead():
            return _head_of_masks(settings, num_outputs + 1, encoder)


def _head_of_masks(settings: SegmentHead, num_classes: int, encoder: AnyEncoder | None) -> Head:
    tokenizer = getattr(encoder, "tokenizer", None)
    if not isinstance(encoder, Encoder) or not isinstance(tokenizer, GridTokenizer | ByChannel | GroupTokenizer):
        raise ValueError(f"head segment: found {type(encoder).__name__} with {type(tokenizer).__name__}, expected a "
                         "transformer with tokenizer grid, bands, band_groups or groups. Choose one of them.")
    if isinstance(tokenizer, GroupTokenizer):
        return SegmentPoints(settings, encoder.width, num_classes, encoder.num_channels, len(encoder.blocks))
    if settings.design == "linear":
        return SegmentLinear(settings, encoder.width, num_classes)
    num_channels = len(tokenizer.channels) if isinstance(tokenizer, ByChannel) else encoder.num_channels
    return SegmentPyramid(settings, encoder.width, num_classes, num_channels, tuple(tokenizer.patch),
                          len(encoder.blocks))


def build_loss(settings: HeadSettings, kind: str, num_outputs: int) -> TaskLoss | MaskLoss:
    """What this head is trained by."""
    return MaskLoss(settings.overlap) if isinstance(settings, SegmentHead) else TaskLoss(kind, num_outputs)
