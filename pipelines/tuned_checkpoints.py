"""Checkpoints that carry a head: what finetune writes, and evaluate, predict and embed load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains import contract as contracts
from domains.contract import Contract
from domains.sample import Task
from models.encoder.build import build_encoder
from models.encoder.tokenizers import ByChannel
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import HeadSettings, NearestHead, PredictByNeighbours, Tuned, build_head
from pipelines.batches import Source, in_order
from pipelines.checkpoints import (
    CONTRACT,
    RECORD,
    CheckpointError,
    encoder_settings,
    fill,
    part_weights,
    read_record,
    save,
)
from pipelines.settings import build, plain


def save_tuned(folder: Path, model: Tuned, contract: Contract, head: HeadSettings, task: Task,
               record: dict[str, Any]) -> None:
    """Write a tuned checkpoint. `record` holds temperature, reader, domain and provenance."""
    num_reference = len(model.head.reference) if isinstance(model.head, PredictByNeighbours) else 0
    save(folder, {"encoder": model.encoder, "head": model.head, "loss": model.loss}, contract, {
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
    encoder = build_encoder(encoder_settings(record["encoder"], f"{where}: encoder"), record["num_channels"])
    if record["channels"]:
        assert isinstance(encoder.tokenizer, ByChannel), "no other tokenizer has channels to write down"
        encoder.tokenizer.read_channels(record["channels"])
    head_settings: SampleHead | NearestHead = build(HeadSettings, record["head"], f"{where}: head")  # type: ignore[arg-type]
    outputs = len(task.outputs)
    head = build_head(head_settings, encoder.width, outputs, record["num_reference"])
    model = Tuned(encoder, head, TaskLoss(task.kind, outputs))
    for part in ("encoder", "head", "loss"):
        fill(getattr(model, part), part_weights(folder, part), f"{part} of {folder}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval(), contracts.load(folder / CONTRACT), {**record, "task": task}


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
