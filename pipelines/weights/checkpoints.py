"""A checkpoint is a folder that can rebuild its model: weights.safetensors, checkpoint.json (what it is), contract.json
(what its data was). Nothing in it is a pickle. Resume state is another thing; it lies outside and is thrown away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from domains import contract as contracts
from domains import seal
from domains.contract import Contract
from domains.publish import folder_in_the_making, require_room, sync_file, sync_folder, write_text
from models.encoder.build import AnyEncoder, AnyEncoderSettings, build_encoder
from models.encoder.tokenizers import ByChannel
from pipelines.settings import build, plain

FORMAT_VERSION = 1
WEIGHTS, RECORD, CONTRACT = "weights.safetensors", "checkpoint.json", "contract.json"
SCRATCH = "scratch"


class CheckpointError(ValueError):
    """A folder is not a checkpoint that this release can use. The text says found, expected, remedy."""


@dataclass(frozen=True)
class Loaded:
    """An encoder from a checkpoint, with what came with it."""

    encoder: AnyEncoder
    contract: Contract
    record: dict[str, Any]
    """checkpoint.json as it is."""


def is_scratch(start: str | Path) -> bool:
    """Whether a `start` means random weights: the tracked file `scratch`, or the word."""
    return Path(start).name == SCRATCH and not Path(start).is_dir()


Part = nn.Module | Mapping[str, Tensor]
"""What a checkpoint holds under one name: all weights of a module, or some tensors by name."""


def save(folder: Path, parts: Mapping[str, Part], contract: Contract, record: dict[str, Any]) -> None:
    """Write a checkpoint folder; it appears whole or not at all.

    Args:
        parts: modules or tensors by name; a weight is called part.name.
        record: goes into checkpoint.json; `format_version` and the hash of the weights are added.
    """
    with folder_in_the_making(folder) as making:
        write_parts(making, parts, contract, record)


def write_parts(folder: Path, parts: Mapping[str, Part], contract: Contract, record: dict[str, Any]) -> None:
    """The files of a checkpoint into an existing folder that the caller publishes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"{part}.{name}": value.detach().cpu().contiguous().clone()
               for part, content in parts.items() for name, value in _tensors(content).items()}
    require_room(folder, sum(value.nbytes for value in weights.values()))
    save_file(weights, folder / WEIGHTS)
    sync_file(folder / WEIGHTS)
    contracts.save(contract, folder / CONTRACT)
    weights_sha256 = seal.hash_file(folder / WEIGHTS)
    record = {"format_version": FORMAT_VERSION, "weights_sha256": weights_sha256, **plain(record)}
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    seal.write(folder, known={WEIGHTS: weights_sha256})
    sync_folder(folder)


def _tensors(part: Part) -> Mapping[str, Tensor]:
    return part.state_dict() if isinstance(part, nn.Module) else part


def _instead(folder: Path) -> str:
    """What somebody who named this probably wants."""
    below = sorted(path.parent.relative_to(folder).as_posix() for depth in ("*/", "*/*/")
                   for path in folder.glob(depth + RECORD))
    if below:
        return f"Expected one of the checkpoints below it: {', '.join(below[:6])}{', ...' if len(below) > 6 else ''}."
    if folder.is_file():
        return f"Expected a folder. Weights of others are made one by `lacuna import {folder}`."
    return "Expected a folder that `lacuna pretrain`, `finetune` or `import` wrote."


def read_record(folder: Path) -> dict[str, Any]:
    """checkpoint.json, with the version checked. Raises CheckpointError."""
    if not (folder / RECORD).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: found no {RECORD}. {_instead(folder)}")
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: found checkpoint format {record.get('format_version')}, expected "
                              f"{FORMAT_VERSION}. Use the release that wrote it, or make it again.")
    return record


def load_encoder(folder: str | Path) -> Loaded:
    """Rebuild the encoder of a checkpoint. Raises CheckpointError; every weight of the encoder must be there."""
    folder = Path(folder)
    record = read_record(folder)
    if "encoder" not in record or "adapter" in record or record.get("adapters"):
        raise CheckpointError(f"{folder}: found {'an encoder with an adapter' if 'encoder' in record else 'no encoder'}"
                              f", expected an encoder alone. Take the checkpoint that the adapter was put on, or fold "
                              "the adapter into it with `lacuna merge`.")
    encoder = build_encoder(encoder_settings(record["encoder"], f"{folder}/{RECORD}: encoder"), record["num_channels"])
    fill(encoder, part_weights(folder, "encoder"), f"encoder of {folder}")
    if record.get("channels") and isinstance(encoder.tokenizer, ByChannel):
        encoder.tokenizer.read_channels(record["channels"])
    return Loaded(encoder, contracts.load(folder / CONTRACT), record)


def encoder_settings(raw: dict[str, Any], where: str) -> AnyEncoderSettings:
    """The settings of an encoder out of a record. The first records had one kind, and did not say which."""
    settings: AnyEncoderSettings = build(AnyEncoderSettings, {"kind": "transformer", **raw}, where)  # type: ignore[arg-type]
    return settings


def part_weights(folder: Path, part: str) -> dict[str, Tensor]:
    """The weights of one part, by their names within it."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            return {name.removeprefix(part + "."): file.get_tensor(name)
                    for name in file.keys() if name.startswith(part + ".")}  # .keys(): the file is no mapping
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({type(error).__name__}: {error}). It may be cut "
                              "short; copy or make it again.") from error


def fill(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load every weight, and refuse when one is missing, strange or of another shape."""
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    strange = [name for name in weights if name not in own]
    unlike = [f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
              for name in own if name in weights and own[name].shape != weights[name].shape]
    if missing or strange or unlike:
        raise CheckpointError(f"{what}: missing {missing or 'none'}, not expected {strange or 'none'}, other shape "
                              f"{unlike or 'none'}. Expected exactly the weights that its settings describe.")
    module.load_state_dict(dict(weights), strict=True)


def state_hash(module: nn.Module) -> str:
    """One hash over all weights: equal weights, equal hash."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.dim()
                      else str(value.item()).encode())
    return digest.hexdigest()
