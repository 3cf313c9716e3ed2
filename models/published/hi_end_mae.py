"""Hi-End-MAE (Tang et al. 2025, FengheTan9/Hi-End-MAE): encoder, fixed positions, hierarchical decoder.

Files: `{epoch, state_dict, optimizer, scaler}`, names under `module.`. Axes are in the file's own order (h, w, d),
which becomes the first, second and last axis of a volume here.

Legend: E width, D width of the decoder, C channels, p patch, T patches.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from models.encoder.masking import RandomMasking
from models.encoder.positions import Table
from models.encoder.tokenizers import Grid, GridTokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample
from models.objectives.hierarchical_decoder import HierarchicalDecoder, HierarchicalDecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import PixelReadout, Pixels
from models.published.mae import blocks_back, kernel_to_linear, layer_back, linear_to_kernel
from models.published.table_grids import grid_of_rows, rows_for
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "hi_end_mae"
LICENCE = "Apache-2.0 (FengheTan9/Hi-End-MAE)"
HEADS = {(1536, 12): 16, (768, 12): 12}
"""Heads of the published encoders by (width, depth)."""
DECODER_HEADS = {528: 16, 384: 12}
"""Heads of the published decoders by width."""
WINDOW = (-175.0, 250.0)
"""Hounsfield units that the release maps to 0 to 1."""
CROSS_BLOCK = {"norm0": "norm0", "self_attn.qkv": "attention.qkv", "self_attn.proj": "attention.proj", "norm1": "norm1",
               "cross_attn.q": "cross.q", "cross_attn.kv": "cross.kv", "cross_attn.proj": "cross.proj",
               "norm2": "norm2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"}


def recognise(file: Published) -> bool:
    """An encoder under `encoder.`, with its positions beside it and not in it."""
    return {"encoder_pos_embed", "encoder.patch_embed.proj.weight", "encoder.cls_token"} <= set(file.tensors)


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    width, num_channels, *patch = read.shape("encoder.patch_embed.proj.weight")
    grid = grid_of_rows(read, read.shape("encoder_pos_embed")[1], len(patch))
    depth = read.count("encoder.blocks")
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    read.move_layer("encoder.patch_embed.proj", "encoder", "tokenizer.project", kernel_to_linear)
    read.move("encoder.cls_token", "encoder", "class_token")
    read.move("encoder_pos_embed", "encoder", "place_code.rows", rows)
    read.move_blocks("encoder.blocks", "encoder")
    read.move_layer("encoder.norm", "encoder", "norm")
    encoder = EncoderSettings(
        tokenizer=Grid(patch=tuple(patch)), size=Shape(width, depth, heads), positions=Table(grid=grid, learnt=False),
        mlp_width=read.shape("encoder.blocks.0.mlp.fc1.weight")[0],
        qkv_bias=read.has("encoder.blocks.0.attn.qkv.bias"))
    settings: dict[str, object] = {"encoder": encoder}
    if read.has("mask_token"):
        settings["objective"] = _decoder(read, grid)
    return Translation(FAMILY, LICENCE, settings, num_channels, read.weights, read.names,
                       tuple(count * step for count, step in zip(grid, patch, strict=True)), _channels(num_channels),
                       "ct" if len(patch) == 3 else "image", read.dropped, tuple(read.missing), tuple(read.notes))


def _decoder(read: Reader, grid: tuple[int, ...]) -> MaskedAutoencoderSettings:
    width = read.shape("mask_token")[-1]
    heads = read.setting("decoder_num_heads", "the decoder's number of heads", DECODER_HEADS.get(width))
    taps = _move_projections(read)
    read.move("mask_token", "decoder", "first.mask_token")
    read.move("decoder_pos_embed", "decoder", "first.place_code.rows", rows)
    depth = read.move_blocks("decoder.blocks", "decoder", "first.blocks")
    first = "decoder.cross_attention_blocks.0"
    self_attention = read.has(f"{first}.self_attn.qkv.weight")
    table = {theirs: ours for theirs, ours in CROSS_BLOCK.items()
             if self_attention or not theirs.startswith(("norm0", "self_attn"))}
    read.move_blocks("decoder.cross_attention_blocks", "decoder", "cross_blocks", table)
    read.move_layer("decoder.norm", "decoder", "first.norm")
    read.move_layer("decoder.head", "readout", "project")
    return MaskedAutoencoderSettings(
        masking=RandomMasking(ratio=0.75),
        decoder=HierarchicalDecoderSettings(
            width=width, depth=depth, num_heads=heads, taps=taps, self_attention=self_attention,
            positions=Table(grid=grid, learnt=False), mlp_width=read.shape(f"{first}.mlp.fc1.weight")[0],
            qkv_bias=read.has(f"{first}.cross_attn.q.bias")),
        readout=PixelReadout(normalise_patch=True, biased_variance=True))


def _move_projections(read: Reader) -> tuple[int, ...]:
    """Their projections run from the earliest tap to the last layer's output; ours in the order of the decoder's
    blocks, which look at the latest first. Returns the taps: every third block, from the fourth on."""
    count, blocks = read.count("encoder_to_decoder"), read.count("decoder.cross_attention_blocks")
    if count != blocks + 1:
        raise CannotImport(f"found {count} projections encoder_to_decoder and {blocks} cross_attention_blocks, "
                           "expected one projection for each block and one for the last layer. The file was edited.")
    read.move_layer(f"encoder_to_decoder.{blocks}", "decoder", "first.embed")
    for i in range(blocks):
        read.move_layer(f"encoder_to_decoder.{i}", "decoder", f"project_taps.{blocks - 1 - i}")
    return tuple(int(tap) for tap in read.file.given.get("taps", range(3 * blocks, 0, -3)))


def export(encoder: Encoder, size: Sequence[int], objective: MaskedAutoencoder | None = None,
           head: PredictSample | None = None) -> dict[str, Tensor]:
    """Our weights under Hi-End-MAE's names: the inverse of `translate`, bit for bit, without `module.`. Positions are
    written out for `size`. Another decoder than the hierarchical one is left out. Heads are not in the weights, nor are
    taps other than every third block.

    Raises:
        CannotImport: the layout has no place for what this encoder does, or for a head.
    """
    settings, tokenizer = encoder.settings, encoder.tokenizer
    if (head is not None or not isinstance(tokenizer, GridTokenizer) or encoder.class_token is None
            or settings.class_position or settings.place_every_block or not settings.last_norm
            or settings.norm_eps != 1e-6):
        raise CannotImport("Hi-End-MAE's layout holds encoders with a grid, a class token without a position, "
                           f"positions added once, norms with 1e-6 and no head; found {settings}"
                           f"{'' if head is None else ' and a head'}. Export this one with another --family.")
    out = {"encoder.cls_token": encoder.class_token, "encoder_pos_embed": rows_for(size, encoder, encoder.place_code),
           "encoder.patch_embed.proj.weight": linear_to_kernel(tokenizer.project.weight, tokenizer.patch,
                                                               tokenizer.num_channels),
           "encoder.patch_embed.proj.bias": tokenizer.project.bias, **blocks_back(encoder.blocks, "encoder.blocks"),
           **layer_back(encoder.norm, "encoder.norm")}
    if (objective is not None and isinstance(objective.decoder, HierarchicalDecoder)
            and isinstance(objective.readout, Pixels) and not objective.decoder.settings.class_position):
        out |= _decoder_back(objective.decoder, objective.readout, encoder, size)
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def _decoder_back(decoder: HierarchicalDecoder, readout: Pixels, encoder: Encoder,
                  size: Sequence[int]) -> dict[str, Tensor]:
    settings = decoder.settings
    table = {theirs: ours for theirs, ours in CROSS_BLOCK.items()
             if settings.self_attention or not theirs.startswith(("norm0", "self_attn"))}
    out = {"mask_token": decoder.first.mask_token,
           "decoder_pos_embed": rows_for(size, encoder, decoder.first.place_code),
           **blocks_back(decoder.first.blocks, "decoder.blocks"), **layer_back(decoder.first.norm, "decoder.norm"),
           **blocks_back(decoder.cross_blocks, "decoder.cross_attention_blocks", table),
           **layer_back(readout.project, "decoder.head")}
    for i, layer in enumerate([*reversed(list(decoder.project_taps)), decoder.first.embed]):
        out |= layer_back(layer, f"encoder_to_decoder.{i}")
    return out


def rows(table: Tensor) -> Tensor:
    """1 T E -> T E"""
    return table[0]


def _channels(count: int) -> Channels:
    names = ("HU",) if count == 1 else tuple(f"channel {i}" for i in range(count))
    low, high = WINDOW
    return Channels(names, (), "HU", (low,) * count, (high - low,) * count, (low,) * count, (high,) * count)
