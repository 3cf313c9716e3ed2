"""Point-MAE: grouping by the release's rules, pretraining with both distances, batch norm in training, block masks, and
the classifier."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.masking import BlockMasking
from models.encoder.patches import Mask, take
from models.encoder.point_ops import nearest_neighbours, pointnet2_sampling
from models.heads.task_loss import TaskLoss
from models.objectives.readouts import Chamfer, ChamferReadout
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    made = load_pretrained(case, case.meta["constructor"])
    yield from grouping(case, made)
    yield from pretrain(case, made)
    yield from train_mode(case, made)
    yield "block_mask/mask", block_mask(case, made)
    yield from classify(case, case.meta["finetune_constructor"])


def load_pretrained(case: Case, shape: dict):  # type: ignore[no-untyped-def]
    """pretrain.pth with what its weights do not tell."""
    about = shape["transformer_config"]
    return case.load("pretrain.pth", num_heads=about["num_heads"], decoder_num_heads=about["decoder_num_heads"],
                     mask_ratio=about["mask_ratio"], num_groups=shape["num_group"],
                     num_points=case.given["points"].shape[1])


def grouping(case: Case, made) -> Iterator[tuple[str, Tensor]]:  # type: ignore[no-untyped-def]
    tokenizer, points = made.encoder.tokenizer, case.given["points"]
    patches = tokenizer.patchify(points)
    yield "fps_idx", tokenizer.sample(points, tokenizer.num_groups)
    yield "center", patches.place
    yield "knn_idx", nearest_neighbours(patches.place, points, tokenizer.group_size)
    yield "neighborhood", patches.values.unflatten(-1, (-1, 3))
    for name in ("near_origin", "grid_ties", "duplicates"):
        wanted = f"fps_idx_{name}"
        yield wanted, pointnet2_sampling(case.given[f"fps_{name}"][None], len(case.expected[wanted]))[0]


def pretrain(case: Case, made) -> Iterator[tuple[str, Tensor]]:  # type: ignore[no-untyped-def]
    points, mask = case.given["points"], mask_of(case.given["mask"])
    encoder, decoder, readout = made.encoder, made.objective.decoder, made.objective.readout
    patches = encoder.tokenizer.patchify(points)
    yield "pretrain/group_tokens", encoder.tokenizer.embed(patches.values, patches.place)
    yield "pretrain/pos_visible", encoder.place_code(take(patches.place, mask.visible))
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask)
    for i, out in taps.items():
        yield f"pretrain/block{i}", out
    yield "pretrain/latent", features.tokens
    with Taps(decoder.blocks) as taps:
        decoded = decoder(features, patches, mask)
    for i, out in taps.items():
        yield f"pretrain/dec_block{i}", out
    yield "pretrain/decoder_norm", decoded
    yield "pretrain/rebuild_points", readout.predict(decoded, patches, mask).unflatten(-1, (-1, 3))
    for distance in ("l1", "l2"):
        scored = Chamfer(ChamferReadout(distance=distance), decoded.shape[-1], encoder)
        scored.project = readout.project
        yield f"pretrain/loss_cd{distance}", scored(decoded, points, patches, mask)


def train_mode(case: Case, made) -> Iterator[tuple[str, Tensor]]:  # type: ignore[no-untyped-def]
    """Batch statistics come from every group, hidden ones too: tokens by the embedding alone, statistics by a training
    step's own road under the mask."""
    encoder = copy.deepcopy(made.encoder).train()
    patches = encoder.tokenizer.patchify(case.given["points"])
    encoder(patches, mask_of(case.given["mask"]))
    norm = encoder.tokenizer.point[1]
    yield "train_mode/running_mean_first_conv_1", norm.running_mean
    yield "train_mode/running_var_first_conv_1", norm.running_var
    tokenizer = copy.deepcopy(made.encoder.tokenizer).train()
    yield "train_mode/group_tokens", tokenizer.embed(patches.values, patches.place)


def block_mask(case: Case, made) -> Tensor:  # type: ignore[no-untyped-def]
    """B G bool, True for hidden groups, when the block grows from the given groups."""
    patches = made.encoder.tokenizer.patchify(case.given["points"])
    published = made.objective.masking
    masking = BlockMasking(ratio=published.ratio, round_hidden=published.round_hidden)
    mask = masking(patches, Chosen(case.given["block_mask/seed_index"]))  # type: ignore[arg-type]
    return torch.zeros(patches.place.shape[:2], dtype=torch.bool).scatter(1, mask.hidden, True)


def classify(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    points = case.given["points"]
    made = case.load("finetune.pth", num_heads=shape["num_heads"], num_groups=shape["num_group"],
                     group_size=shape["group_size"], num_points=points.shape[1])
    patches = made.encoder.tokenizer.patchify(points)
    yield "finetune/group_tokens", made.encoder.tokenizer.embed(patches.values, patches.place)
    with Taps(made.encoder.blocks) as taps:
        features = made.encoder(patches)
    for i, out in taps.items():
        yield f"finetune/block{i}", out
    yield "finetune/norm", torch.cat([features.summary[:, None], features.tokens], 1)
    logits = made.head(features, patches, points)
    yield "finetune/logits", logits
    loss = TaskLoss("single_label", logits.shape[1])
    yield "finetune/ce", loss(logits, case.given["labels"][:, None].float())


def mask_of(hidden: Tensor) -> Mask:
    """B N bool, True for hidden patches -> index lists, each in the patches' own order."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    seen = int((~hidden[0]).sum())
    return Mask(order[:, :seen], order[:, seen:])


class Chosen:
    """A chance whose largest number lies at given places."""

    def __init__(self, index: Tensor) -> None:
        self.index = index

    def uniform(self, n: int, stream: int) -> Tensor:
        return torch.zeros(len(self.index), n).scatter(1, self.index[:, None], 0.5)
