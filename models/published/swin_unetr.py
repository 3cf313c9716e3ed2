"""Swin UNETR's self-supervised encoder (Tang et al. 2022, Project-MONAI/research-contributions, SwinUNETR/Pretrain).

Files: `model_swinvit.pt` ({epoch, state_dict}, the encoder alone, `mlp.fc1/fc2`), and what one's own run leaves,
`model_bestValRMSE.pt` (`swinViT.` or, in older releases, `swin_vit.` before the encoder, `mlp.linear1/2`, three heads).

The two wirings of MONAI's patch merging have weights of the same shapes, so a file cannot tell which it was trained
with. The published one is from long before the change; of one's own run the user must know.

Legend: E width of the first stage, C channels, p patch, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.encoder.swin import STAGES, SwinEncoder, SwinSettings
from models.objectives.swin_proxy_tasks import SwinProxyTasks, SwinProxyTasksSettings
from models.published.mae import kernel_to_linear, layer_back, linear_to_kernel
from models.published.translation import CannotImport, Channels, Published, Reader, Translation

FAMILY = "swin_unetr"
LICENCE = "Apache-2.0 (Project-MONAI)"
PREFIXES = ("swinViT.", "swin_vit.", "")
"""What the encoder's names begin with."""
MLP = (("fc1", "fc2"), ("linear1", "linear2"))
"""The two layers of a block's MLP: as published, and as MONAI calls them."""
HOUNSFIELD = Channels(("HU",), unit="HU", low=(-1000.0,), high=(1000.0,), mean=(-1000.0,), std=(2000.0,))
"""-1000 to 1000 become 0 to 1."""
SIZE = 96
"""Edge of the crops of the published run."""


def recognise(file: Published) -> bool:
    """A stage called layers1 with a table of relative positions."""
    return any(f"{prefix}layers1.0.blocks.0.attn.relative_position_bias_table" in file.tensors for prefix in PREFIXES)


def translate(file: Published) -> Translation:
    """Raises CannotImport."""
    read = Reader(file)
    prefix = next(prefix for prefix in PREFIXES if prefix == "" or read.has(f"{prefix}patch_embed.proj.weight"))
    feature_size, num_channels, *patch = read.shape(f"{prefix}patch_embed.proj.weight")
    stages = [f"{prefix}layers{stage + 1}.0" for stage in range(STAGES)]
    first = f"{stages[0]}.blocks.0"
    fc1, fc2 = next((pair for pair in MLP if read.has(f"{first}.mlp.{pair[0]}.weight")), MLP[0])
    encoder = SwinSettings(
        patch=tuple(patch), feature_size=feature_size, depths=tuple(read.count(f"{stage}.blocks") for stage in stages),
        num_heads=tuple(read.shape(f"{stage}.blocks.0.attn.relative_position_bias_table")[1] for stage in stages),
        window=_window(read, first, len(patch)), merging=_merging(read, as_published=prefix == "" and fc1 == "fc1"),
        mlp_ratio=read.shape(f"{first}.mlp.{fc1}.weight")[0] / feature_size)
    read.move_layer(f"{prefix}patch_embed.proj", "encoder", "tokenizer.project", kernel_to_linear)
    for i, stage in enumerate(stages):
        _move_stage(read, stage, f"blocks.{i}", {fc1: "linear1", fc2: "linear2"})
        _drop_index(read, stage, encoder.window)
    settings: dict[str, object] = {"encoder": encoder}
    if read.has("rotation_head.weight"):
        settings["objective"] = _tasks(read)
    channels = HOUNSFIELD if num_channels == 1 else Channels(tuple(f"channel {i}" for i in range(num_channels)))
    read.notes.append("trained on volumes whose axes run right, anterior, superior; axes here run z, y, x. Weights are "
                      "taken as they are: fine-tuning has to unlearn the order of axes.")
    return Translation(FAMILY, LICENCE, settings, num_channels, read.weights, read.names, (SIZE,) * len(patch),
                       channels, "ct", read.dropped, tuple(read.missing), tuple(read.notes))


def _move_stage(read: Reader, theirs: str, ours: str, mlp: dict[str, str]) -> None:
    for i in range(read.count(f"{theirs}.blocks")):
        block, own = f"{theirs}.blocks.{i}", f"{ours}.blocks.{i}"
        read.move(f"{block}.attn.relative_position_bias_table", "encoder", f"{own}.attn.relative_position_bias_table")
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2"):
            read.move_layer(f"{block}.{layer}", "encoder", f"{own}.{layer}")
        for name, layer in mlp.items():
            read.move_layer(f"{block}.mlp.{name}", "encoder", f"{own}.mlp.{layer}")
    for layer in ("norm", "reduction"):
        read.move_layer(f"{theirs}.downsample.{layer}", "encoder", f"{ours}.downsample.{layer}")


