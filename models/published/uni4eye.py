"""Uni4Eye++ (Cai et al. 2024, Davidczy/Uni4Eye_pp): one encoder for images and volumes, with a decoder for images and
its dynamic head where the file has them.

Files: one's own runs `{model, optimizer, epoch, scaler, args}` and encoders alone `{model}`. A file with one patch
projection, as third parties describe the released ViT-L, has MAE's names and is read as MAE's. Axes of volumes are in
the file's own order (h, w, d).

Legend: E width, D width of the decoder, C channels, p patch, T patches of an image, A tasks.
"""

from __future__ import annotations

import math

from torch import Tensor

from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.masking import RandomMasking
from models.encoder.positions import ImageAndVolume, NoPositions, Table
from models.encoder.transformer import EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.dynamic_head import DynamicHeadSettings
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings
from models.objectives.readouts import PixelReadout
from models.published.mae import kernel_to_linear
from models.published.table_grids import grid_of_rows
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "uni4eye"
LICENCE = "none given: all rights reserved (Davidczy/Uni4Eye_pp)"
HEADS = {(768, 12): 12, (1024, 24): 16}
"""Heads of the release's ViT-B and ViT-L by (width, depth)."""
DECODER_HEADS = {(512, 8): 16}
"""Of its decoder."""


def recognise(file: Published) -> bool:
    """Two patch projections, for images and for volumes."""
    names = file.tensors
    return {"patch_embed.proj2.weight", "patch_embed.proj3.weight", "pos_embed2"} <= set(names)


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    width, num_channels, *patch = read.shape("patch_embed.proj2.weight")
    cube = read.shape("patch_embed.proj3.weight")[2:]
    grid = grid_of_rows(read, read.shape("pos_embed2")[1] - 1, 2)
    depth = read.count("blocks")
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    read.move_layer("patch_embed.proj2", "encoder", "tokenizer.image", kernel_to_linear)
    read.move_layer("patch_embed.proj3", "encoder", "tokenizer.volume", kernel_to_linear)
    read.move("cls_token", "encoder", "class_token")
    positions, has_class_position = _positions(read, "", "encoder", grid)
    read.move_blocks("blocks", "encoder")
    read.move_layer("norm", "encoder", "norm")
    settings: dict[str, object] = {"encoder": EncoderSettings(
        tokenizer=Grid2D3D(patch=(patch[0], patch[1]), cube=(cube[0], cube[1], cube[2])),
        size=Shape(width, depth, heads), positions=positions, class_position=has_class_position,
        mlp_width=read.shape("blocks.0.mlp.fc1.weight")[0], qkv_bias=read.has("blocks.0.attn.qkv.bias"))}
    if read.has("decoder_embed.weight"):
        settings["objective"] = _objective(read, grid)
    read.drop("mlp.", "a layer that the release builds and never uses")
    names = ("R", "G", "B") if num_channels == 3 else tuple(f"channel {i}" for i in range(num_channels))
    return Translation(FAMILY, LICENCE, settings, num_channels, read.weights, read.names,
                       (grid[0] * patch[0], grid[1] * patch[1]), Channels(names, unit="grey 0-1"), "image",
                       read.dropped, tuple(read.missing), tuple(read.notes))


def _positions(read: Reader, prefix: str, part: str, grid: tuple[int, ...]) -> tuple[ImageAndVolume, bool]:
    """Both tables; one of all zeros, as the release leaves that of volumes, is no position at all. Returns them, and
    whether the class token has a position. Raises CannotImport when it has two."""
    image, volume = f"{prefix}pos_embed2", f"{prefix}pos_embed3"
    first = [read.file.tensors[name][:, :1] for name in (image, volume) if read.has(name)]
    if any(bool((row != first[0]).any()) for row in first):
        raise CannotImport(f"{image} and {volume}: found two positions of the class token, expected one for both. The "
                           "release leaves them at 0.")
    read.move(image, part, "place_code.image.rows", without_class)
    if read.has(volume) and bool(read.file.tensors[volume].any()):
        of_volumes: Table | NoPositions = Table(grid=_volume_grid(read, volume, grid), learnt=False)
        read.move(volume, part, "place_code.volume.rows", without_class)
    else:
        of_volumes = NoPositions()
        read.drop(volume, "all zeros: the release gives volumes no positions")
    has_class_position = bool(first) and bool(first[0].any())
    if has_class_position:
        read.move(image, part, "class_position", lambda table: table[:, :1])
    return ImageAndVolume(image=Table(grid=grid, learnt=False), volume=of_volumes), has_class_position


def _volume_grid(read: Reader, name: str, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The release's volumes are as high and wide as its images and half as deep."""
    count = read.shape(name)[1] - 1
    as_released = (*grid, grid[-1] // 2)
    if "volume_grid" not in read.file.given and math.prod(as_released) == count:
        return as_released
    return grid_of_rows(read, count, 3, "volume_grid")


def _objective(read: Reader, grid: tuple[int, ...]) -> DynamicHeadSettings | MaskedAutoencoderSettings:
    """The release hides half of the patches whatever its command line says, so `mask_ratio` there is not read."""
    width = read.shape("decoder_embed.weight")[0]
    depth = read.count("decoder_blocks")
    heads = read.setting("decoder_num_heads", "the decoder's number of heads", DECODER_HEADS.get((width, depth)))
    read.move_layer("decoder_embed", "decoder", "embed")
    read.move("mask_token", "decoder", "mask_token")
    positions, has_class_position = _positions(read, "decoder_", "decoder", grid)
    read.move_blocks("decoder_blocks", "decoder")
    read.move_layer("decoder_norm", "decoder", "norm")
    decoder = DecoderSettings(width=width, depth=depth, num_heads=heads, positions=positions,
                              class_position=has_class_position,
                              mlp_width=read.shape("decoder_blocks.0.mlp.fc1.weight")[0],
                              qkv_bias=read.has("decoder_blocks.0.attn.qkv.bias"))
    readout = PixelReadout(normalise_patch=bool(read.file.args.get("norm_pix_loss", False)))
    if not read.has("controller.weight"):
        read.move_layer("decoder_pred2", "readout", "image.project")
        read.move_layer("decoder_pred3", "readout", "volume.project")
        return MaskedAutoencoderSettings(masking=RandomMasking(ratio=0.5), decoder=decoder, readout=readout)
    read.move_layer("decoder_pred2", "readout", "project")
    read.drop("decoder_pred3.", "the dynamic head is made for one size of image; in the release volumes never pass it")
    read.move("controller.weight", "controller", "weight", lambda kernel: kernel.flatten(1))
    read.move("controller.bias", "controller", "bias")
    return DynamicHeadSettings(grid=grid, num_tasks=_num_tasks(read, math.prod(grid)), decoder=decoder, readout=readout,
                               masking=RandomMasking(ratio=0.5), released_relu=True)


def _num_tasks(read: Reader, count: int) -> int:
    """The head is given a number per token, the class token's too, and one per task; it makes a weight for each pair
    of places and a bias for each place. Raises CannotImport."""
    made, given = read.shape("controller.weight")[:2]
    if made != count * (count + 1) or given <= count + 1:
        raise CannotImport(f"controller: found {given} numbers in and {made} out, expected more than {count + 1} in "
                           f"and {count * (count + 1)} out for {count} positions. Give the grid: --set grid=[..].")
    return given - count - 1


def without_class(table: Tensor) -> Tensor:
    """1 1+T E -> T E"""
    return table[0, 1:]
