"""How wrong predicted masks are: cross-entropy beside overlap.

Legend: B batch, K classes without the background, D H W voxels (D is absent for images, M points in place of both).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.heads.task_loss import Imbalance

UNKNOWN = 255
"""The class of a place that nobody has looked at."""
SMOOTH = 1.0
"""Added to both sides of the overlap's fraction, in pixels: a class that a sample lacks, and that is not predicted
there, costs nothing."""


class MaskLoss(nn.Module):
    """Per sample: mean cross-entropy over known places, plus `overlap` times 1 - soft Dice, the mean over the classes
    that were looked for, background left out (Milletari et al. 2016, V-Net, section 3; Isensee et al. 2021 add the
    two). Then the mean over samples, so that micro-batches add up to their batch.

    Where a class was not looked for, its pixels lie in what the mask calls background: there the probability of the
    background is that of all such classes together (the marginal loss of Shi et al. 2021, section 3.2).
    """

    def __init__(self, overlap: float = 1.0) -> None:
        super().__init__()
        self.kind, self.overlap, self.label_smoothing = "segmentation", overlap, 0.0

    def fit(self, labels: Tensor, imbalance: Imbalance) -> None:
        """Nothing is taken from the labels: overlap is the same for classes of any size, so there are no class
        weights."""

    def forward(self, prediction: Tensor, target: Tensor, looked_for: Tensor) -> Tensor:
        """See `per_sample` -> scalar."""
        return self.per_sample(prediction, target, looked_for).mean()

    def per_sample(self, prediction: Tensor, target: Tensor, looked_for: Tensor) -> Tensor:
        """-> B; 0 for a sample of which nothing is known.

        Args:
            prediction: B K+1 D H W logits, the background's first.
            target: B D H W classes, UNKNOWN where unknown.
            looked_for: B K, NaN for a class that was not looked for.
        """
        prediction, target = prediction.float().flatten(2), target.flatten(1).long()                 # B K+1 n, B n
        sure = ~looked_for.isnan()                                          # B K
        logs = _with_background_of_all(prediction.log_softmax(1), sure)
        known = target != UNKNOWN                                           # B n
        place = target.masked_fill(~known, 0)
        each = functional.nll_loss(logs, place, reduction="none") * known
        cross_entropy = each.sum(1) / known.sum(1).clamp(min=1)
        return cross_entropy + self.overlap * self._gap(logs, place, known, sure)

    def _gap(self, logs: Tensor, place: Tensor, known: Tensor, sure: Tensor) -> Tensor:
        """B: 1 - soft Dice, averaged over the classes that were looked for."""
        classes = torch.arange(1, logs.shape[1], device=logs.device)
        share = logs[:, 1:].exp() * known[:, None]                          # B K n
        truth = ((place[:, None] == classes[:, None]) & known[:, None]).to(share.dtype)              # B K n
        dice = (2 * (share * truth).sum(2) + SMOOTH) / (share.sum(2) + truth.sum(2) + SMOOTH)        # B K
        gap = ((1 - dice) * sure).sum(1) / sure.sum(1).clamp(min=1)
        return gap * known.any(1)

    def in_label_units(self, prediction: Tensor) -> Tensor:
        """Logits pass unchanged."""
        return prediction


def _with_background_of_all(logs: Tensor, sure: Tensor) -> Tensor:
    """logs B K+1 n: the background takes the probability of classes that were not looked for, sure B K; what is left of
    these is asked for nowhere."""
    if bool(sure.all()):
        return logs
    merged = torch.cat([sure.new_ones(len(sure), 1), ~sure], 1)[:, :, None]                          # B K+1 1
    together = logs.masked_fill(~merged, float("-inf")).logsumexp(1, keepdim=True)                   # B 1 n
    return torch.cat([together, logs[:, 1:]], 1)
