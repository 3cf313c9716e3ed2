"""Uni4Eye++: an encoder on images and on volumes, and the whole road of images with the dynamic head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.objectives.readouts import PixelReadout, Pixels
from tests.parity.compare import Case, Taps
from tests.parity.mae import keep_smallest, order_of, removed, unshuffled

EXEMPT: dict[str, str] = {}
RTOL = {"full/logits*": 1e-3, "full/loss_*": 1e-3}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    shapes = case.meta["constructor"]
    for where, given, noise in (("enc2d", "img2d_u8", "noise2d"), ("enc3d", "vol_u8", "noise3d")):
        yield from encode(case, where, case.given[f"enc/{given}"].float() / 255, case.given[f"enc/{noise}"],
                          shapes["encoder_2d3d.pth"])
    yield from whole(case, shapes["pretrain_2d.pth"])


def encode(case: Case, where: str, x: Tensor, noise: Tensor, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load("encoder_2d3d.pth", num_heads=shape["num_heads"], **_grid(shape))
    assert made.objective is None
    patches = made.encoder.tokenizer.patchify(x)
    mask = keep_smallest(noise, case.meta["mask_ratio"])
    yield f"{where}/patch_embed", made.encoder.tokenizer.embed(patches.values, patches.place)
    yield f"{where}/ids_restore", order_of(mask).argsort(1)
    yield f"{where}/mask", removed(mask)
    with Taps(made.encoder.blocks) as taps:
        features = made.encoder(patches, mask)
    for i, out in taps.items():
        if f"{where}/block{i}" in case.expected:
            yield f"{where}/block{i}", out
    yield f"{where}/latent", torch.cat([features.summary[:, None], features.tokens], 1)


def whole(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load("pretrain_2d.pth", num_heads=shape["num_heads"], decoder_num_heads=shape["decoder_num_heads"],
                     **_grid(shape))
    head, decoder = made.objective, made.objective.decoder
    images = case.given["full/small_u8"].float() / 255
    times = shape["img_size"] // images.shape[-1]                           # each pixel is repeated
    images = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    patches = made.encoder.tokenizer.patchify(images)
    mask = keep_smallest(case.given["full/noise"], case.meta["mask_ratio"])
    yield "full/mask", removed(mask)
    with Taps(made.encoder.blocks) as taps:
        features = made.encoder(patches, mask)
    for i, out in taps.items():
        if f"full/block{i}" in case.expected:
            yield f"full/block{i}", out
    latent = torch.cat([features.summary[:, None], features.tokens], 1)
    yield "full/latent", latent
    yield "full/dec_embed", decoder.embed(latent)
    with Taps([*decoder.blocks, decoder.norm, head.controller]) as taps:
        mixed = head.mix(features, patches, mask, case.given["full/task_id"])
    yield "full/dec_input", mixed.start
    for i in range(len(decoder.blocks)):
        if f"full/dec_block{i}" in case.expected:
            yield f"full/dec_block{i}", unshuffled(taps[i], mask)
    yield "full/dec_norm", unshuffled(taps[len(decoder.blocks)], mask)
    yield from case.beginnings("full/controller_out", taps[len(decoder.blocks) + 1])
    yield from case.beginnings("full/pred", mixed.single)
    predicted = mixed.predicted()
    yield from case.beginnings("full/logits", predicted)
    hidden = predicted.gather(1, mask.hidden[..., None].expand(-1, -1, predicted.shape[-1]))
    for name, normalise in (("loss_raw", False), ("loss_norm_pix", True)):
        readout = Pixels(PixelReadout(normalise_patch=normalise), 1, made.encoder)
        yield f"full/{name}", readout.score(hidden, patches, mask)


def _grid(shape: dict) -> dict:
    return {"grid": [shape["img_size"] // shape["patch_size"]] * 2}
