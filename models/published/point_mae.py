"""Point-MAE (Pang et al. 2022, Pang-Yatian/Point-MAE): pretraining with decoder, and fine-tuned classifiers.

Files: `pretrain.pth`, `modelnet_*.pth` and `scan_*.pth`, each {base_model, optimizer, epoch, metrics, best_metrics}
with `module.` before every name. Its part segmentation (`part_seg.pth`) has a head that is not here; it is refused by
the names of that head's tensors.

Legend: E width, O outputs, I inputs, k points per group.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.encoder.masking import RandomMasking
from models.encoder.tokenizers import Groups, GroupTokenizer
from models.encoder.transformer import Encoder, EncoderSettings, Shape
from models.heads.predict_sample import PredictSample, SampleHead
from models.objectives.decoders import DecoderSettings, TransformerDecoder
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import Chamfer, ChamferReadout
from models.published.mae import blocks_back, layer_back
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "point_mae"
LICENCE = "MIT (Pang-Yatian/Point-MAE)"
HEADS = {(384, 12): 6, (384, 4): 6}
"""Heads of the published encoder and decoder by (width, depth)."""
PRETRAINED_GROUPS = {(384, 12): 64}
"""Groups that the published encoder was pretrained with."""
GROUP_SIZE = {(384, 12): 32}
"""Points per group of every published model."""
POINTS = {64: 1024, 128: 2048, 512: 8192}
"""Points per cloud by number of groups, in every published model."""
DROP_PATH = 0.1
"""Of encoder and decoder, in every configuration of the release."""
COORDINATES = Channels(("x", "y", "z"), unit="radius", low=(-1.0,) * 3, high=(1.0,) * 3)


def recognise(file: Published) -> bool:
    """The small PointNet's convolutions, in the layout of pretraining or of fine-tuning."""
    return any(f"{prefix}encoder.first_conv.0.weight" in file.tensors for prefix in ("MAE_encoder.", ""))


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    pretrained = read.has("MAE_encoder.norm.weight")
    encoder = move_encoder(read, "MAE_encoder." if pretrained else "")
    settings: dict[str, object] = {"encoder": encoder}
    if pretrained:
        decoder = move_decoder(read, "MAE_decoder", "decoder_pos_embed", "mask_token", "decoder")
        move_points(read, "increase_dim", "readout")
        settings["objective"] = MaskedAutoencoderSettings(masking=published_masking(read), decoder=decoder,
                                                          readout=ChamferReadout())
    if read.has("cls_head_finetune.0.weight"):
        settings["head"] = _head(read)
    return as_translation(read, FAMILY, LICENCE, settings)


def as_translation(read: Reader, family: str, licence: str, settings: dict[str, object]) -> Translation:
    """What was read, with the size of the clouds."""
    encoder = settings["encoder"]
    assert isinstance(encoder, EncoderSettings) and isinstance(encoder.tokenizer, Groups)
    points = read.setting("num_points", "the number of points per cloud", POINTS.get(encoder.tokenizer.num_groups))
    return Translation(family, licence, settings, 3, read.weights, read.names, (int(points),), COORDINATES, "points",
                       read.dropped, tuple(read.missing), tuple(dict.fromkeys(read.notes)))


def move_encoder(read: Reader, prefix: str, own_class_token: bool = True) -> EncoderSettings:
    """PointNet, positions, blocks and last norm.

    Args:
        prefix: what the encoder's names begin with.
        own_class_token: False where the file's class tokens belong to an objective.
    """
    width = read.shape(f"{prefix}norm.weight")[0]
    depth = read.count(f"{prefix}blocks.blocks")
    heads = read.setting("num_heads", "the number of heads", HEADS.get((width, depth)))
    groups = _groups(read, prefix, (width, depth))
    has_class_token = own_class_token and read.has("cls_token")
    if has_class_token:
        read.move("cls_token", "encoder", "class_token")
        read.move("cls_pos", "encoder", "class_position")
    _move_positions(read, f"{prefix}pos_embed", "encoder")
    first_block = f"{prefix}blocks.blocks.0"
    has_bias, mlp_width = read.has(f"{first_block}.attn.qkv.bias"), read.shape(f"{first_block}.mlp.fc1.weight")[0]
    read.move_blocks(f"{prefix}blocks.blocks", "encoder")
    read.move_layer(f"{prefix}norm", "encoder", "norm")
    return EncoderSettings(tokenizer=groups, size=Shape(width, depth, heads), class_token=has_class_token,
                           class_position=has_class_token, place_every_block=True, drop_path=DROP_PATH,
                           mlp_width=mlp_width, qkv_bias=has_bias, norm_eps=1e-5, embed_hidden=True)


