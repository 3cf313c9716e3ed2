"""SatMAE with groups of bands (Cong et al. 2022, sustainlab-group/SatMAE) and SatMAE++ (Noman et al. 2024,
techmn/satmae_pp), whose groups are the same and whose RGB variant has MAE's names; both ++ variants add blocks that
enlarge the prediction.

Files: {model, optimizer, epoch, scaler, args} of pretraining, {model, epoch, args} of fine-tuned classifiers (mean
token with `fc_norm`, or class token with `norm`).

A patch's values are in the order (band of the group, row, column) there and here, so kernels are only flattened. The
enlarging blocks were trained on predictions in the order of the groups; here the bands come in their own order, so the
first of their kernels is turned to that.

Legend: E width, G groups, C bands, c bands of a group, p patch, T patches, d numbers that say which group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from models.encoder.band_groups import BandGroups
from models.encoder.masking import ConsistentMasking, Masking, RandomMasking
from models.encoder.positions import GridAndGroup, Table
from models.encoder.transformer import EncoderSettings, Shape
from models.heads.predict_sample import SampleHead
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import AnyDecoderSettings, MaskedAutoencoderSettings
from models.objectives.multiscale import MultiScaleSettings
from models.objectives.readouts import GroupPixelReadout, PixelReadout
from models.published import mae
from models.published.channelvit import channels_of
from models.published.table_grids import grid_of_rows
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "satmae"
LICENCE = "CC-BY-NC 4.0 (sustainlab-group/SatMAE)"
LICENCE_PLUS = "Apache-2.0 (techmn/satmae_pp, an edit of SatMAE's CC-BY-NC 4.0 code)"
HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
"""Heads of the published encoders by (width, depth)."""
DECODER_HEADS = {(512, 8): 16}
"""Of their decoders."""
GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
"""Of the published models: visible and near infrared, red edge, short-wave infrared."""
DROPPED = [0, 9, 10]
"""Of Sentinel-2's 13 bands, those that the published models are without: B1, B9, B10."""
_MEAN = (1184.3824625, 1120.77120066, 1136.26026392, 1263.73947144, 1645.40315151, 1846.87040806, 1762.59530783,
         1972.62420416, 1732.16362238, 1247.91870117)
_STD = (650.2842772, 712.12507725, 965.23119807, 948.9819932, 1108.06650639, 1258.36394548, 1233.1492281, 1364.38688993,
        1310.36996126, 1087.6020813)
_LOW = tuple(mean - 2 * std for mean, std in zip(_MEAN, _STD, strict=True))
_HIGH = tuple(mean + 2 * std for mean, std in zip(_MEAN, _STD, strict=True))
SENTINEL2 = Channels(("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"),
                     (492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 1613.7, 2202.4), "reflectance x 10000",
                     _LOW, tuple(4 * std for std in _STD), _LOW, _HIGH)
"""fMoW-Sentinel without B1, B9, B10. The releases clip to two standard deviations about the mean and scale that to
0 to 1; they also round it to 255 steps, which is left out."""
AERIAL = Channels(("B", "G", "R"), (460.0, 550.0, 640.0), "grey 0-1", (0.4182007312774658, 0.4214799106121063,
                  0.3991275727748871), (0.28774282336235046, 0.27541765570640564, 0.2764017581939697))
"""What SatMAE++ saw of fMoW-RGB: blue first, by the statistics that its code takes in that order."""


def recognise(file: Published) -> bool:
    """A patch projection per group, or blocks that enlarge the prediction."""
    names = file.tensors
    grouped = "patch_embed.0.proj.weight" in names and "channel_embed" in names
    return (grouped or "up_block.up_conv.weight" in names) and "blocks.0.attn.qkv.weight" in names


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    return _translate_grouped(file) if "channel_embed" in file.tensors else _translate_rgb(file)


