"""k-nearest-neighbour classification of frozen features: a probe without training (Wu et al. 2018, section 3.4).

Legend: n reference samples, m queries, E features, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def nearest_labels(reference: Tensor, labels: Tensor, queries: Tensor, k: int = 20,
                   temperature: float = 0.07) -> Tensor:
    """Average the labels of the k most similar references, weighted by exp(cosine / temperature).

    Args:
        reference: n E. queries: m E.
        labels: n O, one-hot classes, 0/1 findings or numbers; NaN where unknown, which then has no vote.
        k: neighbours; fewer when there are fewer references.

    Returns:
        m O; NaN where no neighbour has a known label.
    """
    similarity = normalize(queries.float(), dim=1) @ normalize(reference.float(), dim=1).T       # m n
    best, index = similarity.topk(min(k, len(reference)), dim=1)                                # m k
    near = labels[index]                                                                        # m k O
    weight = ((best - best[:, :1]) / temperature).exp()[..., None].expand_as(near)
    weight = weight.masked_fill(near.isnan(), 0.0)
    return (near.nan_to_num() * weight).sum(1) / weight.sum(1).where(weight.sum(1) > 0, torch.nan)
