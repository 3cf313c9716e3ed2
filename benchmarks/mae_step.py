"""Our MAE step beside a plain one, on a CPU: `python -m benchmarks.mae_step [--size base] [--batch 2] [--rounds 7]`.

The same weights, images and mask in both. Loss and gradient norm must agree before anything is timed. A step is
forward, backward and update; each side has the AdamW that its code would take: the plain one torch's default, ours what
a training of ours takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paired import Stillness, agree, in_turns, quartiles, report, speedup, verdict
from benchmarks.plain_mae import How, PlainMAE, compare_gradients, copy_weights
from models.encoder.chance import Chance, chance_of
from models.encoder.masking import RandomMasking
from models.encoder.tokenizers import Bands, Grid
from models.encoder.transformer import SIZES, Encoder, EncoderSettings, Shape
from models.objectives.decoders import DecoderSettings
from models.objectives.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderSettings
from models.objectives.readouts import PixelReadout
from pipelines.training.schedule import make_optimiser, parameter_groups
from pipelines.training.training import Optimisation

MASK_STREAM = 11
"""The stream of chance that random masks are drawn from; the opponent is given the same numbers."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""How far loss and gradient norm may be apart, relative."""
APART = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How long the difference of two gradients may be, over the gradient: with random weights a loss hardly moves when
something is wrong, and rounding to 8 bits does not cancel in a difference."""


@dataclass
class Pair:
    """Ours and the plain one, with the same weights, on the same images."""

    ours: MaskedAutoencoder
    plain: PlainMAE
    x: Tensor
    chance: Chance
    ratio: float
    bands: bool = False
    """Whether each band has tokens of its own."""

    def our_loss(self) -> Tensor:
        """A scalar."""
        return self.ours(self.x, None, self.chance)["reconstruction"]

    def plain_loss(self, how: How) -> Tensor:
        """A scalar."""
        return self.plain(*self.given_to_plain(), how)

    def given_to_plain(self) -> tuple[Tensor, Tensor, float]:
        """Images, noise that gives our mask, and the share hidden."""
        noise = self.chance.uniform(self.plain.num_patches, MASK_STREAM)
        return self.x[:, None] if self.bands else self.x, noise, self.ratio


def pair_of(shape: Shape, size: tuple[int, ...], patch: tuple[int, ...], batch: int, ratio: float = 0.75,
            channels: int = 3, decoder: DecoderSettings | None = None, device: str = "cpu",
            bands: bool = False) -> Pair:
    """Two models of one shape and some random images.

    Args:
        bands: one token per band and patch (ChannelViT). To the opponent that is a volume cut into flat patches.
    """
    torch.manual_seed(0)
    decoder = decoder or DecoderSettings()
    tokenizer = Bands(patch=(patch[0], patch[1])) if bands else Grid(patch=patch)
    encoder = Encoder(EncoderSettings(tokenizer=tokenizer, size=shape), channels)
    settings = MaskedAutoencoderSettings(masking=RandomMasking(ratio=ratio), decoder=decoder,
                                         readout=PixelReadout(normalise_patch=True))
    ours = MaskedAutoencoder(settings, encoder)
    cut = ((channels, *size), (1, *patch), 1) if bands else (size, patch, channels)
    plain = PlainMAE(*cut, shape.width, shape.depth, shape.num_heads, decoder.width, decoder.depth, decoder.num_heads)
    copy_weights(ours, plain)
    ids = torch.arange(batch, device=device)
    return Pair(ours.to(device), plain.to(device), torch.randn(batch, channels, *size, device=device),
                chance_of(0, 0, 0, ids, 0 * ids), ratio, bands)


def autocast(dtype: torch.dtype, device: str = "cpu") -> Any:
    """bf16 where it is asked for."""
    return torch.autocast(device, dtype) if dtype == torch.bfloat16 else nullcontext()


def check(pair: Pair, dtype: torch.dtype, device: str = "cpu") -> None:
    """Raises AssertionError unless loss, gradient norm and gradient of both opponents are ours."""
    hows: tuple[How, ...] = ("naive", "sdpa")
    for how in hows:
        with autocast(dtype, device):
            expected, found = pair.our_loss(), pair.plain_loss(how)
        expected.backward()
        found.backward()
        agree(f"loss, {how}, {dtype}", float(found.detach()), float(expected.detach()), TOLERANCE[dtype])
        theirs, mine, apart = compare_gradients(pair.ours, pair.plain)
        agree(f"gradient norm, {how}, {dtype}", theirs, mine, TOLERANCE[dtype])
        if not apart <= APART[dtype]:
            raise AssertionError(f"gradient, {how}, {dtype}: found a difference of {apart:g}, expected at most "
                                 f"{APART[dtype]:g}. Nothing is timed before the results agree.")
        pair.ours.zero_grad()
        pair.plain.zero_grad()


def stepper(model: nn.Module, loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer, dtype: torch.dtype,
            device: str = "cpu") -> Callable[[], None]:
    """One update."""
    def step() -> None:
        with autocast(dtype, device):
            value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
    return step


def our_optimiser(model: MaskedAutoencoder) -> torch.optim.Optimizer:
    """As a training of ours makes it, with a rate that leaves the weights where they are."""
    plan = Optimisation(steps=1, learning_rate=1e-6)
    return make_optimiser(parameter_groups(model, plan, len(model.encoder.blocks)), plan)


def steppers(pair: Pair, dtypes: tuple[torch.dtype, ...], device: str = "cpu") -> dict[str, Callable[[], None]]:
    """Every variant by name. Variants of one model share its weights: what they cost does not hang on the values."""
    groups = [{"params": [p for p in pair.plain.parameters() if p.requires_grad and p.dim() > 1], "weight_decay": 0.05},
              {"params": [p for p in pair.plain.parameters() if p.requires_grad and p.dim() < 2], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.95))
    ours = our_optimiser(pair.ours)
    variants: dict[str, Callable[[], None]] = {}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        variants[f"plain {name}"] = stepper(pair.plain, lambda: pair.plain_loss("naive"), plain, dtype, device)
        variants[f"sdpa {name}"] = stepper(pair.plain, lambda: pair.plain_loss("sdpa"), plain, dtype, device)
        variants[f"ours {name}"] = stepper(pair.ours, pair.our_loss, ours, dtype, device)
    return variants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="base", choices=SIZES)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1, help="one: other work on the machine disturbs less")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    pair = pair_of(SIZES[chosen.size], (chosen.image, chosen.image), (16, 16), chosen.batch)
    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        check(pair, dtype)
    with Stillness() as still:
        seconds = in_turns(steppers(pair, dtypes), chosen.rounds)
    rows = []
    for name, other, bar in (("ours float32", "plain float32", 1.1), ("ours float32", "sdpa float32", 1.05),
                             ("ours bfloat16", "plain bfloat16", 1.2), ("ours bfloat16", "sdpa bfloat16", 1.0),
                             ("ours bfloat16", "ours float32", 1.0)):
        ratio = speedup(seconds[other], seconds[name])
        rows.append({"what": f"MAE-{chosen.size} batch {chosen.batch}: {name} over {other}", "times faster": str(ratio),
                     "ours, ms": 1000 * quartiles(seconds[name]).middle,
                     "other, ms": 1000 * quartiles(seconds[other]).middle, "verdict": verdict(ratio, bar)})
    report("mae_step", rows, still)


if __name__ == "__main__":
    main()
