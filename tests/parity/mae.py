"""MAE: pretraining with both losses, encoder-only and visualise files, both classifiers, resized positions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.patches import Mask, take
from models.objectives.readouts import PixelReadout, Pixels
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    shapes = case.meta["constructor"]
    yield from pretrain(case, shapes["pretrain"])
    yield from at_224(case, shapes["encoder_only_224 and visualize_224"])
    for kind in ("gap", "cls"):
        yield from classify(case, f"finetune_{kind}.pth", f"finetune/{kind}", shapes["finetune"])
    yield from resized(case, shapes["finetune"])


def pretrain(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load("pretrain.pth", num_heads=shape["num_heads"], decoder_num_heads=shape["decoder_num_heads"])
    images, noise = case.given["pretrain/imgs"], case.given["pretrain/noise"]
    mask = keep_smallest(noise, case.meta["mask_ratio"]["pretrain"])
    encoder, decoder, readout = made.encoder, made.objective.decoder, made.objective.readout
    patches = encoder.tokenizer.patchify(images)
    embedded = encoder.tokenizer.embed(patches.values)
    code = encoder.place_code(patches.place, patches.grid)
    yield "pretrain/patch_embed", embedded
    yield "pretrain/embed", embedded + code
    yield "pretrain/pos_embed", with_class_row(encoder, code)
    yield "pretrain/ids_restore", order_of(mask).argsort(1)
    yield "pretrain/mask", removed(mask)
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask)
    for i, out in taps.items():
        yield f"pretrain/block{i}", out
    yield "pretrain/latent", torch.cat([features.summary[:, None], features.tokens], 1)
    with Taps([decoder.embed, *decoder.blocks]) as taps:
        decoded = decoder(features, patches, mask, everything=True)
    # our decoder embeds class token and patches by two calls; together they are the reference's one
    yield "pretrain/dec_embed", torch.cat([decoder.embed(features.summary)[:, None], decoder.embed(features.tokens)], 1)
    for i in range(len(decoder.blocks)):
        yield f"pretrain/dec_block{i}", unshuffled(taps[1 + i], mask)
    yield "pretrain/dec_norm", unshuffled(decoded, mask)
    yield "pretrain/pred", unshuffled(readout.project(decoded), mask)[:, 1:]
    yield from case.beginnings("pretrain/target_patches", patches.values)
    for name, normalise in (("loss_raw", False), ("loss_norm_pix", True)):
        yield f"pretrain/{name}", loss(made, normalise, decoded, images, patches, mask)


def at_224(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    heads = {"num_heads": shape["num_heads"]}
    images = case.given["e224/imgs_u8"].float() / 255
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in ((.485, .456, .406), (.229, .224, .225)))
    images = (images - mean) / std
    mask = keep_smallest(case.given["e224/noise"], case.meta["mask_ratio"]["e224"])
    alone = case.load("encoder_only_224.pth", **heads)
    assert alone.objective is None
    patches = alone.encoder.tokenizer.patchify(images)
    with Taps(alone.encoder.blocks) as taps:
        features = alone.encoder(patches, mask)
    for i, out in taps.items():
        yield f"e224/block{i}", out
    yield "e224/latent", torch.cat([features.summary[:, None], features.tokens], 1)
    yield "e224/mask", removed(mask)
    whole = case.load("visualize_224.pth", decoder_num_heads=shape["decoder_num_heads"], **heads)
    features = whole.encoder(patches, mask)
    decoded = whole.objective.decoder(features, patches, mask, everything=True)
    yield "e224/loss_norm_pix", loss(whole, True, decoded, images, patches, mask)
    predicted = unshuffled(whole.objective.readout.project(decoded), mask)[:, 1:]
    for name in case.expected:
        if name.startswith("e224/pred_patches_"):
            yield name, predicted[:, [int(number) for number in name.removeprefix("e224/pred_patches_").split("_")]]


def classify(case: Case, file: str, where: str, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load(file, num_heads=shape["num_heads"])
    images = case.given["finetune/imgs"]
    patches = made.encoder.tokenizer.patchify(images)
    with Taps([*made.encoder.blocks, made.head.norm]) as taps:
        features = made.encoder(patches)
        logits = made.head(features, patches, images)
    for i in range(len(made.encoder.blocks)):
        yield f"{where}/block{i}", taps[i]
    yield f"{where}/features", taps[len(made.encoder.blocks)]
    yield f"{where}/logits", logits


def resized(case: Case, shape: dict) -> Iterator[tuple[str, Tensor]]:
    made = case.load("finetune_gap.pth", num_heads=shape["num_heads"])
    images = case.given["interp/imgs"]
    patches = made.encoder.tokenizer.patchify(images)
    code = made.encoder.place_code(patches.place, patches.grid)
    yield "interp/pos_embed", with_class_row(made.encoder, code)
    yield "interp/logits", made.head(made.encoder(patches), patches, images)


def with_class_row(encoder, code: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """code B T E -> 1 1+T E: the class token's position, zeros where it has none, then those of the grid."""
    first = torch.zeros_like(code[:1, :1]) if encoder.class_position is None else encoder.class_position
    return torch.cat([first, code[:1]], 1)


def keep_smallest(noise: Tensor, ratio: float) -> Mask:
    """The reference's mask: the smallest noise is kept, in ascending order."""
    order = noise.argsort(1)
    kept = int(noise.shape[1] * (1 - ratio))
    return Mask(order[:, :kept], order[:, kept:])


def order_of(mask: Mask) -> Tensor:
    """B N: visible patches, then hidden ones."""
    return torch.cat([mask.visible, mask.hidden], 1)


def removed(mask: Mask) -> Tensor:
    """B N, 1 for hidden patches."""
    order = order_of(mask)
    return torch.zeros(order.shape).scatter(1, mask.hidden, 1.0)


def unshuffled(sequence: Tensor, mask: Mask) -> Tensor:
    """[class, visible, hidden] back into the order of the grid, class token first."""
    return torch.cat([sequence[:, :1], take(sequence[:, 1:], order_of(mask).argsort(1))], 1)


def loss(made, normalise: bool, decoded: Tensor, images: Tensor, patches, mask: Mask) -> Tensor:  # type: ignore[no-untyped-def]
    """The masked loss with raw or normalised patches, by the project's own readout."""
    readout = Pixels(PixelReadout(normalise_patch=normalise), decoded.shape[-1], made.encoder)
    readout.project = made.objective.readout.project
    return readout(decoded[:, -mask.hidden.shape[1]:], images, patches, mask)
