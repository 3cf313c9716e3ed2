"""Training steps on a GPU: `python -m benchmarks.gpu [--only NAME...] [--tiny]`. torch, lightning and numpy suffice.

Every case is a step of ours, compiled, beside a plain step as the paper draws it and the strongest baseline, fused
attention and torch.compile, all in bf16, after their results have been compared. The rate of a matrix product is taken
in the same call: the share of it is what a step makes of the machine. Then one case with batches read from shards.
`--tiny` runs the same code at sizes that a CPU can do, to see that it runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import flops
from benchmarks.mae_step import Pair, check, our_optimiser, pair_of, stepper
from benchmarks.paired import Stillness, in_turns, quartiles, report, settle, speedup, told
from benchmarks.reading import KINDS, batches_of, write
from models.encoder.chance import chance_of
from models.encoder.masking import RandomMasking
from models.encoder.tokenizers import Groups
from models.encoder.transformer import SIZES, Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import ChamferReadout
from pipelines.training.batches import on_device

DTYPE = torch.bfloat16
WARM, STEPS = 5, 20
"""Steps before timing, and steps in one timing."""


@dataclass(frozen=True)
class Case:
    """One model at one batch size."""

    name: str
    shape: Shape
    size: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    ratio: float = 0.75
    channels: int = 3
    bands: bool = False
    goal: float = 0.0
    """Share of the limit that its operations set; 0: none."""
    decoder: DecoderSettings = DecoderSettings()

    @property
    def work(self) -> float:
        """Operations of a sample."""
        tokens, values = self.channels if self.bands else 1, 1 if self.bands else self.channels
        for s, p in zip(self.size, self.patch, strict=True):
            tokens, values = tokens * (s // p), values * p
        return flops.mae(self.shape, tokens, values, self.ratio, self.decoder).train


FILM, CUBE = (224, 224), (96, 96, 96)
CASES = (
    Case("MAE-B/16 75%", SIZES["base"], FILM, (16, 16), 256, goal=0.45),
    Case("MAE-B/16 90%", SIZES["base"], FILM, (16, 16), 256, 0.9, goal=0.45),
    Case("MAE-L/16 75%", SIZES["large"], FILM, (16, 16), 128, goal=0.50),
    Case("MAE-L/16 90%", SIZES["large"], FILM, (16, 16), 128, 0.9, goal=0.50),
    Case("ChannelViT-S/16, 1 channel", SIZES["small"], FILM, (16, 16), 256, channels=1, bands=True),
    Case("ChannelViT-S/16, 4 channels", SIZES["small"], FILM, (16, 16), 64, channels=4, bands=True),
    Case("ChannelViT-S/16, 12 channels", SIZES["small"], FILM, (16, 16), 12, channels=12, bands=True),
    Case("MAE-B 96^3, patches of 16^3", SIZES["base"], CUBE, (16, 16, 16), 128, channels=1),
    Case("MAE-B 96^3, patches of 8^3", SIZES["base"], CUBE, (8, 8, 8), 16, channels=1),
)
SMALL, NARROW = Shape(32, 1, 2), DecoderSettings(width=32, depth=1, num_heads=2)
TINY = (Case("tiny images", SMALL, (32, 32), (8, 8), 2, goal=0.45, decoder=NARROW),
        Case("tiny bands", SMALL, (32, 32), (8, 8), 2, channels=3, bands=True, decoder=NARROW),
        Case("tiny volumes", SMALL, (16, 16, 16), (8, 8, 8), 2, channels=1, decoder=NARROW))


def repeated(step: Callable[[], None], steps: int) -> Callable[[], None]:
    """Several steps as one."""
    def run() -> None:
        for _ in range(steps):
            step()
    return run


def our_step(model: MaskedAutoencoder, loss: Callable[[], torch.Tensor], device: str) -> Callable[[], None]:
    """An update as a training of ours makes it."""
    return stepper(model, loss, our_optimiser(model), DTYPE, device)


def variants_of(case: Case, pair: Pair, device: str, compiled: bool) -> dict[str, Callable[[], None]]:
    """Plain and eager, fused and compiled, ours. The first two share weights."""
    plain = torch.optim.AdamW([p for p in pair.plain.parameters() if p.requires_grad], lr=1e-6, betas=(0.9, 0.95),
                              fused=device == "cuda")
    strong = torch.compile(pair.plain) if compiled else pair.plain

    def strong_loss() -> torch.Tensor:
        loss: torch.Tensor = strong(*pair.given_to_plain(), "sdpa")
        return loss
    steps = {"plain": stepper(pair.plain, lambda: pair.plain_loss("naive"), plain, DTYPE, device),
             "sdpa + compile": stepper(pair.plain, strong_loss, plain, DTYPE, device)}
    if compiled:
        pair.ours.compile()
    steps["ours"] = our_step(pair.ours, pair.our_loss, device)
    return steps


def first_steps(steps: Mapping[str, Callable[[], None]], device: str) -> dict[str, dict[str, float]]:
    """Seconds of the first step, which compiles, and most memory of the next ones, for each that fits."""
    found = {}
    for name, step in steps.items():
        try:
            began = time.perf_counter()
            step()
            settle()
            compiling = time.perf_counter() - began
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for _ in range(WARM):
                step()
            settle()
        except torch.OutOfMemoryError:
            print(f"{name}: does not fit")
            torch.cuda.empty_cache()
            continue
        memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
        found[name] = {"first step, s": compiling, "memory, GiB": memory}
    return found


def measure(case: Case, device: str, compiled: bool, rounds: int, steps: int) -> list[dict[str, Any]]:
    """A row for each variant."""
    def of(batch: int) -> Pair:
        return pair_of(case.shape, case.size, case.patch, batch, case.ratio, case.channels, case.decoder, device,
                       case.bands)
    check(of(2), DTYPE, device)
    pair = of(case.batch)
    return timed(case.name, case.batch, case.work, case.goal, variants_of(case, pair, device, compiled), device, rounds,
                 steps)


def timed(name: str, batch: int, work: float, goal: float, made: dict[str, Callable[[], None]], device: str,
          rounds: int, steps: int) -> list[dict[str, Any]]:
    """Rows: samples per second, share of the matrix product's rate, times faster than the others."""
    first = first_steps(made, device)
    with Stillness(DTYPE, device) as still:
        seconds = in_turns({variant: repeated(made[variant], steps) for variant in first}, rounds)
    rate = 1e9 * (still.before + still.after) / 2
    rows = []
    for variant, times in seconds.items():
        samples = batch * steps / quartiles(times).middle
        share = samples * work / rate
        row: dict[str, Any] = {"case": name, "batch": batch, "variant": variant, "samples/s": samples,
                               "share of the limit": share, "matrix product, TFLOP/s": rate / 1e12, **first[variant]}
        if variant == "ours":
            row |= {f"times {other}": str(speedup(seconds[other], times)) for other in seconds if other != "ours"}
            row["verdict"] = "discarded: the machine did not keep still" if not still.kept else "" if not goal \
                else told(share >= goal, f"goal {goal}")
        rows.append(row)
    return rows


