"""ChannelViT with and without channel sampling: all channels, subsets in any order, one channel, other sizes, other
channels per sample, and the release's mix-up of sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.encoder.patches import Patches
from models.published.rebuild import Rebuilt
from tests.parity.compare import Case, Taps

EXEMPT: dict[str, str] = {}
FILES = {"hcs": "hcs_channelvit.pth", "cv": "channelvit.pth"}


def outputs(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Every recorded output."""
    for kind, file in FILES.items():
        shape = case.meta["constructor"][file]
        made = case.load(file, num_heads=shape["num_heads"])
        for about in case.meta["cases"][kind]:
            channels = case.given[f"{kind}/{about['name']}/channels"]
            rows, columns = about["size"]
            images = case.given[f"{kind}/imgs"]
            if list(images.shape[2:]) != [rows, columns]:
                images = case.given[f"{kind}/imgs_resized"][..., :rows, :columns]
            yield from wanted(case, f"{kind}/{about['name']}", made, cut(made, images[:, channels], channels.tolist()))
    made, images = case.load(FILES["hcs"]), case.given["hcs/imgs"]
    yield from wanted(case, "hcs/per_sample", made, per_sample(made, images, case.given["hcs/per_sample/channels"]))
    if "hcs/quirk_collision/cls" in case.expected:  # it takes four channels and an even grid
        yield from wanted(case, "hcs/quirk_collision", made, collision(case, made))


def cut(made: Rebuilt, images: Tensor, channels: list[int]) -> Patches:
    made.encoder.tokenizer.read_channels(channels)
    return made.encoder.tokenizer.patchify(images)


def per_sample(made: Rebuilt, images: Tensor, channels: Tensor) -> Patches:
    """Each sample has channels of its own: cut as if they were the first ones, then told which they are."""
    count = channels.shape[1]
    chosen = torch.stack([image[own] for image, own in zip(images, channels, strict=True)])
    patches = cut(made, chosen, list(range(count)))
    place = patches.place.clone()
    place[..., 0] = channels.repeat_interleave(place.shape[1] // count, dim=1).to(place.dtype)
    return patches._replace(place=place)


def collision(case: Case, made: Rebuilt) -> Patches:
    """Four channels at half of the native side are as many tokens as one channel at the native size."""
    side = case.meta["constructor"][FILES["hcs"]]["img_size"][0] // 2
    return cut(made, case.given["hcs/imgs_resized"][:, :4, :side, :side], [0, 1, 2, 3])


def wanted(case: Case, where: str, made: Rebuilt, patches: Patches) -> Iterator[tuple[str, Tensor]]:
    """Those of our tensors that are recorded for this case."""
    encoder = made.encoder
    with Taps(encoder.blocks) as taps:
        features = encoder(patches)
    code = encoder.place_code(patches.place, patches.grid)
    x, whole, _ = encoder.with_class_token(encoder.tokenizer.embed(patches.values, patches.place), code, None)
    # positions alone, without the code of the channel: one row per place for all channels. In the mix-up each channel
    # has rows of its own, and they are the table's
    rows = encoder.place_code.grid(patches.place, patches.grid)[:1]
    count = case.expected[f"{where}/pos_embed_used"].shape[1] - 1
    ours = {"cls": features.summary, "tokens": x + whole,
            "pos_embed_used": torch.cat([encoder.class_position, rows[:, :count]], 1)}
    ours |= {f"block{i}": out for i, out in taps.items()}
    for name, value in ours.items():
        if f"{where}/{name}" in case.expected:
            yield f"{where}/{name}", value
    yield from case.beginnings(f"{where}/norm_tokens", torch.cat([features.summary[:, None], features.tokens], 1))
