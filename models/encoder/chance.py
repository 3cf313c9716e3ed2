"""Random numbers that are a pure function of their keys.

A generator has a state, and a state has to be saved, restored and kept in step over processes. Here a number depends on
(seed, epoch, step, micro-batch, sample id) and a counter alone, so a resumed run, a run on two ranks and a run on
another device draw the same numbers without any of that. (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"; the mixer is the finaliser of SplitMix64, Steele et al. 2014.)

Legend: B batch, n numbers per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer: torch has no unsigned arithmetic
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_WORD = 1 << 64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's >> on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    """_mix for one Python integer, the same bits."""
    x = ((x ^ (x >> 30)) * (_MIX1 % _WORD)) % _WORD
    x = ((x ^ (x >> 27)) * (_MIX2 % _WORD)) % _WORD
    return x ^ (x >> 31)


def key_of(*parts: int) -> int:
    """One signed 64-bit key out of several integers, order included."""
    key = 0
    for part in parts:
        key = _mix_int((key + part + _GOLDEN % _WORD) % _WORD)
    return key - _WORD if key >= _WORD // 2 else key


def seed_dropout(key: int, device: torch.device) -> None:
    """Begin torch's own generators of the host and of this device anew from one key: those that dropout draws from.

    `torch.manual_seed` gives them the same state, and tells every kind of device that the machine lacks as well, each
    with the text of a stack trace, which a small step feels.
    """
    seed = key & ((1 << 63) - 1)
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    elif device.type == "cuda":
        torch.default_generator.manual_seed(seed)
        torch.cuda.manual_seed_all(seed)
    else:
        torch.manual_seed(seed)


def uniform(keys: Tensor, n: int, stream: int = 0) -> Tensor:
    """n uniforms in [0, 1) for each key.

    Args:
        keys: B int64, one per sample.
        stream: tells apart several uses of the same key (mask, crop, noise ...).

    Returns:
        B n float32 on the keys' device, multiples of 2^-24, the same on every device.
    """
    counter = torch.arange(1, n + 1, device=keys.device, dtype=torch.int64)
    start = _mix(keys + key_of(stream))                       # B
    bits = _mix(start[:, None] + counter * _GOLDEN)           # B n
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24


@dataclass(frozen=True)
class Chance:
    """The randomness of one micro-batch."""

    sample: Tensor
    """B int64: a key per sample, from (seed, epoch, step, micro-batch, sample id)."""
    shared: int
    """A key that all ranks and micro-batches of a step have in common, from (seed, step)."""

    def uniform(self, n: int, stream: int) -> Tensor:
        """B n uniforms of the samples' own."""
        return uniform(self.sample, n, stream)

    def shared_uniform(self, stream: int) -> float:
        """One uniform that is equal on all ranks in this step."""
        return float(uniform(torch.tensor([self.shared]), 1, stream))

    def branch(self, number: int) -> Chance:
        """Another chance for the same samples, as a second mask needs; each number has its own."""
        return Chance(_mix(self.sample + key_of(number)), key_of(self.shared, number))


def chance_of(seed: int, step: int, micro_batch: int, ids: Tensor, epochs: Tensor) -> Chance:
    """The chance of some samples at one place of a run.

    Args:
        ids: B int64, which sample. epochs: B int64, how often each has been seen before (a batch may hold the end of
            one epoch and the beginning of the next).
    """
    place = key_of(seed, step, micro_batch)
    return Chance(_mix(_mix(ids * _GOLDEN + place) + epochs * _GOLDEN), key_of(seed, step))