def point_mae(tiny: bool, device: str, compiled: bool, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Point-MAE on clouds of 1,024 points; beside it, eager, the way of the release: every group is embedded."""
    torch.manual_seed(0)
    shape, batch, decoder_depth = (Shape(32, 1, 2), 2, 1) if tiny else (SIZES["small"], 512, 4)
    groups, size = (8, 8) if tiny else (64, 32)
    decoder = DecoderSettings(width=shape.width, depth=decoder_depth, num_heads=shape.num_heads, project=False,
                              place_every_block=True)
    settings = MaskedAutoencoderSettings(masking=RandomMasking(ratio=0.6, round_hidden="down"), decoder=decoder,
                                         readout=ChamferReadout())
    x = torch.randn(batch, 64 if tiny else 1024, 3, device=device)
    ids = torch.arange(batch, device=device)
    chance = chance_of(0, 0, 0, ids, 0 * ids)
    made = {}
    for name, everything in (("every group embedded, eager", True), ("ours", False)):
        encoder = EncoderSettings(tokenizer=Groups(num_groups=groups, group_size=size), size=shape, class_token=False,
                                  place_every_block=True, embed_hidden=everything)
        model = MaskedAutoencoder(settings, Encoder(encoder, 3)).to(device)
        if compiled and not everything:
            model.compile()
        made[name] = our_step(model, lambda model=model: model(x, None, chance)["reconstruction"], device)
    work = flops.point_mae(shape, groups, size, depth=decoder_depth).train
    return timed("Point-MAE", batch, work, 0.0, made, device, rounds, steps)


def with_loader(tiny: bool, device: str, compiled: bool, rounds: int, steps: int) -> dict[str, Any]:
    """MAE-B/16 on films, from shards and from one batch that stays where it is."""
    kind, case = KINDS[0], Case("MAE-B/16", SIZES["base"], FILM, (16, 16), 256, channels=1)
    shape, batch, count = (SMALL, 4, 8) if tiny else (case.shape, case.batch, kind.count)
    pair = pair_of(shape, FILM, (16, 16), 2, channels=1, device=device)
    if compiled:
        pair.ours.compile()
    with tempfile.TemporaryDirectory() as scratch:
        batches = batches_of(write(kind, Path(scratch) / "films", count), kind, batch)
        source, augment, held = batches.source, batches.source.code.augment.Augment(), batches.batch(0, 0)
        still_there = held._replace(raw=held.raw.to(device))
        number = 0

        def loss_of(raw: Any) -> torch.Tensor:
            ready, chance = on_device(source, raw, 0, augment, torch.device(device))
            return pair.ours(ready.x, ready.known, chance)["reconstruction"]

        def read_loss() -> torch.Tensor:
            nonlocal number
            number += 1
            return loss_of(batches.batch(number, 0))
        read = repeated(our_step(pair.ours, read_loss, device), steps)
        kept = repeated(our_step(pair.ours, lambda: loss_of(still_there), device), steps)
        seconds = in_turns({"shards": read, "synthetic": kept}, rounds)
    ratio = speedup(seconds["synthetic"], seconds["shards"])
    return {"case": "MAE-B/16 75%, films, with augmentation", "batch": batch, "variant": "ours, from shards",
            "samples/s": batch * steps / quartiles(seconds["shards"]).middle, "over synthetic": str(ratio),
            "verdict": told(ratio.middle >= 0.95, "goal 0.95")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name begins so")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, without compiling")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU here: found none that torch can use. `--tiny` runs the same code on a CPU.")
    device = "cpu" if chosen.tiny else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = True
    compiled, steps = not (chosen.tiny or chosen.eager), 1 if chosen.tiny else STEPS
    rounds = 2 if chosen.tiny else chosen.rounds
    rows: list[dict[str, Any]] = []

    def wanted(name: str) -> bool:
        return not chosen.only or any(name.startswith(start) for start in chosen.only)
    for case in TINY if chosen.tiny else CASES:
        if wanted(case.name):
            rows += measure(case, device, compiled, rounds, steps)
    if wanted("Point-MAE"):
        rows += point_mae(chosen.tiny, device, compiled, rounds, steps)
    if wanted("loader"):
        rows.append(with_loader(chosen.tiny, device, compiled, rounds, steps))
    report("gpu-tiny" if chosen.tiny else "gpu", rows)


if __name__ == "__main__":
    main()