def _translate_grouped(file: Published) -> Translation:
    read = Reader(file)
    groups = _groups(read)
    width, _, *patch = read.shape("patch_embed.0.proj.weight")
    grid = grid_of_rows(read, read.shape("pos_embed")[1] - 1, 2)
    depth = read.count("blocks")
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    for i in range(len(groups)):
        read.move_layer(f"patch_embed.{i}.proj", "encoder", f"tokenizer.project.{i}", lambda kernel: kernel.flatten(1))
    read.move("cls_token", "encoder", "class_token")
    _move_positions(read, "pos_embed", "channel_embed", "encoder", len(groups), class_code="channel_cls_embed")
    read.move_blocks("blocks", "encoder")
    last_norm = not read.has("fc_norm.weight")
    if last_norm:
        read.move_layer("norm", "encoder", "norm")
    else:
        read.drop("norm.", "the classifier normalises the mean token instead (fc_norm)")
    tuned = read.has("head.weight")
    settings: dict[str, object] = {"encoder": EncoderSettings(
        tokenizer=BandGroups(groups=groups, patch=(patch[0], patch[1])), size=Shape(width, depth, heads),
        positions=_positions(read, "channel_embed", grid, learnt=tuned), class_position=read.has("channel_cls_embed"),
        mlp_width=read.shape("blocks.0.mlp.fc1.weight")[0], qkv_bias=read.has("blocks.0.attn.qkv.bias"),
        last_norm=last_norm)}
    if read.has("decoder_embed.weight"):
        settings["objective"] = _objective(read, grid, groups)
    if tuned:
        settings["head"] = _head(read)
    num_channels = sum(map(len, groups))
    dropped = read.file.args.get("dropped_bands", DROPPED if (width, depth) in HEADS else None)
    channels = channels_of(read, num_channels, {10: SENTINEL2} if dropped == DROPPED else {})
    return Translation(FAMILY, LICENCE_PLUS if read.has("proj_up_conv.weight") else LICENCE, settings, num_channels,
                       read.weights, read.names, (grid[0] * patch[0], grid[1] * patch[1]), channels, "multispectral",
                       read.dropped, tuple(read.missing), tuple(read.notes))


def _translate_rgb(file: Published) -> Translation:
    """SatMAE++ on three channels: MAE, and the blocks that enlarge its prediction."""
    Reader(file).shape("decoder_embed.weight")  # without a decoder there is nothing to enlarge
    larger = {name: value for name, value in file.tensors.items() if name.startswith(("proj_up_", "up_block"))}
    others = {name: value for name, value in file.tensors.items() if name not in larger}
    found = mae.translate(replace(file, tensors=others, args={"norm_pix_loss": False, **file.args}))
    read = Reader(replace(file, tensors=larger))
    plain = found.settings["objective"]
    objective = _with_finer_scales(read, plain.masking, plain.decoder, plain.readout)
    return replace(found, family=FAMILY, licence=LICENCE_PLUS, settings={**found.settings, "objective": objective},
                   weights={**found.weights, **read.weights}, names={**found.names, **read.names}, channels=AERIAL,
                   missing=(*found.missing, *read.missing))


def _groups(read: Reader) -> tuple[tuple[int, ...], ...]:
    """Which bands each group has: as the user says, else the file's own command line, else the published model's.

    Raises:
        CannotImport: none of them says, or it does not fit the weights.
    """
    sizes = tuple(read.shape(f"patch_embed.{i}.proj.weight")[1] for i in range(read.count("patch_embed")))
    args = read.file.args.get("grouped_bands")
    if args and "groups" not in read.file.given:
        read.notes.append(f"groups = {args}: of the file's own args (grouped_bands).")
        found = args
    else:
        size = (read.shape("patch_embed.0.proj.weight")[0], read.count("blocks"))
        is_published = size in HEADS and sizes == tuple(map(len, GROUPS))
        found = read.setting("groups", f"which of the {sum(sizes)} bands are in which group (their sizes are "
                             f"{list(sizes)})", GROUPS if is_published else None)
    groups = tuple(tuple(int(band) for band in group) for group in found)
    if tuple(map(len, groups)) != sizes:
        raise CannotImport(f"groups: found {[list(group) for group in groups]}, expected groups of {list(sizes)} "
                           "bands, as the weights have them. Give them with --set groups=[[...], ...].")
    try:
        BandGroups(groups=groups)
    except ValueError as error:
        raise CannotImport(str(error)) from None
    return groups


def _positions(read: Reader, codes: str, grid: tuple[int, ...], learnt: bool) -> GridAndGroup:
    return GridAndGroup(grid=Table(grid=grid, learnt=learnt), channel_dim=read.shape(codes)[2], learnt=learnt)


