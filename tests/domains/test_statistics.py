from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domains import contract as contracts
from domains.contract import Channel, Contract
from domains.sample import ManifestRow, Piece
from domains.statistics import PERCENTILES, measure
from domains.store import Prepared, Writer, open_prepared

OPEN = float("nan")
UNKNOWN = 7


def write(folder: Path, samples: list[np.ndarray], low: float = OPEN, high: float = OPEN,
          unknown: float | None = UNKNOWN) -> Prepared:
    folder.mkdir(exist_ok=True)
    writer = Writer(folder, samples[0].dtype.name, max_shard_bytes=5000)
    for i, values in enumerate(samples):
        writer.add(Piece(values), ManifestRow(Path(), str(i), str(i), "train" if i % 3 else "test", ""))
    writer.close()
    num = samples[0].shape[-1] if samples[0].ndim == 2 else len(samples[0])
    contracts.save(Contract("satellite", "multispectral", tuple(Channel(str(c), "u", low=low, high=high)
                                                                for c in range(num)),
                            samples[0].dtype.name, (8, 8), unknown=unknown), folder / "contract.json")
    return open_prepared(folder)


def draw(dtype: str, num: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    samples = [rng.normal(100, 25, (2, 8 + i % 2, 9)).round(1).astype(dtype) for i in range(num)]
    for values in samples:
        values[1, :3] = UNKNOWN
    return samples


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32"])
def test_statistics_are_those_of_the_known_values_of_the_given_rows(tmp_path: Path, dtype: str) -> None:
    samples = draw(dtype)
    prepared = write(tmp_path, samples)
    rows = prepared.rows(split="train")
    contract, said = measure(prepared, rows)
    assert said == []
    for c, channel in enumerate(contract.channels):
        values = np.concatenate([samples[i][c].ravel() for i in rows]).astype(np.float64)
        values = values[values != UNKNOWN]
        assert [channel.low, channel.high] == pytest.approx(
            np.percentile(values, PERCENTILES, method="linear" if dtype == "float32" else "inverted_cdf"))
        clipped = values.clip(channel.low, channel.high)
        assert channel.mean == pytest.approx(clipped.mean(), rel=1e-9)
        assert channel.std == pytest.approx(clipped.std(), rel=1e-9)


def test_a_range_that_the_settings_give_is_kept(tmp_path: Path) -> None:
    prepared = write(tmp_path, draw("float32"), low=50, high=120)
    channel = measure(prepared, prepared.rows(split="train"))[0].channels[0]
    assert (channel.low, channel.high) == (50, 120)


def test_test_rows_change_no_statistic(tmp_path: Path) -> None:
    samples = draw("uint16")
    changed = [values + 1000 * (i % 3 == 0) for i, values in enumerate(samples)]
    found = []
    for name, some in (("a", samples), ("b", [values.astype(np.uint16) for values in changed])):
        prepared = write(tmp_path / name, some)
        found.append(measure(prepared, prepared.rows(split="train"))[0])
    assert found[0] == found[1]
    assert found[0].statistics_of


def test_statistics_name_the_samples_they_are_of(tmp_path: Path) -> None:
    prepared = write(tmp_path, draw("uint8"))
    train = measure(prepared, prepared.rows(split="train"))[0]
    everything = measure(prepared, np.arange(len(prepared)))[0]
    assert train.statistics_of != everything.statistics_of


def test_not_a_number_counts_as_unknown(tmp_path: Path) -> None:
    for dtype in ("float16", "float32"):
        samples = [np.where(values == UNKNOWN, np.nan, values).astype(dtype) for values in draw(dtype)]
        prepared = write(tmp_path / dtype, samples, unknown=float("nan"))
        channel = measure(prepared, prepared.rows())[0].channels[1]
        assert channel.mean == pytest.approx(100, abs=2)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_dead_or_constant_channel_is_said_and_normalises_to_finite_numbers(tmp_path: Path, dtype: str) -> None:
    dead = [np.full((2, 8, 8), UNKNOWN, dtype) for _ in range(6)]
    for values in dead:
        values[1] = 3
    prepared = write(tmp_path, dead)
    contract, said = measure(prepared, prepared.rows())
    assert [channel.std for channel in contract.channels] == [1, 1]
    assert len(said) == 2
    assert "no known value" in said[0]


def test_the_columns_of_points_are_the_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clouds = [(rng.normal(0, 1, (50 + i, 3)) * [1, 2, 3]).astype(np.float16) for i in range(30)]
    prepared = write(tmp_path, clouds, unknown=None)
    contract, _ = measure(prepared, prepared.rows())
    assert [channel.std for channel in contract.channels] == pytest.approx([1, 2, 3], rel=0.1)


def test_large_offsets_do_not_drown_a_small_spread(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [(1e6 + rng.normal(0, 1, (1, 16, 16))).astype(np.float32) for _ in range(20)]
    prepared = write(tmp_path, samples, low=0, high=2e6, unknown=None)
    assert measure(prepared, prepared.rows())[0].channels[0].std == pytest.approx(1, rel=0.05)
