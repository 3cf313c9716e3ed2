"""Hi-End-MAE: encoder with its taps, hierarchical decoder, loss on layer-normed patches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.patches import Mask
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output. The release keeps its decoder's tokens in shuffled order, as ours does."""
    made = _load(case)
    encoder, decoder, readout = made.encoder, made.objective.decoder, made.objective.readout
    volume = case.given["volume_u8"].float() / 255
    patches = encoder.tokenizer.patchify(volume)
    order = case.given["noise"].argsort(1)
    kept = int(order.shape[1] * (1 - case.meta["mask_ratio"]))
    mask = Mask(order[:, :kept], order[:, kept:])
    yield "shuffle_ids", order
    yield "encoder_pos_embed", encoder.place_code(patches.place, patches.grid)[:1]
    yield "decoder_pos_embed", decoder.first.place_code(patches.place, patches.grid)[:1]
    seen = patches.values.gather(1, mask.visible[..., None].expand(-1, -1, patches.values.shape[-1]))
    yield "patch_embed_visible_flat", encoder.tokenizer.embed(seen).flatten(0, 1)[:, None]
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask, decoder.taps)
    for i, out in taps.items():
        if f"block{i}" in case.expected:
            yield f"block{i}", out
    latent = torch.cat([features.summary[:, None], features.tokens], 1)
    yield "latent", latent
    projected = [project(layer) for project, layer in zip(decoder.project_taps, features.layers, strict=True)]
    for i, out in enumerate([*reversed(projected), decoder.first.embed(latent)]):
        if f"proj{i}" in case.expected:
            yield f"proj{i}", out
    num_first, num_cross = len(decoder.first.blocks), len(decoder.cross_blocks)
    with Taps([*decoder.first.blocks, *decoder.cross_blocks]) as taps:
        decoded = decoder(features, patches, mask, everything=True)
    for i in range(num_first):
        if f"dec_block{i}" in case.expected:
            yield f"dec_block{i}", taps[i]
    for i in range(num_cross):
        if f"cross_block{i}" in case.expected:
            yield f"cross_block{i}", taps[num_first + i]
    yield "dec_norm", decoded
    hidden = decoder(features, patches, mask)
    yield from case.beginnings("head_masked", readout.project(hidden))
    yield from case.beginnings("target_masked", readout.target(patches, mask)[0])
    yield "loss", readout(hidden, volume, patches, mask)


def _load(case: Case):  # type: ignore[no-untyped-def]
    shape = case.meta["constructor"]
    size, patch = (_three(shape[name]) for name in ("img_size", "patch_size"))
    return case.load("pretrain.pth", num_heads=shape["encoder"]["num_heads"],
                     decoder_num_heads=shape["decoder"]["num_heads"],
                     grid=[pixels // step for pixels, step in zip(size, patch, strict=True)])


def _three(number: int | list[int]) -> list[int]:
    return [number] * 3 if isinstance(number, int) else list(number)
