"""A model of a labelled task: made from a start, with adapters where it is to have some, and looked at on validation
rows. All that trains on labels begins and ends here, so that what differs between two models is what was asked to.
"""

from __future__ import annotations

import numpy as np
import torch

from domains.sample import Task
from models.adapters.adapter import AdapterSettings, add_adapter, trunk_hash
from models.encoder.chance import key_of
from models.encoder.initialisation import Initialisation, initialise
from models.heads.mask_loss import MaskLoss
from models.heads.tuned import HeadSettings, Tuned, build_head, build_loss
from pipelines.scoring.temperature import Temperature, fit_temperature
from pipelines.training.batches import Batch, Source, in_order
from pipelines.weights.starts import Start
from pipelines.weights.tuned_checkpoints import Trunk, predict


def build_model(start: Start, head: HeadSettings, task: Task, seed: int, num_reference: int = 0,
                initialisation: Initialisation = "xavier") -> Tuned:
    """A model of one arm and seed. The head's weights depend on the seed alone, so arms share them."""
    torch.manual_seed(key_of(seed, 1) & ((1 << 63) - 1))
    encoder = start.build()
    if start.weights is None:
        initialise(encoder, initialisation, key_of(seed, 3) & ((1 << 63) - 1))
    torch.manual_seed(key_of(seed, 2) & ((1 << 63) - 1))
    outputs = len(task.outputs)
    return Tuned(encoder, build_head(head, encoder.width, outputs, num_reference, encoder),
                 build_loss(head, task.kind, outputs))


def put_adapters(model: Tuned, adapters: tuple[AdapterSettings, ...], start: str, seed: int) -> Trunk | None:
    """Add adapters and freeze what they are on; None where there are none. Their first weights depend on the seed."""
    if not adapters:
        return None
    trunk = Trunk(start, trunk_hash(model.encoder))
    torch.manual_seed(key_of(seed, 4) & ((1 << 63) - 1))
    for one in adapters:
        add_adapter(model.encoder, one)
    model.freeze_trunk()
    return trunk


def trained_of(model: Tuned, protocol: str) -> tuple[int, int]:
    """Weights that this protocol trains, and weights in all."""
    total = sum(weight.numel() for weight in model.parameters())
    head = sum(weight.numel() for weight in model.head.parameters())
    full = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"full": full, "linear": head, "knn": 0}[protocol], total


def validation_loss(model: Tuned, val: Source, device: torch.device) -> float:
    """The training loss over all validation rows, model in eval mode. Of samples that are larger than the model's size,
    the crop at the centre counts."""
    assert val.labels is not None
    loss_of = model.loss
    if isinstance(loss_of, MaskLoss):
        return _loss_of_masks(model, loss_of, val, device)
    raw = torch.from_numpy(predict(model, val, device=device, in_label_units=False))
    with torch.no_grad():
        loss = model.loss(raw.to(device), torch.from_numpy(val.labels[val.rows]).to(device))
    return float(loss)


def _loss_of_masks(model: Tuned, loss_of: MaskLoss, val: Source, device: torch.device) -> float:
    """Sample by sample, since answers of all pixels would fill the memory."""
    def each(batch: Batch) -> torch.Tensor:
        assert batch.target is not None, "a source of masks gives them"
        return loss_of.per_sample(model.predict(batch.x, batch.known), batch.target, batch.labels)

    was_training = model.training
    model.to(device).eval()
    losses = in_order(val, each, 32, device)
    model.train(was_training)
    return float(losses.mean(dtype=np.float64))


def temperature_of(model: Tuned, val: Source, task: Task, device: torch.device) -> Temperature:
    """Fitted on validation rows; 1 for masks."""
    if task.kind == "segmentation":
        return Temperature(1.0, None, None, 0, "probabilities of pixels are as trained: no temperature is fitted")
    assert val.labels is not None
    return fit_temperature(predict(model, val, device=device), val.labels[val.rows], task.kind)
