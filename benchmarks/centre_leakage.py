"""How much of what Point-MAE restores is told by the centres of hidden groups, which its decoder is given (PCP-MAE,
Zhang et al. 2024), tried small.

Four ways of training on the shapes of examples/claims: as it is; "centres alone", where the decoder gets zeros for what
the encoder says and so knows nothing but where groups are; "encoder alone", where the hidden centres are another
sample's; and neither. Scored by the Chamfer distance of hidden groups on validation and test shapes, each way as it was
trained, and the first also with another sample's centres.

Legend: B batch, N groups, n scored rows, S seeds, R resamples of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tried_small import kept, train
from domains.pointcloud.augment import NUM_DRAWS, Augment, augment
from domains.store import Prepared
from models.encoder.build import build_encoder
from models.encoder.chance import Chance, chance_of
from models.encoder.patches import Mask, Patches
from models.objectives.objective import build_objective
from pipelines.pretrain import PretrainRun
from pipelines.scoring.uncertainty import draw_groups
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.verdicts.label_efficiency import Curve

STEPS, BATCH, RATE = 100, 32, 2e-3
WAYS = ("as it is", "centres alone", "encoder alone", "neither")


def errors(model: Any, x: Tensor, chance: Chance, centres: bool, encoder: bool) -> Tensor:
    """Chamfer distance of hidden groups, B H.

    Args:
        x: B M 3. centres: whether the decoder is told where hidden groups are. encoder: whether it hears the encoder.
    """
    patches = model.encoder.tokenizer.patchify(x)
    mask = model.masking(patches, chance)
    features = model.encoder(patches, mask, model.decoder.taps)
    if not encoder:
        features = features._replace(tokens=torch.zeros_like(features.tokens),
                                     summary=torch.zeros_like(features.summary))
    told = patches if centres else elsewhere(patches, mask)
    distance, _ = model.readout.errors(model.decoder(features, told, mask, False), patches, mask)
    found: Tensor = distance
    return found


def elsewhere(patches: Patches, mask: Mask) -> Patches:
    """The same with hidden places taken from the next sample of the batch."""
    index = mask.hidden[..., None].expand(-1, -1, patches.place.shape[-1])
    hidden = patches.place.gather(1, index)
    return patches._replace(place=patches.place.scatter(1, index, hidden.roll(1, 0)))


def told_of(way: str) -> tuple[bool, bool]:
    """(centres, encoder)"""
    return way in ("as it is", "centres alone"), way in ("as it is", "encoder alone")


def samples(prepared: Prepared, rows: np.ndarray) -> Tensor:
    """n M 3, normalised."""
    source = Source(prepared, prepared.contract, domain_code("pointcloud"), rows)
    x: Tensor = source.normalise(source.read(rows, None)[0])[0]
    return x


def trained(prepared: Prepared, paragraph: dict[str, Any], way: str, seed: int, steps: int = STEPS) -> Any:
    """An objective of examples/claims, pretrained in one way; the pool is the data's own."""
    settings: PretrainRun = build(PretrainRun, paragraph, "pretrain.point_mae")
    x = samples(prepared, prepared.pool())
    torch.manual_seed(seed)
    assert settings.encoder is not None
    model: Any = build_objective(settings.objective, build_encoder(settings.encoder, len(prepared.contract.channels)))
    rng, draws = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    turned: Augment = build(Augment, settings.augment or {}, "augment")

    def loss(step: int) -> Tensor:
        rows = torch.from_numpy(rng.choice(len(x), BATCH, replace=False))
        batch, _ = augment(x[rows], None, torch.rand(BATCH, NUM_DRAWS, generator=draws), turned)
        return errors(model, batch, chance_of(seed, step, 0, rows, 0 * rows), *told_of(way)).mean()

    train(model, loss, steps, RATE, clip=10.0)
    return model


@torch.no_grad()
def score(model: Any, prepared: Prepared, centres: bool, encoder: bool) -> np.ndarray:
    """n: mean distance of each held-out shape's hidden groups, with the same masks for all models."""
    found = []
    rows = held_out(prepared)
    for first in range(0, len(rows), BATCH):
        part = rows[first:first + BATCH]
        ids = torch.from_numpy(part)
        found.append(errors(model, samples(prepared, part), chance_of(0, 0, 1, ids, 0 * ids), centres, encoder).mean(1))
    return torch.cat(found).numpy()


def held_out(prepared: Prepared) -> np.ndarray:
    """Rows that the pool does not hold."""
    return prepared.rows(split=["val", "test"])


def curve(prepared: Prepared, told: Sequence[np.ndarray], resamples: int = 1000) -> Curve:
    """Minus the mean distance, S 1+R, over groups and resamples of groups; higher is better."""
    column = prepared.column("group")
    names, member = np.unique([str(column[row]) for row in held_out(prepared)], return_inverse=True)
    drawn = np.concatenate([np.ones((len(names), 1), np.int64), draw_groups(len(names), resamples, 0)], 1)[member]
    return Curve((-(np.stack(told) @ drawn) / drawn.sum(0),), (len(names),))


def tell(prepared: Prepared, paragraph: dict[str, Any], way: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Distances of one model, trained where it is not kept: as it was trained, and with another sample's centres."""
    def make() -> dict[str, np.ndarray]:
        model = trained(prepared, paragraph, way, seed)
        centres, encoder = told_of(way)
        return {"own": score(model, prepared, centres, encoder), "moved": score(model, prepared, False, encoder)}

    return kept(folder / f"centres-{way.replace(' ', '-')}-{seed}.npz", make)
