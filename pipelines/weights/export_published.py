"""`lacuna export`: a checkpoint folder in the layout of a published family, so that others can use our weights. What
the layout has no place for is refused; a file that was imported comes out with the same tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from domains import contract as contracts
from domains.contract import Contract
from domains.publish import sync_file, sync_folder
from models.encoder.swin import SwinSettings
from models.heads.predict_sample import PredictSample
from models.objectives.decoders import TransformerDecoder
from models.objectives.masked_autoencoder import MaskedAutoencoder
from models.objectives.readouts import Chamfer, Pixels
from models.objectives.swin_proxy_tasks import SwinProxyTasks
from models.published import mae, point_mae, swin_unetr
from models.published.translation import CannotImport
from pipelines.weights.checkpoints import CONTRACT, read_record
from pipelines.weights.import_published import load_imported
from pipelines.weights.tuned_checkpoints import load_tuned


@dataclass(frozen=True)
class Layout:
    """How a family's files are wrapped."""

    export: Callable[..., dict[str, Tensor]]
    """(encoder, size, objective, head) -> tensors under the family's names."""
    holds: Callable[[Any], bool]
    """Whether it has a place for the parts of an objective beside the encoder."""
    level: str
    """The key above the state dict."""
    prefix: str = ""
    """What stands before every name."""


def _decodes_tokens(objective: Any) -> bool:
    return (isinstance(objective, MaskedAutoencoder) and isinstance(objective.decoder, TransformerDecoder)
            and isinstance(objective.readout, Pixels | Chamfer))


def _has_proxy_tasks(objective: Any) -> bool:
    return isinstance(objective, SwinProxyTasks)


LAYOUTS = {"mae": Layout(mae.export, _decodes_tokens, "model"),
           "point_mae": Layout(point_mae.export, _decodes_tokens, "base_model", "module."),
           "swin_unetr": Layout(swin_unetr.export, _has_proxy_tasks, "state_dict")}
"""The families that can be written."""


def export_weights(checkpoint: str | Path, out: str | Path, family: str, encoder_only: bool = False) -> list[str]:
    """Write the weights of a checkpoint folder as a file of a family.

    Args:
        out: written with torch.save; without levels and prefixes where it ends in .safetensors.
        encoder_only: leave decoder and head out.

    Returns:
        Sentences: what was written, and what the layout cannot tell whoever reads it.

    Raises:
        CannotImport, CheckpointError: with found, expected, remedy; nothing is written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if family not in LAYOUTS:
        raise CannotImport(f"--family: found {family!r}, expected one of {', '.join(LAYOUTS)}, whose layouts can be "
                           "written.")
    if out.is_dir():
        raise CannotImport(f"--out {out}: found a folder, expected the name of a file to write.")
    encoder, objective, head, contract = _pieces(checkpoint)
    layout, said = LAYOUTS[family], []
    if encoder_only:
        objective = head = None
    elif objective is not None and not layout.holds(objective):
        said.append(f"left out: the parts of {type(objective).__name__} beside the encoder; {family} has no place for "
                    "them")
        objective = None
    try:
        tensors = layout.export(encoder, contract.size, objective, head)
    except CannotImport as error:
        raise CannotImport(f"{checkpoint}: {error} The command's --encoder-only leaves decoder and head out.") from None
    _write(out, tensors, layout)
    parts = ", ".join(part for part, there in (("encoder", True), ("what pretrained it", objective is not None),
                                               ("head", head is not None)) if there)
    return [f"{checkpoint}: {len(tensors)} tensors of {parts} in the layout of {family}", *said,
            *_untold(encoder, objective, contract, family), *_seen(checkpoint)]


def _seen(checkpoint: Path) -> list[str]:
    """A checkpoint remembers what it has learnt from, so that nobody is tested on it; a file of a family does not."""
    groups = len(read_record(checkpoint).get("pool_groups") or ())
    return [f"not in the file either: the {groups} groups that it was pretrained on. Whoever tunes it must keep them "
            "out of the test rows."] if groups else []


def _pieces(folder: Path) -> tuple[Any, Any, PredictSample | None, Contract]:
    """Encoder, objective, head and contract of any checkpoint folder. Raises CheckpointError, CannotImport."""
    record = read_record(folder)
    if "adapter" in record or "encoder" not in record:
        raise CannotImport(f"{folder}: found {'an encoder with an adapter' if 'encoder' in record else 'no encoder'}, "
                           "expected an encoder as its family knows it. Export the checkpoint that the adapter was put "
                           "on.")
    if record["kind"] == "tuned":
        model, contract, _ = load_tuned(folder)
        if not isinstance(model.head, PredictSample):
            raise CannotImport(f"{folder}: found a head of kind {model.head.settings.kind}, expected one that is made "
                               "of layers. Export what it was tuned from.")
        return model.encoder, None, model.head, contract
    made, _ = load_imported(folder)
    return made.encoder, made.objective, made.head, contracts.load(folder / CONTRACT)


def _write(out: Path, tensors: dict[str, Tensor], layout: Layout) -> None:
    """Whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        if out.suffix == ".safetensors":
            save_file(tensors, temporary)
        else:
            torch.save({layout.level: {f"{layout.prefix}{name}": value for name, value in tensors.items()}}, temporary)
        sync_file(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.parent)


def _untold(encoder: Any, objective: Any, contract: Contract, family: str) -> list[str]:
    """What whoever reads the file must be told, since no weight tells it."""
    if isinstance(encoder.settings, SwinSettings):
        told = [f"merging={encoder.settings.merging}"]
    else:
        told = [f"num_heads={encoder.settings.shape.num_heads}"]
        if isinstance(objective, MaskedAutoencoder):
            told.append(f"decoder_num_heads={objective.decoder.settings.num_heads}")
    if family == "point_mae":
        tokenizer = encoder.settings.tokenizer
        told += [f"num_groups={tokenizer.num_groups}", f"num_points={contract.size[0]}"]
        told += [] if objective is not None else [f"group_size={tokenizer.group_size}"]
    elif family == "mae":
        grid = [size // step for size, step in zip(contract.size, encoder.tokenizer.patch, strict=True)]
        told += [f"grid=[{grid[0]},{grid[1]}]"] if grid[0] != grid[1] else []
    standard = contract.normalisation == "standardise"
    channels = "; ".join(f"{channel.name}: clip {channel.low:g} to {channel.high:g}, mean {channel.mean:.4g}, "
                         f"deviation {channel.std:.4g}" if standard else channel.name for channel in contract.channels)
    return [f"not in the file: {', '.join(told)} (lacuna import takes them with --set)",
            f"its input: {channels} ({contract.normalisation})"]
