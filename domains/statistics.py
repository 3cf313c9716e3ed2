"""Per-channel numbers that normalise the input: clip range, mean and spread, over the known values of some samples.

Legend: C channels, M points, F values per point, K samples of one run.

Stored types of one or two bytes have at most 65,536 values, so one pass counts each of them and everything else follows
exactly from the counts. float32 needs a pass over a subset for the range and one for the moments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from domains.contract import Channel, Contract
from domains.store import Prepared

PERCENTILES = (0.5, 99.5)
"""Clip range of a channel whose settings leave it open (low or high is NaN)."""
COUNTED_VALUES = 2**19
"""Values that are counted at once, which takes eight bytes each."""
CHUNK_VALUES = 2**22
"""Values of float32 that are looked at at once: 16 MB."""
SUBSET_VALUES = 2**21
"""Values of one float32 channel that percentiles are estimated from: their error is then far below a percent."""
NO_VALUE = (0.0, 1.0)
"""Mean and deviation of a channel without a known value."""

Stack = tuple[np.ndarray, np.ndarray]
"""Rows, and their values K C ... or K M F."""
Progress = Callable[[Iterable[Stack], int], Iterable[Stack]]
"""Wraps an iteration in a progress bar, given its number of samples."""


def of_training(prepared: Prepared, progress: Progress | None = None) -> tuple[Contract, list[str]]:
    """The contract with the statistics that data gets at ingest: of the training rows; where there are none, or none
    with a value in some channel, of the self-supervised pool.

    Returns:
        The contract, and sentences on what was measured otherwise or could not be.
    """
    rows, said = prepared.rows(split="train"), []
    if not len(rows):
        rows = prepared.pool()
        said = ["no training split: statistics come from the self-supervised pool"]
    if not len(rows):
        return prepared.contract, ["neither training nor unlabelled samples: no statistics; only weights that bring "
                                   "their own can be applied to this data"]
    contract, more = measure(prepared, rows, progress)
    if any((channel.mean, channel.std) == NO_VALUE for channel in contract.channels):
        # Sources pooled for pretraining may hold bands that no training sample has. Left at mean 0 and deviation 1 they
        # would enter a model thousands of times larger than the others.
        pooled, more = measure(prepared, prepared.pool(), progress)
        filled = tuple(other if (own.mean, own.std) == NO_VALUE else own
                       for own, other in zip(contract.channels, pooled.channels, strict=True))
        said.append("no training sample has " + ", ".join(
            own.name for own in contract.channels if (own.mean, own.std) == NO_VALUE)
            + ": statistics of these channels come from the unlabelled samples")
        contract = dataclasses.replace(contract, channels=filled)
    return contract, said + more


def measure(prepared: Prepared, rows: np.ndarray, progress: Progress | None = None) -> tuple[Contract, list[str]]:
    """The contract with clip range, mean and std measured over `rows`.

    Args:
        rows: indices of the samples: those of the training split, and no others.
        progress: shows how far the pass over the samples is.

    Returns:
        The contract, and sentences on channels that could not be measured.
    """
    contract = prepared.contract
    if contract.dtype == "float32":
        channels, said = _by_two_passes(prepared, rows, progress)
    else:
        channels, said = _by_counting(prepared, rows, progress)
    keys = np.array(prepared.column("key"), dtype=object)[rows]
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    return dataclasses.replace(contract, channels=channels, statistics_of=digest), said


def _channel(chunk: np.ndarray, c: int) -> np.ndarray:
    """All values of one channel of K C ... or K M F, flat."""
    return (chunk[..., c] if chunk.ndim == 3 else chunk[:, c]).ravel()


def _wrapped(prepared: Prepared, rows: np.ndarray, max_values: int, progress: Progress | None) -> Iterator[np.ndarray]:
    stacks = prepared.stacks(rows, max_values)
    return (values for _, values in (progress(stacks, len(rows)) if progress else stacks))


# ---- one- and two-byte types ----

def _by_counting(prepared: Prepared, rows: np.ndarray,
                 progress: Progress | None) -> tuple[tuple[Channel, ...], list[str]]:
    contract = prepared.contract
    dtype = np.dtype(contract.dtype)
    codes = np.dtype(f"u{dtype.itemsize}")
    num_codes = 2 ** (8 * dtype.itemsize)
    counts = np.zeros((len(contract.channels), num_codes), np.int64)
    for chunk in _wrapped(prepared, rows, COUNTED_VALUES, progress):
        for c in range(len(counts)):
            counts[c] += np.bincount(_channel(chunk, c).view(codes), minlength=num_codes)
    values = np.arange(num_codes, dtype=codes).view(dtype).astype(np.float64)
    counts[:, ~np.isfinite(values)] = 0
    if contract.unknown is not None and not math.isnan(contract.unknown):
        counts[:, values == contract.unknown] = 0
    order = np.argsort(values, kind="stable")
    found = [_from_counts(channel, values[order], row[order])
             for channel, row in zip(contract.channels, counts, strict=True)]
    return tuple(channel for channel, _ in found), [text for _, text in found if text]


def _from_counts(channel: Channel, values: np.ndarray, counts: np.ndarray) -> tuple[Channel, str]:
    total = int(counts.sum())
    if total == 0:
        return _unmeasured(channel)
    present = counts > 0
    values, counts = values[present], counts[present]
    reached = np.cumsum(counts) / total
    low, high = (float(values[np.searchsorted(reached, p / 100)]) for p in PERCENTILES)
    channel = _with_range(channel, low, high)
    clipped = np.clip(values, channel.low, channel.high)
    mean = float((clipped * counts).sum() / total)
    return _with_moments(channel, mean, float((((clipped - mean) ** 2) * counts).sum() / total))


# ---- float32 ----

def _by_two_passes(prepared: Prepared, rows: np.ndarray,
                   progress: Progress | None) -> tuple[tuple[Channel, ...], list[str]]:
    channels: Sequence[Channel] = prepared.contract.channels
    if any(math.isnan(channel.low + channel.high) for channel in channels):
        channels = _ranges(prepared, rows)
    unknown = prepared.contract.unknown
    sums = np.zeros((len(channels), 3))
    for chunk in _wrapped(prepared, rows, CHUNK_VALUES, progress):
        for c, channel in enumerate(channels):
            sums[c] = _merge(sums[c], np.clip(_known(_channel(chunk, c), unknown), channel.low, channel.high))
    found = [_with_moments(channel, mean, squares / count) if count else _unmeasured(channel)
             for channel, (count, mean, squares) in zip(channels, sums.tolist(), strict=True)]
    return tuple(channel for channel, _ in found), [text for _, text in found if text]


def _ranges(prepared: Prepared, rows: np.ndarray) -> list[Channel]:
    """Percentiles of evenly spaced samples, and of evenly spaced values of each."""
    size = max(1, int(np.prod(prepared.shape(int(rows[0])))) // len(prepared.contract.channels))
    taken = rows[np.linspace(0, len(rows) - 1, min(len(rows), max(64, SUBSET_VALUES // size))).astype(np.int64)]
    step = max(1, len(taken) * size // SUBSET_VALUES)
    channels = []
    for c, channel in enumerate(prepared.contract.channels):
        parts = [_known(_channel(prepared.values(int(i))[None], c)[::step], prepared.contract.unknown) for i in taken]
        values = np.concatenate(parts)
        if len(values):
            low, high = np.percentile(values, PERCENTILES)
            channel = _with_range(channel, float(low), float(high))
        channels.append(channel)
    return channels


def _known(values: np.ndarray, unknown: float | None) -> np.ndarray:
    known = np.isfinite(values)
    if unknown is not None and not math.isnan(unknown):
        known &= values != unknown
    return values[known].astype(np.float64)


def _merge(sums: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Count, mean and sum of squared deviations of two sets: adding raw squares would lose what a float can hold."""
    if not len(values):
        return sums
    count, mean, squares = sums
    own = values.mean()
    total = count + len(values)
    gap = own - mean
    return np.array([total, mean + gap * len(values) / total,
                     squares + ((values - own) ** 2).sum() + gap**2 * count * len(values) / total])


# ---- both ----

def _with_range(channel: Channel, low: float, high: float) -> Channel:
    """Fill the ends that the settings leave open."""
    return dataclasses.replace(channel, low=low if math.isnan(channel.low) else channel.low,
                               high=high if math.isnan(channel.high) else channel.high)


def _with_moments(channel: Channel, mean: float, variance: float) -> tuple[Channel, str]:
    if variance <= 0:
        return dataclasses.replace(channel, mean=mean, std=1.0), (
            f"channel {channel.name}: every known training value clips to {mean:g}; its std is set to 1")
    return dataclasses.replace(channel, mean=mean, std=math.sqrt(variance)), ""


def _unmeasured(channel: Channel) -> tuple[Channel, str]:
    whole = _with_range(channel, 0.0, 1.0)
    return dataclasses.replace(whole, mean=0.0, std=1.0), (
        f"channel {channel.name}: no known value in the training split; mean 0 and std 1 stand in")
