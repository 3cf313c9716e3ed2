"""Fills the memories of prior prompts with what the frozen encoder makes of training rows, before anything is tuned.

Features go in, labels do not. Rows are seen without augmentation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.adapters.prior_prompts import memories, prior_query
from models.encoder.transformer import Encoder
from models.heads.tuned import Tuned
from pipelines.training.batches import Batch, Source, in_order


def fill_memories(model: Tuned, train: Source, device: torch.device) -> None:
    """Nothing happens where no adapter remembers. train: the rows that the model is tuned on, and no other.

    Raises:
        ValueError: fewer rows than neighbours are asked for.
    """
    encoder = model.encoder
    for memory in memories(encoder):
        assert isinstance(encoder, Encoder), "adapters go on no other"
        was_training = model.training
        model.to(device).eval()

        def query(batch: Batch, memory=memory, encoder=encoder) -> Tensor:  # type: ignore[no-untyped-def]
            return prior_query(encoder, memory, encoder.tokenizer.patchify(batch.x, batch.known))

        memory.remember(torch.from_numpy(in_order(train, query, 128, device)).to(device))
        model.train(was_training)
