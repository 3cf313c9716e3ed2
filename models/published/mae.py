"""MAE (He et al. 2022, facebookresearch/mae) and its edits that keep the names: medical MAE (Xiao et al. 2023).

Files: `mae_pretrain_vit_*.pth` ({model}, encoder alone), `mae_visualize_vit_*.pth` ({model}, with decoder), one's own
runs ({model, optimizer, epoch, scaler, args}), fine-tuned classifiers (mean token with `fc_norm`, or class token with
`norm`).

Legend: E width, C channels, p patch, T patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from models.encoder.masking import RandomMasking
from models.encoder.positions import Table
from models.encoder.tokenizers import Grid, GridTokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import PixelReadout, Pixels
from models.published.translation import TIMM_BLOCK, CannotImport, Channels, Published, Reader, Translation

FAMILY = "mae"
LICENCE = "CC-BY-NC 4.0 (facebookresearch/mae); medical MAE: Apache-2.0"
HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
"""Heads of the published encoders by (width, depth)."""
DECODER_HEADS = {(128, 2): 16, (512, 2): 16, (512, 8): 16}
"""Of the published decoders: every MAE and medical MAE decoder has 16."""
IMAGENET = Channels(("R", "G", "B"), (640.0, 550.0, 460.0), "grey 0-1", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def recognise(file: Published) -> bool:
    """One patch projection, one table of positions, timm's blocks."""
    names = file.tensors
    return ("patch_embed.proj.weight" in names and names["patch_embed.proj.weight"].dim() == 4
            and "pos_embed" in names and "patch_embed.channel_embed" not in names
            and "patch_embed.channel_embed.weight" not in names and "blocks.0.attn.qkv.weight" in names
            and not any(name.startswith(("up_block", "prompt", "deep_prompt")) for name in names))


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    width, num_channels, patch, _ = read.shape("patch_embed.proj.weight")
    grid = square_grid(read.shape("pos_embed")[1] - 1, read)
    depth = read.count("blocks")
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    read.move_layer("patch_embed.proj", "encoder", "tokenizer.project", kernel_to_linear)
    read.move("cls_token", "encoder", "class_token")
    has_class_position = move_positions(read, "pos_embed", "encoder")
    read.move_blocks("blocks", "encoder")
    last_norm = not read.has("fc_norm.weight")
    if last_norm:
        read.move_layer("norm", "encoder", "norm")
    else:
        read.drop("norm.", "the classifier normalises the mean token instead (fc_norm)")
    table = Table(grid=grid, learnt=read.has("head.weight"))  # fixed while pretraining, trained while fine-tuning
    settings: dict[str, object] = {"encoder": EncoderSettings(
        tokenizer=Grid(patch=(patch, patch)), size=Shape(width, depth, heads), positions=table,
        class_position=has_class_position, mlp_width=read.shape("blocks.0.mlp.fc1.weight")[0],
        qkv_bias=read.has("blocks.0.attn.qkv.bias"), last_norm=last_norm)}
    if read.has("decoder_embed.weight"):
        settings["objective"] = _decoder(read, grid)
    if read.has("head.weight"):
        settings["head"] = _head(read)
    return Translation(FAMILY, LICENCE, settings, num_channels, read.weights, read.names,
                       (grid[0] * patch, grid[1] * patch), IMAGENET, "image", read.dropped, tuple(read.missing),
                       tuple(read.notes))


def _decoder(read: Reader, grid: tuple[int, int]) -> MaskedAutoencoderSettings:
    width = read.shape("decoder_embed.weight")[0]
    depth = read.count("decoder_blocks")
    heads = read.setting("decoder_num_heads", "the decoder's number of heads", DECODER_HEADS.get((width, depth)))
    read.move_layer("decoder_embed", "decoder", "embed")
    read.move("mask_token", "decoder", "mask_token")
    has_class_position = move_positions(read, "decoder_pos_embed", "decoder")
    read.move_blocks("decoder_blocks", "decoder")
    read.move_layer("decoder_norm", "decoder", "norm")
    read.move_layer("decoder_pred", "readout", "project")
    return MaskedAutoencoderSettings(
        masking=RandomMasking(ratio=float(read.file.args.get("mask_ratio", 0.75))),
        decoder=DecoderSettings(width=width, depth=depth, num_heads=heads, positions=Table(grid=grid, learnt=False),
                                class_position=has_class_position,
                                mlp_width=read.shape("decoder_blocks.0.mlp.fc1.weight")[0],
                                qkv_bias=read.has("decoder_blocks.0.attn.qkv.bias")),
        readout=PixelReadout(normalise_patch=bool(read.file.args.get("norm_pix_loss", True))))


def _head(read: Reader) -> SampleHead:
    """A classifier on the mean token with its own norm, or on the class token after the encoder's."""
    read.move_layer("head", "head", "output")
    if read.has("fc_norm.weight"):
        read.move_layer("fc_norm", "head", "norm")
        return SampleHead(pool="mean", norm="layer", norm_eps=1e-6)
    return SampleHead(pool="summary", norm="none")


def move_positions(read: Reader, theirs: str, part: str) -> bool:
    """Their table 1 1+T E becomes rows and, unless it is all zeros as MAE leaves it, the class token's position."""
    read.move(theirs, part, "place_code.rows", lambda table: table[0, 1:])
    if not read.has(theirs) or not bool(read.file.tensors[theirs][:, 0].any()):
        return False
    read.move(theirs, part, "class_position", lambda table: table[:, :1])
    return True


