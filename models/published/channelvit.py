"""ChannelViT (Bao et al. 2024, insitro/ChannelViT), trained with hierarchical channel sampling or without.

Files are bare state dicts of the backbone. The two kinds differ in one tensor: codes of channels are C E with the
sampling (an embedding) and 1 E C 1 1 without it.

Legend: E width, C channels, p patch, T patches.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.encoder.positions import Table
from models.encoder.tokenizers import Bands
from models.encoder.transformer import EncoderSettings, Shape
from models.published.table_grids import grid_of_rows
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "channelvit"
LICENCE = "CC-BY-NC 4.0 (LICENSE of insitro/ChannelViT; its source headers say Apache-2.0)"
HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12}
"""Heads of the published sizes by (width, depth)."""
PHOTOGRAPHS = Channels(("R", "G", "B"), (640.0, 550.0, 460.0), "grey 0-1", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SO2SAT = Channels(
    ("S1 VH real", "S1 VH imaginary", "S1 VV real", "S1 VV imaginary", "S1 VH intensity", "S1 VV intensity",
     "S1 covariance real", "S1 covariance imaginary", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"),
    (*[None] * 8, 492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 1613.7, 2202.4),
    "reflectance x 10000",
    (-2.7661554e-05, 2.2139642e-05, 2.3079854e-05, -2.897074e-05, 0.045271896, 0.26610142, 0.0019685407, 0.0014894817,
     1244.2144, 1101.5362, 1025.17806, 1154.8226, 1598.6235, 1819.497, 1750.1162, 1955.1599, 1567.3669, 1115.0938),
    (0.17874631, 0.1779993, 0.46587786, 0.46137187, 4.026994, 8.289052, 2.7971811, 1.6728995,
     395.32706, 473.56457, 656.0701, 626.9059, 759.6791, 892.2283, 905.4905, 997.2874, 992.988, 876.3408),
    (*[-1e6] * 8, *[0.0] * 10), (*[1e6] * 8, *[65534.0] * 10))
"""What So2Sat's 18 channels are, with the statistics of its random split. Bands of Sentinel-2 are there as reflectance;
here they are times 10000, as satellite data is kept. Nothing is clipped."""


def recognise(file: Published) -> bool:
    """Codes of channels beside the patch projection, timm's blocks."""
    names = file.tensors
    return (("patch_embed.channel_embed.weight" in names or "patch_embed.channel_embed" in names)
            and "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names)


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    width, _, _, *patch = read.shape("patch_embed.proj.weight")
    grid = grid_of_rows(read, read.shape("pos_embed")[1] - 1, 2)
    depth = read.count("blocks")
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    read.move_layer("patch_embed.proj", "encoder", "tokenizer.project", lambda kernel: kernel.flatten(1))
    name, turn = _channel_codes(read)
    read.move(name, "encoder", "place_code.channel.weight", turn)
    read.move("cls_token", "encoder", "class_token")
    read.move("pos_embed", "encoder", "place_code.grid.rows", lambda table: table[0, 1:])
    read.move("pos_embed", "encoder", "class_position", lambda table: table[:, :1])
    read.move_blocks("blocks", "encoder")
    read.move_layer("norm", "encoder", "norm")
    encoder = EncoderSettings(
        tokenizer=Bands(patch=(patch[0], patch[1])), size=Shape(width, depth, heads),
        positions=Table(grid=grid, channelvit_resize=True), class_position=True,
        mlp_width=read.shape("blocks.0.mlp.fc1.weight")[0], qkv_bias=read.has("blocks.0.attn.qkv.bias"))
    num_channels = len(read.weights["encoder"]["place_code.channel.weight"])
    channels = channels_of(read, num_channels, {3: PHOTOGRAPHS, 18: SO2SAT})
    read.notes.append("positions are resized as the release does, which changes them even at the native size.")
    return Translation(FAMILY, LICENCE, {"encoder": encoder}, num_channels, read.weights, read.names,
                       (grid[0] * patch[0], grid[1] * patch[1]), channels,
                       "image" if channels is PHOTOGRAPHS else "multispectral", read.dropped, tuple(read.missing),
                       tuple(read.notes))


def channels_of(read: Reader, count: int, known: dict[int, Channels]) -> Channels:
    """What the channels mean: their names as the user gives them, else a published data set with as many, else numbers.

    Raises:
        CannotImport: other names than there are channels were given.
    """
    given = read.file.given.get("channels")
    if given is not None:
        if len(given) != count:
            raise CannotImport(f"--set channels: found {len(given)} names, expected {count}, one for each channel.")
        return Channels(tuple(str(name) for name in given))
    if count not in known:
        read.notes.append(f"what the {count} channels are is not known; they are called by number. Name them with "
                          "--set channels=[...], in the order of the weights.")
    return known.get(count, Channels(tuple(f"channel {i}" for i in range(count))))


def _channel_codes(read: Reader) -> tuple[str, Callable[[Tensor], Tensor] | None]:
    """Name of the codes of channels, and what makes them C E."""
    if read.has("patch_embed.channel_embed.weight"):
        return "patch_embed.channel_embed.weight", None
    return "patch_embed.channel_embed", lambda codes: codes[0, :, :, 0, 0].T