def _groups(read: Reader, prefix: str, size: tuple[int, int]) -> Groups:
    """The PointNet, and what it is fed with. A decoder's last layer tells the points per group."""
    net = f"{prefix}encoder"
    widths = tuple(read.shape(f"{net}.{name}.weight")[0] for name in ("first_conv.0", "first_conv.3", "second_conv.0"))
    for theirs, ours in (("first_conv", "tokenizer.point"), ("second_conv", "tokenizer.group")):
        read.move_layer(f"{net}.{theirs}.0", "encoder", f"{ours}.0", kernel_to_linear)
        read.move_norm(f"{net}.{theirs}.1", "encoder", f"{ours}.1")
        read.move_layer(f"{net}.{theirs}.3", "encoder", f"{ours}.2", kernel_to_linear)
    pretrained = read.has("increase_dim.0.weight")
    count = read.setting("num_groups", "the number of groups per cloud",
                         PRETRAINED_GROUPS.get(size) if pretrained else None)
    points = (read.shape("increase_dim.0.weight")[0] // 3 if pretrained
              else read.setting("group_size", "the points per group", GROUP_SIZE.get(size)))
    return Groups(num_groups=int(count), group_size=int(points), widths=(widths[0], widths[1], widths[2]),
                  sampling="pointnet2")


def move_decoder(read: Reader, blocks: str, positions: str, mask_token: str, part: str,
                 within: str = "") -> DecoderSettings:
    """One decoder. `within`: where it lies in our part, with a dot."""
    width, depth = read.shape(f"{blocks}.norm.weight")[0], read.count(f"{blocks}.blocks")
    heads = read.setting("decoder_num_heads", "the decoder's number of heads", HEADS.get((width, depth)))
    read.move(mask_token, part, f"{within}mask_token")
    _move_positions(read, positions, part, within)
    first_block = f"{blocks}.blocks.0"
    has_bias, mlp_width = read.has(f"{first_block}.attn.qkv.bias"), read.shape(f"{first_block}.mlp.fc1.weight")[0]
    read.move_blocks(f"{blocks}.blocks", part, f"{within}blocks")
    read.move_layer(f"{blocks}.norm", part, f"{within}norm")
    return DecoderSettings(width=width, depth=depth, num_heads=heads, place_every_block=True, project=False,
                           drop_path=DROP_PATH, mlp_width=mlp_width, qkv_bias=has_bias, norm_eps=1e-5)


def move_points(read: Reader, theirs: str, part: str, within: str = "") -> None:
    """The layer from a token to the points of its group."""
    read.move_layer(f"{theirs}.0", part, f"{within}project", kernel_to_linear)


def published_masking(read: Reader) -> RandomMasking:
    """Random, 38 of 64 groups."""
    return RandomMasking(ratio=float(read.setting("mask_ratio", "the share that is hidden", 0.6)), round_hidden="down")


def _move_positions(read: Reader, theirs: str, part: str, within: str = "") -> None:
    for number in (0, 2):
        read.move_layer(f"{theirs}.{number}", part, f"{within}place_code.{number}")


def _head(read: Reader) -> SampleHead:
    """Class token beside the maximum over groups, then layers with batch norm; ReLU and dropout have numbers too."""
    widths, at = [], 0
    while read.has(f"cls_head_finetune.{at + 1}.running_mean"):
        widths.append(read.shape(f"cls_head_finetune.{at}.weight")[0])
        read.move_layer(f"cls_head_finetune.{at}", "head", f"before.{at}")
        read.move_norm(f"cls_head_finetune.{at + 1}", "head", f"before.{at + 1}")
        at += 4
    read.move_layer(f"cls_head_finetune.{at}", "head", "output")
    return SampleHead(pool="summary_max", norm="none", layers=tuple(widths))


