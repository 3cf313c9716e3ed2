"""MONAI's ViT and MaskedAutoEncoderViT (Project-MONAI/MONAI), in two and three dimensions.

Files are state dicts, bare or under `state_dict`. Older releases wrote attention between sequences into every block of
a ViT, which never uses it; newer ones still write its norm. Axes are in the file's own order, first axis first.

Legend: E width, C channels, p patch, P values per patch, T patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.encoder.masking import RandomMasking
from models.encoder.positions import Table
from models.encoder.tokenizers import Grid, GridTokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import PixelReadout, Pixels
from models.published.hi_end_mae import rows
from models.published.mae import blocks_back, kernel_to_linear, layer_back, linear_to_kernel
from models.published.table_grids import grid_of_rows, rows_for
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "monai_vit"
LICENCE = "Apache-2.0 (Project-MONAI/MONAI; weights trained with it have their own)"
HEADS = {(768, 12): 12}
"""Heads of MONAI's defaults by (width, depth)."""
DECODER_HEADS = {(384, 4): 12}
"""Of its default decoder."""
MONAI_BLOCK = {"norm1": "norm1", "attn.qkv": "attention.qkv", "attn.out_proj": "attention.proj", "norm2": "norm2",
               "mlp.linear1": "mlp.0", "mlp.linear2": "mlp.3"}
NORM_EPS = 1e-5
CONVOLUTION, PERCEPTRON = "patch_embedding.patch_embeddings", "patch_embedding.patch_embeddings.1"


def recognise(file: Published) -> bool:
    """MONAI's patch embedding and MLP names, without a prefix."""
    names = file.tensors
    return ("patch_embedding.position_embeddings" in names and "blocks.0.mlp.linear1.weight" in names
            and (f"{CONVOLUTION}.weight" in names or f"{PERCEPTRON}.weight" in names))


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    patch, num_channels = _patch(read)
    width = read.shape("patch_embedding.position_embeddings")[-1]
    grid = grid_of_rows(read, read.shape("patch_embedding.position_embeddings")[1], len(patch))
    has_decoder = read.has("decoder_embed.weight")
    depth = _move_blocks(read, "blocks", "encoder", norm_is_numbered=has_decoder)
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    read.move("patch_embedding.position_embeddings", "encoder", "place_code.rows", rows)
    has_class_token = read.has("cls_token")
    if has_class_token:
        read.move("cls_token", "encoder", "class_token")
    settings: dict[str, object] = {"encoder": EncoderSettings(
        tokenizer=Grid(patch=patch), size=Shape(width, depth, heads), class_token=has_class_token,
        positions=Table(grid=grid, learnt=not has_decoder), mlp_width=read.shape("blocks.0.mlp.linear1.weight")[0],
        qkv_bias=read.has("blocks.0.attn.qkv.bias"), norm_eps=NORM_EPS)}
    read.notes.append(f"positions: {'fixed' if has_decoder else 'trained'}, as MONAI's defaults have it.")
    if has_decoder:
        settings["objective"] = _decoder(read, grid)
    if any(read.has(f"{name}.weight") for name in ("classification_head.0", "classification_head")):
        settings["head"] = _head(read)
    return Translation(FAMILY, LICENCE, settings, num_channels, read.weights, read.names,
                       tuple(count * step for count, step in zip(grid, patch, strict=True)),
                       Channels(tuple(f"channel {i}" for i in range(num_channels))),
                       "ct" if len(patch) == 3 else "image", read.dropped, tuple(read.missing), tuple(read.notes))


def _patch(read: Reader) -> tuple[tuple[int, ...], int]:
    """Moves the patch embedding; returns the patch and the number of channels. A convolution's kernel tells both; a
    linear layer tells P alone: its values are in the order (p1, p2, (p3), channel), as ours are."""
    if read.has(f"{CONVOLUTION}.weight"):
        _, num_channels, *patch = read.shape(f"{CONVOLUTION}.weight")
        read.move_layer(CONVOLUTION, "encoder", "tokenizer.project", kernel_to_linear)
        return tuple(patch), num_channels
    num_values = read.shape(f"{PERCEPTRON}.weight")[1]
    patch = [int(size) for size in read.setting("patch", f"the patch and channels that make {num_values} values")]
    num_channels, rest = divmod(num_values, math.prod(patch))
    if rest or len(patch) not in (2, 3):
        raise CannotImport(f"--set patch: found {patch}, expected two or three numbers whose product divides "
                           f"{num_values}, the values that the file's projection takes.")
    read.move_layer(PERCEPTRON, "encoder", "tokenizer.project")
    return tuple(patch), num_channels


def _move_blocks(read: Reader, theirs: str, part: str, norm_is_numbered: bool) -> int:
    """Blocks and the norm after them, which the masked autoencoder numbers as if it were one more block. Returns how
    many blocks there are."""
    depth = read.count(theirs) - int(norm_is_numbered)
    read.move_blocks(theirs, part, table=MONAI_BLOCK, depth=depth)
    read.move_layer(f"{theirs}.{depth}" if norm_is_numbered else "norm", part, "norm")
    for i in range(depth):
        read.drop(f"{theirs}.{i}.norm_cross_attn.", "MONAI writes it into every block and never uses it in a ViT")
        read.drop(f"{theirs}.{i}.cross_attn.", "older MONAI releases write it into every block, never used in a ViT")
    return depth


