"""SatMAE++: groups of bands with the prediction enlarged twice, under both masks, and RGB with it enlarged once. The
released loss of the groups has the mix-up that is written out in tests/parity/satmae.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.patches import Mask, Patches
from models.objectives.multiscale import MultiScaleAutoencoder, Scale
from models.published.rebuild import Rebuilt
from tests.parity import mae, satmae
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    yield from group(case, case.meta["constructor"])
    yield from rgb(case, case.meta["rgb_constructor"])


def group(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load("pretrain_group.pth", num_heads=shape["num_heads"], decoder_num_heads=shape["decoder_num_heads"],
                     groups=shape["channel_groups"])
    scales = made.objective.scales(case.given["group/full_u8"].float() / 255, None)
    yield "group/imgs", scales[0].x
    yield "group/up_2x", scales[1].x
    patches = made.encoder.tokenizer.patchify(scales[0].x)
    for name, value in satmae.parts(made, patches, "group/"):
        if name in case.expected:
            yield name, value
    for kind in ("independent", "spatial"):
        where = f"group/{kind}/"
        mask = satmae.mask_of(made, patches, case.given[f"group/noise_{kind}"], case.meta["mask_ratio"])
        errors: dict[str, Tensor] = {}
        for name, value in satmae.pretrain(case, made, patches, mask, where):
            name = name.replace("derived_group_losses_", "derived_group_mse_").replace("loss_", "mse_")
            errors[name.removeprefix(where)] = value
            yield name, value
        distances = yield from finer(case, made, patches, mask, scales, where)
        for name, _ in satmae.LOSSES:
            yield f"{where}total_{name}", total(made, errors[f"mse_{name}"], distances)


def rgb(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load("pretrain_rgb.pth", num_heads=shape["num_heads"], decoder_num_heads=shape["decoder_num_heads"])
    encoder, objective = made.encoder, made.objective
    scales = objective.scales(case.given["rgb/full_u8"].float() / 255, None)
    yield "rgb/imgs", scales[0].x
    patches = encoder.tokenizer.patchify(scales[0].x)
    mask = mae.keep_smallest(case.given["rgb/noise"], case.meta["mask_ratio"])
    yield "rgb/mask", mae.removed(mask)
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask)
    for i, out in taps.items():
        yield f"rgb/block{i}", out
    yield "rgb/latent", torch.cat([features.summary[:, None], features.tokens], 1)
    decoded = objective.decoder(features, patches, mask, everything=True)
    yield from case.beginnings("rgb/pred", mae.unshuffled(objective.readout.project(decoded), mask)[:, 1:])
    distances = yield from finer(case, made, patches, mask, scales, "rgb/")
    for name, normalise in satmae.LOSSES:
        error = mae.loss(made, normalise, decoded, scales[0].x, patches, mask)
        yield f"rgb/mse_{name}", error
        yield f"rgb/total_{name}", total(made, error, distances)


def finer(case: Case, made: Rebuilt, patches: Patches, mask: Mask, scales: list[Scale],
          where: str) -> Iterator[tuple[str, Tensor]]:
    """The enlarged predictions that are recorded, and their distance, which is also what the generator returns."""
    attempt = made.objective.decode(patches, mask, scales[0].x.shape[2:])
    for i, image in enumerate(attempt.finer, start=1):
        if f"{where}pred_{2**i}x" in case.expected:
            yield f"{where}pred_{2**i}x", image
    distance = made.objective.distance(attempt, scales[1:])
    yield f"{where}ms_l1", distance
    return distance


def total(made: Rebuilt, error: Tensor, distance: Tensor) -> Tensor:
    """What is minimised: the project's weights on an error of the small scale and a distance at the finer ones."""
    objective: MultiScaleAutoencoder = made.objective
    return sum(objective.weighted(error, distance).values())
