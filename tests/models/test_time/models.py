"""Small fine-tuned models for tests of what happens to them at prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from models.encoder.build import build_encoder
from models.encoder.transformer import EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from pipelines.settings import build
from tests.fabricate import TOKENIZERS


def tuned(kind: str = "xray", task: str = "single_label", outputs: int = 3, batch_norm: bool = False) -> Tuned:
    """A model whose answers differ from sample to sample; points have batch norms in their tokenizer."""
    torch.manual_seed(0)
    size = {"width": 24, "depth": 2, "num_heads": 2}
    settings = build(EncoderSettings, {"tokenizer": TOKENIZERS[kind], "size": size}, "test")
    encoder = build_encoder(settings, 3 if kind in ("points", "multispectral") else 1)
    model = Tuned(encoder, build_head(SampleHead(batch_norm=batch_norm), 24, outputs), TaskLoss(task, outputs))
    torch.nn.init.normal_(model.head.output.weight, std=0.5)  # type: ignore[union-attr]
    for weight in model.parameters():
        weight.requires_grad_(False)
    return model.eval()


def samples(kind: str = "xray", count: int = 40, seed: int = 0) -> Tensor:
    """Random numbers that such a model takes, of another mean and deviation than it was made for."""
    chance = torch.Generator().manual_seed(seed)
    shape = {"xray": (1, 16, 16), "multispectral": (3, 16, 16), "points": (64, 3)}[kind]
    return 0.8 + 1.7 * torch.randn(count, *shape, generator=chance)
