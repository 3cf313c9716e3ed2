"""What a training step of each method costs beside MAE's: `python -m benchmarks.method_cost [RUN...]`.

Every run of examples/methods/params.yaml on random data of its contract's size, beside a plain MAE that hides 75 %
(60 % of points) with the same size of encoder, the same patch and a batch as large: forward, backward and update,
interleaved in one process, median of the ratios with quartiles. One thread, so that other work disturbs less.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from models.encoder.build import build_encoder
from models.encoder.chance import chance_of
from models.encoder.masking import RandomMasking
from models.encoder.tokenizers import Grid, Groups
from models.encoder.transformer import EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoderSettings
from models.objectives.objective import build_objective
from models.objectives.readouts import ChamferReadout
from pipelines.ingest import DataRun, domain_reader
from pipelines.pretrain import PretrainRun
from pipelines.settings import build

PARAMS: dict[str, Any] = yaml.safe_load((Path(__file__).parent.parent / "examples/methods/params.yaml").read_text())
ROUNDS = 15


def contract_of(run: PretrainRun) -> Any:
    """The contract that the run's data would have."""
    data = build(DataRun, PARAMS["ingest"][run.data], f"ingest.{run.data}")
    reader = domain_reader(data.domain)
    return reader.ingest.contract(build(reader.settings, data.read, "read"))


def plain_mae(run: PretrainRun, axes: int) -> tuple[EncoderSettings, MaskedAutoencoderSettings]:
    """MAE with this run's size, patch and light decoder."""
    tokenizer: Any = getattr(run.encoder, "tokenizer", None)
    if isinstance(tokenizer, Groups):
        size = getattr(run.encoder, "size", Shape(96, 4, 4))
        settings = EncoderSettings(tokenizer=tokenizer, size=size, class_token=False, place_every_block=True)
        decoder = DecoderSettings(width=96, depth=2, num_heads=4, place_every_block=True)
        return settings, MaskedAutoencoderSettings(masking=RandomMasking(ratio=0.6), decoder=decoder,
                                                   readout=ChamferReadout())
    patch = tuple(tokenizer.patch) if tokenizer is not None else (8,) * axes
    size = run.encoder.size if isinstance(run.encoder, EncoderSettings) else Shape(96, 4, 4)
    settings = EncoderSettings(tokenizer=Grid(patch=patch), size=size)
    return settings, MaskedAutoencoderSettings(decoder=DecoderSettings(width=64, depth=1, num_heads=4))


def stepper(encoder: Any, objective: Any, x: torch.Tensor, channels: int, teacher: Any = None) -> Callable[[], float]:
    """A function that makes one update and returns its seconds."""
    model = build_objective(objective, build_encoder(encoder, channels), teacher)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.arange(len(x))
    step = 0

    def go() -> float:
        nonlocal step
        began = time.perf_counter()
        losses = model(x, None, chance_of(0, 0, step, ids, 0 * ids))
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        return time.perf_counter() - began

    return go


def measure(name: str) -> tuple[float, float, float, float]:
    """Median ratio to MAE, its quartiles, and MAE's milliseconds."""
    run = build(PretrainRun, PARAMS["pretrain"][name], f"pretrain.{name}")
    contract = contract_of(run)
    torch.manual_seed(0)
    batch = run.optimisation.batch_size
    channels = len(contract.channels)
    points = contract.kind == "points"
    x = torch.randn(batch, *contract.size, 3) if points else torch.randn(batch, channels, *contract.size)
    assert run.encoder is not None, "runs of examples/methods describe theirs"
    teacher = None
    if run.teacher != "scratch":
        other = build(PretrainRun, PARAMS["pretrain"][Path(run.teacher).name], "teacher")
        assert other.encoder is not None
        teacher = build_encoder(other.encoder, channels)
    ours = stepper(run.encoder, run.objective, x, channels, teacher)
    mae = stepper(*plain_mae(run, x.dim() - 2), x, channels)
    for warm in (ours, mae):
        warm()
    pairs = [(ours(), mae()) for _ in range(ROUNDS)]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return middle, low, high, 1000 * statistics.median(b for _, b in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| run | step / MAE's step | quartiles | MAE's step |\n|---|---|---|---|")
    for name in sys.argv[1:] or PARAMS["pretrain"]:
        middle, low, high, base = measure(name)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {base:.0f} ms |", flush=True)