def export(encoder: Encoder, size: Sequence[int], objective: MaskedAutoencoder | None = None,
           head: PredictSample | None = None) -> dict[str, Tensor]:
    """Our weights under MAE's names: the inverse of `translate`, bit for bit. Positions are written out for `size`.

    Raises:
        CannotImport: MAE has no place for what this encoder, objective or head does.
    """
    tokenizer = _check_layout(encoder, objective, head)
    assert encoder.class_token is not None, "_check_layout has looked"
    patch = tokenizer.patch
    out = {"cls_token": encoder.class_token, "pos_embed": _positions(encoder, encoder, size),
           "patch_embed.proj.weight": linear_to_kernel(tokenizer.project.weight, patch, tokenizer.num_channels),
           "patch_embed.proj.bias": tokenizer.project.bias, **blocks_back(encoder.blocks, "blocks")}
    if encoder.settings.last_norm:
        out |= layer_back(encoder.norm, "norm")
    if (objective is not None and isinstance(objective.decoder, TransformerDecoder)
            and isinstance(objective.readout, Pixels)):
        decoder = objective.decoder
        out |= {"mask_token": decoder.mask_token, "decoder_pos_embed": _positions(decoder, encoder, size),
                **layer_back(decoder.embed, "decoder_embed"), **blocks_back(decoder.blocks, "decoder_blocks"),
                **layer_back(decoder.norm, "decoder_norm"), **layer_back(objective.readout.project, "decoder_pred")}
    if head is not None:
        out |= layer_back(head.output, "head")
        if isinstance(head.norm, nn.LayerNorm):
            out |= layer_back(head.norm, "fc_norm")
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def _check_layout(encoder: Encoder, objective: MaskedAutoencoder | None, head: PredictSample | None) -> GridTokenizer:
    settings, tokenizer = encoder.settings, encoder.tokenizer
    if (not isinstance(tokenizer, GridTokenizer) or len(tokenizer.patch) != 2 or encoder.class_token is None
            or settings.place_every_block or not settings.qkv_bias or settings.norm_eps != 1e-6
            or not (settings.last_norm or head)):
        raise CannotImport("MAE's layout holds encoders with a 2-D grid, a class token, positions added once, biases "
                           "and norms with 1e-6, the last of them in the encoder or before a classifier; found "
                           f"{settings}. Export this one with another --family.")
    decoder = None if objective is None else objective.decoder
    if isinstance(decoder, TransformerDecoder) and (
            not decoder.settings.project or decoder.settings.place_every_block or not decoder.settings.qkv_bias
            or decoder.settings.norm_eps != 1e-6):
        raise CannotImport("MAE's layout holds decoders with a layer before them, positions added once, biases and "
                           f"norms with 1e-6; found {decoder.settings}. Export the encoder alone.")
    if head is not None:
        of_head = head.settings
        kinds = {("mean", "layer", 1e-6, False), ("summary", "none", of_head.norm_eps, True)}
        if ((of_head.pool, of_head.norm, of_head.norm_eps, settings.last_norm) not in kinds or of_head.hidden
                or of_head.layers or of_head.batch_norm or of_head.activation != "none"):
            raise CannotImport("MAE's layout holds classifiers of one layer: on the mean token with a norm of its own "
                               "(norm_eps: 1e-6) behind an encoder with last_norm: false, or on the class token "
                               f"without one (norm: none); found {of_head}. Export the encoder alone.")
    return tokenizer


def _positions(coder: Encoder | TransformerDecoder, encoder: Encoder, size: Sequence[int]) -> Tensor:
    """1 1+T E: the class token's position, then the grid's."""
    empty = torch.zeros(1, encoder.num_channels, *size)
    patches = encoder.tokenizer.patchify(empty)
    rows = coder.place_code(patches.place, patches.grid)
    first = torch.zeros_like(rows[:, :1]) if coder.class_position is None else coder.class_position
    return torch.cat([first, rows], 1)


def layer_back(layer: nn.Module, theirs: str) -> dict[str, Tensor]:
    """Weight and bias of a layer under their name."""
    return {f"{theirs}.{name}": value for name, value in layer.named_parameters(recurse=False)}


def blocks_back(blocks: nn.ModuleList, theirs: str, table: Mapping[str, str] = TIMM_BLOCK) -> dict[str, Tensor]:
    """Every block under their names: the inverse of Reader.move_blocks."""
    return {name: value for i, block in enumerate(blocks) for other, own in table.items()
            for name, value in layer_back(block.get_submodule(own), f"{theirs}.{i}.{other}").items()}


def kernel_to_linear(kernel: Tensor) -> Tensor:
    """E C p p (p) -> E (p p (p) C): a convolution with the stride of its kernel is a linear layer on patches."""
    return kernel.movedim(1, -1).flatten(1)


def linear_to_kernel(weight: Tensor, patch: tuple[int, ...], num_channels: int) -> Tensor:
    """The inverse of `kernel_to_linear`."""
    return weight.unflatten(1, (*patch, num_channels)).movedim(-1, 1).contiguous()


def square_grid(count: int, read: Reader) -> tuple[int, int]:
    """Rows and columns of a table of positions: square, unless the user says otherwise (`--set grid=[8,12]`)."""
    given = read.file.given.get("grid")
    if given is not None:
        return int(given[0]), int(given[1])
    side = math.isqrt(count)
    if side * side != count:
        rows, columns = read.setting("grid", f"how the {count} positions lie (they are no square)")
        return int(rows), int(columns)
    return side, side
