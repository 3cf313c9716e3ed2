"""MONAI: masked autoencoder and ViT in two and three dimensions, and a file of an older release."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.patches import Mask
from tests.parity.compare import Case, Taps
from tests.parity.mae import removed, unshuffled

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    for name, shape in case.meta["constructor"].items():
        if "decoder_hidden_size" in shape:
            yield from masked(case, name, shape)
        else:
            yield from plain(case, name, shape)
    old = next(file for file in case.meta["checkpoints"] if "stale" in file)
    shape = case.meta["constructor"][old.split("_")[0]]
    made, x = case.load(old, **_settings(shape)), case.given[f"{old.split('_')[0]}/x"]
    yield f"{old.split('_')[0]}_old/out", _out(made, x)


def masked(case: Case, name: str, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load(f"{name}.pth", decoder_num_heads=shape["decoder_num_heads"], **_settings(shape))
    encoder, decoder, readout = made.encoder, made.objective.decoder, made.objective.readout
    x, visible = case.given[f"{name}/x"], case.given[f"{name}/selected_indices"]
    patches = encoder.tokenizer.patchify(x)
    code = encoder.place_code(patches.place, patches.grid)
    yield f"{name}/patch_embedding", encoder.tokenizer.embed(patches.values) + code
    yield f"{name}/position_embeddings", code[:1]
    yield f"{name}/decoder_pos_embedding", decoder.place_code(patches.place, patches.grid)[:1]
    mask = Mask(visible, _others(visible, patches.values.shape[1]))
    yield f"{name}/mask", removed(mask)
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask)
    for i, out in taps.items():
        if f"{name}/block{i}" in case.expected:
            yield f"{name}/block{i}", out
    latent = torch.cat([features.summary[:, None], features.tokens], 1)
    yield f"{name}/latent", latent
    yield f"{name}/dec_embed", decoder.embed(latent)
    with Taps(decoder.blocks) as taps:
        decoded = decoder(features, patches, mask, everything=True)
    for i, out in taps.items():
        if f"{name}/dec_block{i}" in case.expected:
            yield f"{name}/dec_block{i}", unshuffled(out, mask)
    yield from case.beginnings(f"{name}/pred", unshuffled(readout.project(decoded), mask)[:, 1:])


def plain(case: Case, name: str, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made, x = case.load(f"{name}.pth", **_settings(shape)), case.given[f"{name}/x"]
    patches = made.encoder.tokenizer.patchify(x)
    code = made.encoder.place_code(patches.place, patches.grid)
    yield f"{name}/patch_embedding", made.encoder.tokenizer.embed(patches.values) + code
    yield f"{name}/position_embeddings", code[:1]
    hidden = made.encoder(patches, layers=range(len(made.encoder.blocks))).layers
    for i, out in enumerate(hidden):
        if f"{name}/hidden{i}" in case.expected:
            yield f"{name}/hidden{i}", out
    yield f"{name}/out", _out(made, x)


def _out(made, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    patches = made.encoder.tokenizer.patchify(x)
    features = made.encoder(patches)
    return features.tokens if made.head is None else made.head(features, patches, x)


def _settings(shape: dict) -> dict:
    grid = [size // step for size, step in zip(shape["img_size"], shape["patch_size"], strict=True)]
    told = {"patch": shape["patch_size"]} if shape.get("proj_type") == "perceptron" else {}
    return {"num_heads": shape["num_heads"], "grid": grid, **told}


def _others(visible: Tensor, count: int) -> Tensor:
    """B V -> B count - V: the indices that are not among them, ascending."""
    taken = torch.zeros(len(visible), count, dtype=torch.long).scatter(1, visible, 1)
    return taken.argsort(dim=1, stable=True)[:, :count - visible.shape[1]]