def _tasks(read: Reader) -> SwinProxyTasksSettings:
    for theirs, ours in (("rotation_head", "rotation"), ("contrastive_head", "contrastive")):
        read.move_layer(theirs, "tasks", ours)
    edge, kinds = read.shape("conv.0.weight")[-1], {2: "transposed", 3: "interpolated"}
    if edge not in kinds:
        raise CannotImport(f"conv.0: found a kernel of {edge}, expected 2 (transposed convolutions) or 3 (convolutions "
                           "and interpolation). Save the encoder's tensors alone and import those.")
    for name in [name for name in read.left() if name.startswith("conv.")]:
        read.move(name, "tasks", name.replace("conv.", "restore.", 1))
    return SwinProxyTasksSettings(code=read.shape("contrastive_head.weight")[0], restore=kinds[edge])  # type: ignore[arg-type]


def _merging(read: Reader, as_published: bool) -> Literal["legacy", "current"]:
    """The wiring between stages: given, or the one that the published layout was trained with."""
    found: Any = read.file.given.get("merging")
    if found is None and as_published:
        read.notes.append("merging = legacy: files of this layout were trained with MONAI before 1.5, which merged "
                          "patches in another order; with the order of today they run, and mean something else.")
        return "legacy"
    if found not in ("legacy", "current"):
        raise CannotImport("weights do not tell in which order patches were merged when they were trained: found "
                           f"merging {found!r}, expected --set merging=legacy (MONAI before 1.5) or "
                           "--set merging=current (since).")
    return found


def _window(read: Reader, block: str, axes: int) -> tuple[int, ...]:
    """Size of the windows: from the number of relative positions where windows are cubes, else as given."""
    if "window" in read.file.given:
        return tuple(int(edge) for edge in read.file.given["window"])
    rows = read.shape(f"{block}.attn.relative_position_bias_table")[0]
    edge = (round(rows ** (1 / axes)) + 1) // 2
    if (2 * edge - 1) ** axes != rows:
        return tuple(read.setting("window", f"the windows' edges (a table of {rows} rows is of no cube)"))
    return (edge,) * axes


def _drop_index(read: Reader, stage: str, window: tuple[int, ...]) -> None:
    """Leave the index into the table of relative positions behind, after a look that it is the one made here."""
    expected = relative_index(window)
    for name in [name for name in read.left() if name.startswith(stage) and name.endswith("relative_position_index")]:
        found = read.file.tensors[name]
        if found.shape != expected.shape or not bool((found == expected).all()):
            raise CannotImport(f"{name}: found another index of shape {tuple(found.shape)} than a window of "
                               f"{list(window)} has. Give the right one: --set window=[...]")
        read.dropped[name] = "follows from the window; checked, and made anew"


def export(encoder: SwinEncoder, size: Sequence[int], objective: SwinProxyTasks | None = None,
           head: nn.Module | None = None) -> dict[str, Tensor]:
    """Our weights as one's own run leaves them: the inverse of `translate`, bit for bit. Never in the published layout,
    whose readers take the wiring of its time for granted. `size` changes nothing.

    Raises:
        CannotImport: the layout has no place for a classifier.
    """
    if head is not None:
        raise CannotImport("Swin UNETR's layout has no place for a head; found one. Export the encoder alone.")
    settings, project = encoder.settings, encoder.tokenizer.project
    out = {"swinViT.patch_embed.proj.bias": project.bias, "swinViT.patch_embed.proj.weight":
           linear_to_kernel(project.weight, encoder.tokenizer.patch, encoder.num_channels)}
    for i, stage in enumerate(encoder.blocks):
        theirs = f"swinViT.layers{i + 1}.0"
        out |= {f"{theirs}.{name}": value for name, value in stage.state_dict().items()}
        out |= {f"{theirs}.blocks.{block}.attn.relative_position_index": relative_index(settings.window)
                for block in range(settings.depths[i])}
    if objective is not None:
        tasks = objective.tasks
        out |= {**layer_back(tasks.rotation, "rotation_head"), **layer_back(tasks.contrastive, "contrastive_head"),
                **{f"conv.{name}": value for name, value in tasks.restore.state_dict().items()}}
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def relative_index(window: tuple[int, ...]) -> Tensor:
    """n n int64: row of the table for each pair of the n tokens of a window, by how far apart they are on each axis."""
    places = torch.cartesian_prod(*(torch.arange(edge) for edge in window)).reshape(-1, len(window))
    apart = places[:, None] - places[None] + torch.tensor(window) - 1        # n n K, from 0
    index = torch.zeros_like(apart[..., 0])
    for axis, edge in enumerate(window):
        index = index * (2 * edge - 1) + apart[..., axis]
    return index