def _decoder(read: Reader, grid: tuple[int, ...]) -> MaskedAutoencoderSettings:
    """MONAI gives no loss and no order of the predicted values; (p1, p2, (p3), channel) and raw values are taken."""
    width = read.shape("decoder_embed.weight")[0]
    read.move_layer("decoder_embed", "decoder", "embed")
    read.move("mask_tokens", "decoder", "mask_token")
    read.move("decoder_pos_embedding", "decoder", "place_code.rows", rows)
    depth = _move_blocks(read, "decoder_blocks", "decoder", norm_is_numbered=True)
    heads = read.setting("decoder_num_heads", "the decoder's number of heads", DECODER_HEADS.get((width, depth)))
    read.move_layer("decoder_pred", "readout", "project")
    return MaskedAutoencoderSettings(
        masking=RandomMasking(ratio=0.75),
        decoder=DecoderSettings(width=width, depth=depth, num_heads=heads, positions=Table(grid=grid, learnt=False),
                                mlp_width=read.shape("decoder_blocks.0.mlp.linear1.weight")[0], norm_eps=NORM_EPS,
                                qkv_bias=read.has("decoder_blocks.0.attn.qkv.bias")),
        readout=PixelReadout())


def _head(read: Reader) -> SampleHead:
    """On the class token after the last norm; numbered when an activation follows it."""
    numbered = read.has("classification_head.0.weight")
    read.move_layer("classification_head.0" if numbered else "classification_head", "head", "output")
    return SampleHead(pool="summary", norm="none", activation="tanh" if numbered else "none")


def export(encoder: Encoder, size: Sequence[int], objective: MaskedAutoencoder | None = None,
           head: PredictSample | None = None) -> dict[str, Tensor]:
    """Our weights under MONAI's names, for its strict loading: those of MaskedAutoEncoderViT with a plain decoder on
    pixels, those of ViT otherwise. The inverse of `translate`, bit for bit, but for the norms that MONAI writes and
    never uses. Positions are written out for `size`.

    Raises:
        CannotImport: MONAI has no place for what this encoder or head does.
    """
    settings, tokenizer = encoder.settings, encoder.tokenizer
    fits = (isinstance(tokenizer, GridTokenizer) and not settings.class_position and not settings.place_every_block
            and settings.last_norm and settings.norm_eps == NORM_EPS)
    if not isinstance(tokenizer, GridTokenizer) or not fits or (head is not None and not _is_monais(head)):
        raise CannotImport("MONAI's layout holds encoders with a grid, no position of the class token, positions added "
                           "once, norms with 1e-5, and heads of one layer on the class token (pool: summary, norm: "
                           f"none); found {settings}{'' if head is None else f' with {head.settings}'}. Export this "
                           "one with another --family.")
    out = {"patch_embedding.position_embeddings": rows_for(size, encoder, encoder.place_code),
           f"{CONVOLUTION}.weight": linear_to_kernel(tokenizer.project.weight, tokenizer.patch,
                                                     tokenizer.num_channels),
           f"{CONVOLUTION}.bias": tokenizer.project.bias}
    if encoder.class_token is not None:
        out["cls_token"] = encoder.class_token
    decoder = None if objective is None or encoder.class_token is None or head is not None else _decoder_of(objective)
    out |= _blocks_back(encoder, "blocks", "norm" if decoder is None else f"blocks.{len(encoder.blocks)}")
    if decoder is not None and objective is not None:
        out |= {"mask_tokens": decoder.mask_token, "decoder_pos_embedding": rows_for(size, encoder, decoder.place_code),
                **layer_back(decoder.embed, "decoder_embed"),
                **_blocks_back(decoder, "decoder_blocks", f"decoder_blocks.{len(decoder.blocks)}"),
                **layer_back(objective.readout.get_submodule("project"), "decoder_pred")}
    if head is not None:
        numbering = ".0" if head.settings.activation == "tanh" else ""
        out |= layer_back(head.output, f"classification_head{numbering}")
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def _decoder_of(objective: MaskedAutoencoder) -> TransformerDecoder | None:
    """The decoder, where MONAI has one that does the same."""
    decoder = objective.decoder
    if not isinstance(decoder, TransformerDecoder) or not isinstance(objective.readout, Pixels):
        return None
    about = decoder.settings
    same = (about.project and not about.class_position and not about.place_every_block and about.norm_eps == NORM_EPS)
    return decoder if same else None


def _is_monais(head: PredictSample) -> bool:
    about = head.settings
    return (about.pool == "summary" and about.norm == "none" and not about.hidden and not about.layers
            and not about.batch_norm)


def _blocks_back(network: Encoder | TransformerDecoder, theirs: str, norm: str) -> dict[str, Tensor]:
    """Blocks and the norm after them, with the norms that MONAI asks for and does not use."""
    out = blocks_back(network.blocks, theirs, MONAI_BLOCK) | layer_back(network.norm, norm)
    for i in range(len(network.blocks)):
        like = out[f"{theirs}.{i}.norm1.weight"]
        out |= {f"{theirs}.{i}.norm_cross_attn.weight": torch.ones_like(like),
                f"{theirs}.{i}.norm_cross_attn.bias": torch.zeros_like(like)}
    return out