def _move_positions(read: Reader, rows: str, codes: str, part: str, num_groups: int, class_code: str = "") -> None:
    """Their table 1 1+T E-d and codes of groups 1 G d. The class token's position is the two side by side: the table's
    first row and `class_code`, or the last of the codes where there is one more than groups."""
    read.move(rows, part, "place_code.grid.rows", lambda table: table[0, 1:])
    read.move(codes, part, "place_code.rows", lambda table: table[0, :num_groups])
    if read.shape(codes)[1] > num_groups:
        class_code = codes
    if not read.has(class_code) or not read.has(rows):
        return
    first = read.file.tensors[rows][:, :1]
    read.move(class_code, part, "class_position", lambda code: torch.cat([first, code[:, -1:]], -1))
    read.names[rows].append(f"{part}.class_position")


def _objective(read: Reader, grid: tuple[int, ...],
               groups: Sequence[Sequence[int]]) -> MaskedAutoencoderSettings | MultiScaleSettings:
    width, depth = read.shape("decoder_embed.weight")[0], read.count("decoder_blocks")
    heads = read.setting("decoder_num_heads", "the decoder's number of heads", DECODER_HEADS.get((width, depth)))
    read.move_layer("decoder_embed", "decoder", "embed")
    read.move("mask_token", "decoder", "mask_token")
    _move_positions(read, "decoder_pos_embed", "decoder_channel_embed", "decoder", len(groups))
    read.move_blocks("decoder_blocks", "decoder")
    read.move_layer("decoder_norm", "decoder", "norm")
    for i in range(len(groups)):
        read.move_layer(f"decoder_pred.{i}", "readout", f"project.{i}")
    args = read.file.args
    ratio = float(args.get("mask_ratio", 0.75))
    masking = ConsistentMasking(ratio=ratio) if args.get("spatial_mask") else RandomMasking(ratio=ratio)
    decoder = DecoderSettings(
        width=width, depth=depth, num_heads=heads, class_position=True,
        positions=_positions(read, "decoder_channel_embed", grid, learnt=False),
        mlp_width=read.shape("decoder_blocks.0.mlp.fc1.weight")[0],
        qkv_bias=read.has("decoder_blocks.0.attn.qkv.bias"))
    readout = GroupPixelReadout(normalise_patch=bool(args.get("norm_pix_loss", False)))
    if not read.has("proj_up_conv.weight"):
        return MaskedAutoencoderSettings(masking=masking, decoder=decoder, readout=readout)
    slot_of = [band for group in groups for band in group]
    order = [slot_of.index(band) for band in range(len(slot_of))]
    return _with_finer_scales(read, masking, decoder, readout, order)


def _with_finer_scales(read: Reader, masking: Masking, decoder: AnyDecoderSettings,
                       readout: PixelReadout | GroupPixelReadout,
                       order: Sequence[int] | None = None) -> MultiScaleSettings:
    """Their blocks, `up_block` or `up_block1`, `up_block2` ..., become ours.

    Args:
        order: at which input of the first kernel each band is; None: in its own place.
    """
    read.move_layer("proj_up_conv", "upscale", "widen",
                    None if order is None else lambda kernel: kernel[:, list(order)])
    read.move_layer("proj_up_norm", "upscale", "norm")
    blocks = ["up_block"] if read.has("up_block.up_conv.weight") else []
    while read.has(f"up_block{len(blocks) + 1}.up_conv.weight"):
        blocks.append(f"up_block{len(blocks) + 1}")
    for i, block in enumerate(blocks):
        for theirs, ours in (("up_conv", "up"), ("up_norm", "up_norm"), ("res_block.conv1", "first"),
                             ("res_block.conv2", "second"), ("res_norm", "norm"), ("proj_out", "image")):
            read.move_layer(f"{block}.{theirs}", "upscale", f"steps.{i}.{ours}")
    return MultiScaleSettings(masking=masking, decoder=decoder, readout=readout, num_scales=len(blocks),
                              width=read.shape("proj_up_conv.weight")[0])


def _head(read: Reader) -> SampleHead:
    """A classifier on the mean token with its own norm, or on the class token after the encoder's."""
    read.move_layer("head", "head", "output")
    if read.has("fc_norm.weight"):
        read.move_layer("fc_norm", "head", "norm")
        return SampleHead(pool="mean", norm="layer", norm_eps=1e-6)
    return SampleHead(pool="summary", norm="none")
