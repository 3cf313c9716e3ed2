"""Checkpoints that carry a head: what finetune writes, and evaluate, predict and embed load.

A model that was tuned by adapters is kept apart from its trunk: adapters, head and loss alone, a few per cent of the
whole, with the hash of the trunk that they mean something on. `fold` makes one that stands by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains import contract as contracts
from domains.contract import Contract
from domains.sample import Task
from models.adapters.adapter import (
    AdapterSettings,
    adapter_state,
    add_adapter,
    left_after_merging,
    load_adapter_state,
    merge_adapters,
)
from models.adapters.prior_prompts import check_memories
from models.encoder.build import AnyEncoder, build_encoder
from models.encoder.tokenizers import ByChannel
from models.encoder.transformer import Encoder
from models.heads.tuned import HeadSettings, PredictByNeighbours, Tuned, build_head, build_loss
from pipelines.settings import build, plain
from pipelines.training.batches import Source, in_order
from pipelines.weights.checkpoints import (
    CONTRACT,
    RECORD,
    CheckpointError,
    Part,
    encoder_settings,
    fill,
    part_weights,
    read_record,
    save,
)
from pipelines.weights.starts import resolve


@dataclass(frozen=True)
class Trunk:
    """The encoder that adapters were put on, which lies elsewhere."""

    start: str
    """Its checkpoint folder, as the run named it: relative to the project that holds both, or absolute."""
    hash: str
    """`trunk_hash` of it, fitted to the data."""


def save_tuned(folder: Path, model: Tuned, contract: Contract, head: HeadSettings, task: Task,
               record: dict[str, Any], adapters: Sequence[AdapterSettings] = (), trunk: Trunk | None = None) -> None:
    """Write a tuned checkpoint.

    Args:
        record: temperature, reader, domain and provenance.
        adapters: what is on the encoder, in the order in which it was added.
        trunk: leave the encoder's own weights out: they lie there. None: everything is written.
    """
    num_reference = len(model.head.reference) if isinstance(model.head, PredictByNeighbours) else 0
    encoder: dict[str, Part] = ({"encoder": model.encoder} if trunk is None
                                else {"adapter": adapter_state(model.encoder)})
    save(folder, {**encoder, "head": model.head, "loss": model.loss}, contract, {
        "adapters": plain(tuple(adapters)), "trunk": plain(trunk),
        "kind": "tuned", "encoder": plain(model.encoder.settings), "num_channels": model.encoder.num_channels,
        "channels": list(getattr(model.encoder.tokenizer, "channels", ())),
        "head": plain(head), "task": plain(task), "num_reference": num_reference, **record})


def load_tuned(folder: str | Path) -> tuple[Tuned, Contract, dict[str, Any]]:
    """Rebuild a tuned model, in eval mode.

    Returns:
        The model; the contract of the data it was tuned on (with the statistics to normalise by); checkpoint.json with
        `task` as a domains.sample.Task.

    Raises:
        CheckpointError: with found, expected, remedy.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record.get("kind") != "tuned":
        raise CheckpointError(f"{folder} holds a {record.get('kind')} checkpoint, expected a tuned one (with a head). "
                              "Run `lacuna finetune` from it first.")
    where = f"{folder}/{RECORD}"
    task = build(Task, record["task"], f"{where}: task")
    contract = contracts.load(folder / CONTRACT)
    encoder = _encoder(folder, record, contract, where)
    head_settings: HeadSettings = build(HeadSettings, record["head"], f"{where}: head")  # type: ignore[arg-type]
    outputs = len(task.outputs)
    head = build_head(head_settings, encoder.width, outputs, record["num_reference"], encoder)
    model = Tuned(encoder, head, build_loss(head_settings, task.kind, outputs))
    for part in ("head", "loss"):
        fill(getattr(model, part), part_weights(folder, part), f"{part} of {folder}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval(), contract, {**record, "task": task}


def _encoder(folder: Path, record: dict[str, Any], contract: Contract, where: str) -> AnyEncoder:
    """The encoder with its adapters, filled."""
    settings = encoder_settings(record["encoder"], f"{where}: encoder")
    adapters = _adapters(record, f"{where}: adapters")
    if record.get("trunk"):
        trunk: Trunk = build(Trunk, record["trunk"], f"{where}: trunk")
        encoder = resolve(str(_trunk_folder(trunk, folder)), settings, contract, folder).build()
        assert isinstance(encoder, Encoder), "adapters go on no other"
        try:
            load_adapter_state(encoder, adapters, part_weights(folder, "adapter"), trunk.hash)
        except ValueError as error:
            raise CheckpointError(f"{folder} on {trunk.start}: {error}") from error
        return encoder
    encoder = build_encoder(settings, record["num_channels"])
    for one in adapters:
        add_adapter(encoder, one)
    fill(encoder, part_weights(folder, "encoder"), f"encoder of {folder}")
    check_memories(encoder)
    if record["channels"]:
        assert isinstance(encoder.tokenizer, ByChannel), "no other tokenizer has channels to write down"
        encoder.tokenizer.read_channels(record["channels"])
    return encoder


def _adapters(record: dict[str, Any], where: str) -> tuple[AdapterSettings, ...]:
    """What is on the encoder; nothing in the checkpoints of earlier releases."""
    return tuple(build(AdapterSettings, one, f"{where}.{i}")  # type: ignore[arg-type]
                 for i, one in enumerate(record.get("adapters") or []))


def _trunk_folder(trunk: Trunk, folder: Path) -> Path:
    """Where the trunk lies: in the project that holds the checkpoint, wherever that has been moved to."""
    for home in folder.resolve().parents:
        if (home / trunk.start / RECORD).is_file():
            return home / trunk.start
    raise CheckpointError(f"{folder} holds adapters alone: found no {trunk.start} above it, expected the encoder with "
                          f"the hash {trunk.hash[:12]} that they were made on. Copy it to the same place, or make a "
                          "checkpoint that stands by itself with `lacuna merge` where both are.")


def fold(folder: Path, out: Path) -> str:
    """Write a tuned checkpoint that needs no other: linear adapters are folded into the weights, the rest stays beside
    them. Returns a sentence on what was done.

    Raises:
        CheckpointError: with found, expected, remedy.
    """
    model, contract, record = load_tuned(folder)
    task: Task = record["task"]
    head: HeadSettings = build(HeadSettings, record["head"], f"{folder}/{RECORD}: head")  # type: ignore[arg-type]
    adapters = _adapters(record, f"{folder}/{RECORD}: adapters")
    if adapters and isinstance(model.encoder, Encoder):
        merge_adapters(model.encoder)
    kept = tuple(left for one in adapters if (left := left_after_merging(one)) is not None)
    own = ("format_version", "weights_sha256", "kind", "encoder", "num_channels", "channels", "head", "task",
           "num_reference", "adapters", "trunk")
    save_tuned(out, model, contract, head, task, {key: value for key, value in record.items() if key not in own}, kept)
    folded = [one.kind for one in adapters if one not in kept]
    return (f"folded into the weights: {', '.join(folded) or 'nothing'}; "
            f"kept beside them: {', '.join(one.kind for one in kept) or 'nothing'}")


def predict(model: Tuned, source: Source, batch_size: int = 128, device: torch.device | None = None,
            in_label_units: bool = True) -> np.ndarray:
    """Predictions for all rows of a source, in order: n O float32.

    Args:
        in_label_units: False leaves a regression's standardised numbers, as the loss compares them.
    """
    device = device or torch.device("cpu")
    was_training = model.training
    model.to(device).eval()
    call = model if in_label_units else model.predict
    out = in_order(source, lambda batch: call(batch.x, batch.known), batch_size, device)
    model.train(was_training)
    return out


def probabilities(kind: str, prediction: torch.Tensor, temperature: float) -> torch.Tensor:
    """Calibrated probabilities from logits B O; numbers of a regression pass unchanged."""
    match kind:
        case "single_label":
            return (prediction / temperature).softmax(-1)
        case "multi_label":
            return (prediction / temperature).sigmoid()
        case _:
            return prediction
