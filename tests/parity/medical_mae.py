"""Medical MAE: radiographs in three equal channels; pretraining with both losses, the multi-label classifier."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from models.heads.task_loss import TaskLoss
from tests.parity.compare import Case, Taps
from tests.parity.mae import keep_smallest, loss, removed, unshuffled

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    shapes = case.meta["constructor"]
    images = radiographs(case, shapes["pretrain"]["in_chans"])
    yield from pretrain(case, shapes["pretrain"], images)
    yield from finetune(case, shapes["finetune"], images)


def radiographs(case: Case, num_channels: int) -> Tensor:
    """One grey channel repeated, normalised by the mean and deviation that the record names."""
    mean, std = (float(number) for number in re.findall(r"[-/] (\d*\.\d+)", case.meta["input"])[:2])
    return (case.given["xray"].expand(-1, num_channels, -1, -1) - mean) / std


def pretrain(case: Case, shape: dict, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    made = case.load("pretrain.pth", num_heads=shape["num_heads"], decoder_num_heads=shape["decoder_num_heads"])
    encoder, decoder, readout = made.encoder, made.objective.decoder, made.objective.readout
    mask = keep_smallest(case.given["noise"], case.meta["mask_ratio"])
    patches = encoder.tokenizer.patchify(images)
    yield "pretrain/patch_embed", encoder.tokenizer.embed(patches.values)
    yield "pretrain/mask", removed(mask)
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask)
    for i, out in taps.items():
        if f"pretrain/block{i}" in case.expected:
            yield f"pretrain/block{i}", out
    yield "pretrain/latent", torch.cat([features.summary[:, None], features.tokens], 1)
    yield "pretrain/dec_embed", torch.cat([decoder.embed(features.summary)[:, None], decoder.embed(features.tokens)], 1)
    with Taps(decoder.blocks) as taps:
        decoded = decoder(features, patches, mask, everything=True)
    for i, out in taps.items():
        if f"pretrain/dec_block{i}" in case.expected:
            yield f"pretrain/dec_block{i}", unshuffled(out, mask)
    yield "pretrain/pred", unshuffled(readout.project(decoded), mask)[:, 1:]
    for name, normalise in (("loss_raw", False), ("loss_norm_pix", True)):
        yield f"pretrain/{name}", loss(made, normalise, decoded, images, patches, mask)


def finetune(case: Case, shape: dict, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    made = case.load("finetune_multilabel.pth", num_heads=shape["num_heads"])
    patches = made.encoder.tokenizer.patchify(images)
    with Taps([*made.encoder.blocks, made.head.norm]) as taps:
        logits = made.head(made.encoder(patches), patches, images)
    for i in range(len(made.encoder.blocks)):
        if f"finetune/block{i}" in case.expected:
            yield f"finetune/block{i}", taps[i]
    yield "finetune/features", taps[len(made.encoder.blocks)]
    yield "finetune/logits", logits
    yield "finetune/bce", TaskLoss("multi_label", logits.shape[1])(logits, case.given["labels"])