def export(encoder: Encoder, size: Sequence[int], objective: MaskedAutoencoder | None = None,
           head: PredictSample | None = None) -> dict[str, Tensor]:
    """Our weights under Point-MAE's names: the inverse of `translate`, bit for bit. Without `module.`, which is in the
    release's files because it trains in DataParallel. With a class token the layout is that of fine-tuning, without one
    that of pretraining. Heads, groups and the way centres are sampled are not in the weights; the release samples as
    `sampling: pointnet2` does.

    Args:
        size: of the clouds; nothing depends on it here.

    Raises:
        CannotImport: Point-MAE has no place for what this encoder, objective or head does.
    """
    _check_layout(encoder, objective, head)
    out: dict[str, Tensor] = {}
    if encoder.class_token is not None and encoder.class_position is not None:
        out |= {"cls_token": encoder.class_token, "cls_pos": encoder.class_position}
    out |= encoder_back(encoder, "MAE_encoder." if encoder.class_token is None else "")
    if objective is not None:
        decoder, readout = objective.decoder, objective.readout
        assert isinstance(decoder, TransformerDecoder) and isinstance(readout, Chamfer)
        out |= {"mask_token": decoder.mask_token, **_numbered(decoder.place_code, "decoder_pos_embed"),
                **blocks_back(decoder.blocks, "MAE_decoder.blocks"), **layer_back(decoder.norm, "MAE_decoder.norm"),
                **kernel_back(readout.project, "increase_dim.0")}
    if head is not None:
        before = head.before if isinstance(head.before, nn.Sequential) else nn.Sequential()
        out |= {**_numbered(before, "cls_head_finetune"),
                **layer_back(head.output, f"cls_head_finetune.{len(before)}")}
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def _check_layout(encoder: Encoder, objective: MaskedAutoencoder | None, head: PredictSample | None) -> None:
    settings = encoder.settings
    if (not isinstance(encoder.tokenizer, GroupTokenizer) or not settings.place_every_block or settings.qkv_bias
            or settings.norm_eps != 1e-5 or not settings.last_norm
            or settings.class_token != settings.class_position):
        raise CannotImport("Point-MAE's layout holds encoders of groups of points, with positions before every block, "
                           "no bias on queries, keys and values, norms with 1e-5, and a class token with a position or "
                           f"none; found {settings}. Export this one with another --family.")
    if objective is not None:
        decoder = objective.decoder
        if (encoder.class_token is not None or not isinstance(decoder, TransformerDecoder)
                or decoder.settings.project or not decoder.settings.place_every_block or decoder.settings.qkv_bias
                or decoder.settings.norm_eps != 1e-5 or not isinstance(objective.readout, Chamfer)):
            raise CannotImport("Point-MAE's layout holds pretrainings without a class token, with a plain decoder of "
                               "the encoder's width (project: false, place_every_block: true, qkv_bias: false, "
                               f"norm_eps: 1e-5); found {decoder.settings}. Export the encoder alone.")
    if head is not None and (head.settings.pool != "summary_max" or head.settings.norm != "none"
                             or head.settings.batch_norm or head.settings.hidden or not head.settings.layers
                             or encoder.class_token is None):
        raise CannotImport("Point-MAE's layout holds classifiers on class token beside maximum (pool: summary_max, "
                           f"norm: none, layers: [256, 256]); found {head.settings}. Export the encoder alone.")


def encoder_back(encoder: Encoder, prefix: str) -> dict[str, Tensor]:
    """All but the class token under their names."""
    tokenizer = encoder.tokenizer
    assert isinstance(tokenizer, GroupTokenizer)
    out: dict[str, Tensor] = {}
    for theirs, net in (("first_conv", tokenizer.point), ("second_conv", tokenizer.group)):
        out |= {**kernel_back(net[0], f"{prefix}encoder.{theirs}.0"), **_state(net[1], f"{prefix}encoder.{theirs}.1"),
                **kernel_back(net[2], f"{prefix}encoder.{theirs}.3")}
    return {**out, **_numbered(encoder.place_code, f"{prefix}pos_embed"),
            **blocks_back(encoder.blocks, f"{prefix}blocks.blocks"), **layer_back(encoder.norm, f"{prefix}norm")}


def kernel_back(layer: nn.Module, theirs: str) -> dict[str, Tensor]:
    """A linear layer as a convolution of width 1: its weight O I becomes O I 1."""
    out = layer_back(layer, theirs)
    return {**out, f"{theirs}.weight": out[f"{theirs}.weight"].unsqueeze(-1)}


def kernel_to_linear(kernel: Tensor) -> Tensor:
    """O I 1 -> O I: a convolution of width 1 is a linear layer on each point."""
    return kernel.squeeze(-1)


def _numbered(layers: nn.Module, theirs: str) -> dict[str, Tensor]:
    """Every layer of a Sequential under its number, buffers of norms included."""
    return {name: value for i, layer in enumerate(layers.children())
            for name, value in _state(layer, f"{theirs}.{i}").items()}


def _state(layer: nn.Module, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}.{name}": value for name, value in layer.state_dict().items()}
