"""What sampling of bands is worth when bands are missing at prediction (ChannelViT, Bao et al. 2024), tried small.

Four ways of training from random weights on the parcels of examples/claims: one token per patch, or one per patch and
band; every step shows all bands, or as many as a draw says, which are drawn too. What is not shown has no token; where
a token holds all bands it is zero and the others are scaled up, as in the paper. Tested with all bands, with one
missing, and with one alone.

Legend: B batch, C bands, H W rows and columns, n test rows, S seeds, R resamples of test groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.tried_small import kept, train
from domains.satellite.augment import NUM_DRAWS, Augment, augment
from domains.store import Prepared
from models.encoder.build import build_encoder
from models.encoder.transformer import EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from pipelines.scoring.uncertainty import spread
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.verdicts.label_efficiency import Curve

TASK = "small_parcels"
STEPS, BATCH, RATE = 200, 32, 1e-3
WAYS = tuple(itertools.product(("grid", "bands"), (False, True)))
"""(kind of token, whether bands are sampled)"""


def views(count: int) -> dict[str, list[list[int]]]:
    """What is shown at prediction: name -> lists of bands, which are averaged over."""
    every = list(range(count))
    return {"all": [every], "one missing": [[b for b in every if b != gone] for gone in every],
            "one alone": [[b] for b in every]}


def shown(x: Tensor, known: Tensor | None, kept: Sequence[int], tokens: str) -> tuple[Tensor, Tensor | None]:
    """x B C H W with some bands alone, and what of it is known."""
    seen = torch.zeros(x.shape[1], dtype=torch.bool)
    seen[list(kept)] = True
    seen = seen[None, :, None, None].expand_as(x)
    x = torch.where(seen, x, 0.0)
    if tokens == "grid":
        return x * x.shape[1] / len(kept), known
    return x, seen if known is None else seen & known


def samples(prepared: Prepared, split: str) -> tuple[Tensor, Tensor | None, np.ndarray, list[str]]:
    """Normalised x and known, labels n 1 and groups of the labelled rows of a split."""
    rows = prepared.rows(split=split, task=TASK)
    source = Source(prepared, prepared.contract, domain_code("satellite"), rows, prepared.labels(TASK))
    x, known = source.normalise(source.read(rows, None)[0])
    column = prepared.column("group")
    return x, known, prepared.labels(TASK)[rows], [str(column[row]) for row in rows]


def trained(prepared: Prepared, tokens: str, sampled: bool, seed: int, steps: int = STEPS) -> Tuned:
    """One model. Its first weights, order and augmentation depend on the seed alone."""
    x, known, labels, _ = samples(prepared, "train")
    y = torch.from_numpy(labels)
    torch.manual_seed(seed)
    encoder = build_encoder(build(EncoderSettings, {
        "tokenizer": {"kind": tokens, "patch": [8, 8]}, "size": {"width": 96, "depth": 4, "num_heads": 4}}, "encoder"),
        x.shape[1])
    model = Tuned(encoder, build_head(SampleHead(), 96, 2), TaskLoss("single_label", 2)).train()
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        rows = torch.from_numpy(rng.choice(len(x), BATCH, replace=False))
        how_many = int(rng.integers(1, x.shape[1] + 1))
        which = rng.choice(x.shape[1], how_many, replace=False)
        seen = which.tolist() if sampled else list(range(x.shape[1]))
        batch, sure = augment(x[rows], None if known is None else known[rows],
                              torch.rand(BATCH, NUM_DRAWS, generator=draws), Augment())
        return model.loss(model.predict(*shown(batch, sure, seen, tokens)), y[rows])

    train(model, loss, steps, RATE, clip=1.0)
    return model


@torch.no_grad()
def answers(model: Tuned, prepared: Prepared, tokens: str) -> dict[str, np.ndarray]:
    """Name of the view -> lists of bands, n, 2: probabilities on the test rows."""
    x, known, _, _ = samples(prepared, "test")
    return {name: np.stack([model.predict(*shown(x, known, kept, tokens)).softmax(-1).numpy() for kept in lists])
            for name, lists in views(x.shape[1]).items()}


def curves(prepared: Prepared, told: Sequence[dict[str, np.ndarray]], resamples: int = 1000) -> dict[str, Curve]:
    """View -> AUROC S 1+R of what the seeds say, averaged over the view's lists of bands."""
    _, _, labels, groups = samples(prepared, "test")
    found = {}
    for name, lists in told[0].items():
        scores = [spread("single_label", labels, np.stack([one[name][i] for one in told]), groups,
                         resamples).metrics["auroc"] for i in range(len(lists))]
        found[name] = Curve((np.mean(scores, axis=0),), (len(set(groups)),))
    return found


def tell(prepared: Prepared, tokens: str, sampled: bool, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """What one model says, trained where it is not kept."""
    return kept(folder / f"bands-{tokens}-{'sampled' if sampled else 'all'}-{seed}.npz",
                lambda: answers(trained(prepared, tokens, sampled, seed), prepared, tokens))
