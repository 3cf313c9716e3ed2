"""Signs, without labels, that an encoder's embeddings are collapsing while its loss still falls.

Legend: n samples, E features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def embedding_std(features: Tensor) -> float:
    """Mean over features of the standard deviation over samples of l2-normalised embeddings, times sqrt(E).

    features n E -> 1 for directions spread evenly, 0 when all samples look alike
    (SimSiam, Chen & He 2021, section 4.1).
    """
    return float(normalize(features.float(), dim=1).std(0, correction=0).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """exp(entropy) of the normalised singular values of the centred embeddings: how many directions are in use
    (Roy & Vetterli 2007). features n E -> 1 to min(n - 1, E); 0 when all are equal."""
    singular = torch.linalg.svdvals(features.float() - features.float().mean(0))
    if float(singular.sum()) < 1e-12:
        return 0.0
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())
