"""SatMAE with groups of bands: pretraining under both masks, and both classifiers.

The released loss compares predictions in the order of the groups with targets in the order of the bands. That mix-up is
written out here, to show that it is the only difference, and is nowhere in the project.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.patches import Mask, Patches, take
from models.objectives.readouts import GroupPixelReadout, GroupPixels
from models.published.rebuild import Rebuilt
from tests.parity.compare import Case, Taps
from tests.parity.mae import keep_smallest, removed, unshuffled

EXEMPT: dict[str, str] = {}
LOSSES = (("raw", False), ("norm_pix", True))


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    shape, tuned = case.meta["constructor"], case.meta["finetune_constructor"]
    made = case.load("pretrain.pth", num_heads=shape["num_heads"], decoder_num_heads=shape["decoder_num_heads"],
                     groups=shape["channel_groups"])
    images = case.given["imgs"]
    patches = made.encoder.tokenizer.patchify(images)
    yield from parts(made, patches, "")
    yield "decoder_channel_embed", torch.cat([made.objective.decoder.place_code.rows[None], class_code(made)], 1)
    yield from case.beginnings("target", by_band(made, patches.values))
    for kind in ("independent", "spatial"):
        mask = mask_of(made, patches, case.given[f"noise_{kind}"], case.meta["mask_ratio"])
        yield from pretrain(case, made, patches, mask, f"{kind}/")
    for kind in ("gap", "cls"):
        model = case.load(f"finetune_{kind}.pth", num_heads=tuned["num_heads"], groups=tuned["channel_groups"])
        yield from classify(model, images, f"finetune/{kind}")


def parts(made: Rebuilt, patches: Patches, where: str) -> Iterator[tuple[str, Tensor]]:
    """Embeddings of each group, and the two halves of the positions."""
    encoder = made.encoder
    code = encoder.place_code
    yield f"{where}pos_embed", torch.cat([torch.zeros_like(code.grid.rows[:1]), code.grid.rows])[None]
    yield f"{where}channel_embed", code.rows[None]
    embedded = encoder.tokenizer.embed(patches.values, patches.place).chunk(num_groups(made), 1)
    for i, part in enumerate(embedded):
        yield f"{where}patch_embed_group{i}", part


def pretrain(case: Case, made: Rebuilt, patches: Patches, mask: Mask, where: str) -> Iterator[tuple[str, Tensor]]:
    encoder, decoder = made.encoder, made.objective.decoder
    with Taps(encoder.blocks) as taps:
        features = encoder(patches, mask)
    for i, out in taps.items():
        yield f"{where}block{i}", out
    yield f"{where}latent", torch.cat([features.summary[:, None], features.tokens], 1)
    yield f"{where}dec_embed", torch.cat([decoder.embed(features.summary)[:, None], decoder.embed(features.tokens)], 1)
    with Taps(decoder.blocks) as taps:
        decoded = decoder(features, patches, mask, everything=True)
    for i, out in taps.items():
        yield f"{where}dec_block{i}", unshuffled(out, mask)
    hidden = removed(mask).unflatten(1, (num_groups(made), -1))              # B G L
    yield f"{where}mask", hidden
    predicted = by_slot(made, made.objective.readout.guess(unshuffled(decoded, mask)[:, 1:], patches.place))
    yield from case.beginnings(f"{where}pred", predicted, axis=2)
    for kind, normalise in LOSSES:
        yield from losses(made, decoded, patches, mask, normalise, where, kind)
        yield f"{where}loss_{kind}", released_loss(made, predicted, by_band(made, patches.values), hidden, normalise)


def losses(made: Rebuilt, decoded: Tensor, patches: Patches, mask: Mask, normalise: bool, where: str,
           kind: str) -> Iterator[tuple[str, Tensor]]:
    """The project's own loss, and its mean for each group."""
    readout = readout_of(made, normalise)
    asked = decoded[:, -mask.hidden.shape[1]:]
    yield f"{where}derived_loss_{kind}", readout(asked, patches.values, patches, mask)
    yield f"{where}derived_group_losses_{kind}", group_errors(made, readout, asked, patches, mask)


def group_errors(made: Rebuilt, readout: GroupPixels, asked: Tensor, patches: Patches, mask: Mask) -> Tensor:
    """G: the mean over the hidden patches of each group."""
    error, _ = readout.errors(asked, patches, mask)                          # B H
    group = take(patches.place, mask.hidden)[..., 0]
    return torch.stack([error[group == i].mean() for i in range(num_groups(made))])


def released_loss(made: Rebuilt, predicted: Tensor, target: Tensor, hidden: Tensor, normalise: bool) -> Tensor:
    """Slot s of the prediction beside band s, under the mask of the group that has band s.

    Args:
        predicted: B C L p*p in the order of the groups. target: B L C*p*p in the order of the bands. hidden: B G L.
    """
    if normalise:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (predicted - target.unflatten(2, (predicted.shape[1], -1)).transpose(1, 2)).square().mean(-1)   # B C L
    total = sum((error[:, list(group)].mean(1) * hidden[:, i]).sum()
                for i, group in enumerate(made.encoder.tokenizer.groups))
    return total / hidden.sum()


def classify(made: Rebuilt, images: Tensor, where: str) -> Iterator[tuple[str, Tensor]]:
    patches = made.encoder.tokenizer.patchify(images)
    with Taps([*made.encoder.blocks, made.head.norm]) as taps:
        logits = made.head(made.encoder(patches), patches, images)
    depth = len(made.encoder.blocks)
    for i in range(depth):
        yield f"{where}/block{i}", taps[i]
    yield f"{where}/features", taps[depth]
    yield f"{where}/logits", logits


def mask_of(made: Rebuilt, patches: Patches, noise: Tensor, ratio: float) -> Mask:
    """Smallest noise kept; noise of one grid stands for every group, whose visible patches then follow each other."""
    mask = keep_smallest(noise, ratio)
    if noise.shape[1] == patches.place.shape[1]:
        return mask
    cells = noise.shape[1]
    return Mask(*(torch.cat([index + i * cells for i in range(num_groups(made))], 1)
                  for index in (mask.visible, mask.hidden)))


def by_slot(made: Rebuilt, values: Tensor) -> Tensor:
    """values B G*L P -> B C L p*p, bands in the order of the groups."""
    tokenizer = made.encoder.tokenizer
    groups = values.chunk(len(tokenizer.groups), 1)                          # B L P each
    return torch.cat([part[..., :size].unflatten(2, (len(group), -1)).transpose(1, 2)
                      for part, size, group in zip(groups, tokenizer.sizes, tokenizer.groups, strict=True)], 1)


def by_band(made: Rebuilt, values: Tensor) -> Tensor:
    """values B G*L P -> B L C*p*p, bands in their own order."""
    slots = [band for group in made.encoder.tokenizer.groups for band in group]
    order = [slots.index(band) for band in range(len(slots))]
    return by_slot(made, values)[:, order].transpose(1, 2).flatten(2)


def readout_of(made: Rebuilt, normalise: bool) -> GroupPixels:
    """The project's readout with the file's weights, for raw or normalised targets."""
    own = made.objective.readout
    readout = GroupPixels(GroupPixelReadout(normalise_patch=normalise), own.project[0].in_features, made.encoder)
    readout.project = own.project
    return readout


def class_code(made: Rebuilt) -> Tensor:
    """1 1 d: what says of the decoder's class token that it is of no group."""
    decoder = made.objective.decoder
    return decoder.class_position[..., -decoder.place_code.rows.shape[1]:]


def num_groups(made: Rebuilt) -> int:
    return len(made.encoder.tokenizer.groups)
