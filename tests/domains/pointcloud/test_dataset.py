"""Fetching takes fair, distinct points; normalising takes place and scale out, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from domains.contract import Contract
from domains.pointcloud import dataset
from domains.pointcloud.ingest import Points, contract


def sphere(num: int) -> Contract:
    return contract(Points(size=(num,)))


def metric(num: int = 8) -> Contract:
    plain = contract(Points(size=(num,), scale="metres"))
    channels = tuple(dataclasses.replace(channel, mean=0.5, std=std)
                     for channel, std in zip(plain.channels, (3.0, 4.0, 12.0), strict=True))
    return dataclasses.replace(plain, channels=channels)


def stored(num: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, 3)).astype(np.float16)


def test_without_draws_the_first_points_are_taken() -> None:
    assert np.array_equal(dataset.fetch(stored(100), sphere(32), None), stored(100)[:32])


@pytest.mark.parametrize("num", [64, 97, 100, 8192])
def test_random_fetches_hold_distinct_points_and_differ(num: int) -> None:
    values = np.arange(3 * num, dtype=np.float32).reshape(num, 3)
    draws = np.random.default_rng(0).random((50, dataset.NUM_FETCH_DRAWS))
    taken = [frozenset(dataset.fetch(values, sphere(32), row)[:, 0].tolist()) for row in draws]
    assert all(len(points) == 32 for points in taken)
    assert len(set(taken)) > 40


def test_every_point_is_taken_about_equally_often() -> None:
    values = np.arange(300, dtype=np.float32).reshape(100, 3)
    draws = np.random.default_rng(0).random((4000, dataset.NUM_FETCH_DRAWS))
    taken = np.concatenate([dataset.fetch(values, sphere(25), row)[:, 0] for row in draws])
    counts = np.bincount((taken / 3).astype(int), minlength=100)
    assert 850 < counts.min() and counts.max() < 1150  # 1,000 each, give or take five standard deviations


@pytest.mark.parametrize("draws", [None, np.array([0.3, 0.99])])
def test_a_small_cloud_gives_each_point_equally_often(draws: np.ndarray | None) -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    counts = np.unique(dataset.fetch(values, sphere(32), draws)[:, 0], return_counts=True)[1]
    assert len(counts) == 10 and set(counts.tolist()) <= {3, 4}


def test_fetching_reads_a_memory_map_and_keeps_its_dtype(tmp_path: object) -> None:
    np.save(f"{tmp_path}/shard.npy", stored(100))
    taken = dataset.fetch(np.load(f"{tmp_path}/shard.npy", mmap_mode="r"), sphere(32), np.array([0.5, 0.5]))
    assert taken.dtype == np.float16 and type(taken) is np.ndarray


def test_other_shapes_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="found .*expected points x 3"):
        dataset.fetch(np.zeros((10, 4), np.float16), sphere(8), None)


def test_unit_sphere_takes_out_place_and_size() -> None:
    raw = torch.from_numpy(stored(64)).unsqueeze(0)
    x, known = dataset.normalise(torch.cat([raw, 3 * raw + 7]), sphere(64))
    assert known is None and x.dtype == torch.float32
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.norm(dim=2).amax(1), torch.ones(2))
    torch.testing.assert_close(x[0], x[1], atol=5e-3, rtol=0)  # float16 rounds the shifted copy


def test_points_in_one_place_normalise_to_zero_and_not_to_nan() -> None:
    x, _ = dataset.normalise(torch.ones(1, 16, 3), sphere(16))
    assert torch.equal(x, torch.zeros(1, 16, 3))


def test_metric_clouds_keep_their_proportions_and_come_back() -> None:
    raw = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    x, known = dataset.normalise(raw, metric())
    assert known is None
    torch.testing.assert_close((x[:, 1] - x[:, 0]) * (169 / 3) ** 0.5, raw[:, 1] - raw[:, 0])
    torch.testing.assert_close(dataset.denormalise(x, metric()), raw)


def rich(scale: str = "unit_sphere", num: int = 64) -> Contract:
    plain = contract(Points(size=(num,), scale=scale, features=("normals", "intensity")))
    return dataclasses.replace(plain, channels=(*plain.channels[:6], dataclasses.replace(
        plain.channels[6], mean=0.5, std=0.1)))


def featured(num: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.column_stack([rng.normal(size=(num, 3)), np.full((num, 3), [0, 0.6, 0.8]), rng.random(num)]).astype("f4")


@pytest.mark.parametrize("scale", ["unit_sphere", "metres"])
def test_normals_stay_as_they_are_and_intensity_is_standardised(scale: str) -> None:
    raw = torch.from_numpy(featured())[None]
    x, known = dataset.normalise(raw, rich(scale))
    assert known is None
    plain = dataclasses.replace(rich(scale), channels=rich(scale).channels[:3], unknown=None)
    torch.testing.assert_close(x[..., :3], dataset.normalise(raw[..., :3], plain)[0])
    torch.testing.assert_close(x[..., 3:6], raw[..., 3:6])
    torch.testing.assert_close(x[..., 6], (raw[..., 6] - 0.5) / 0.1)
    torch.testing.assert_close(dataset.denormalise(x, rich(scale))[..., 3:], raw[..., 3:], atol=1e-5, rtol=1e-5)
    assert dataset.denormalise(x[..., :3], rich(scale)).shape == (1, 64, 3)


@pytest.mark.parametrize("scale", ["unit_sphere", "metres"])
def test_a_small_cloud_gives_each_point_once_where_unknown_has_a_value(scale: str) -> None:
    described = dataclasses.replace(rich(scale), size=(64,))
    few = dataset.fetch(featured(20), described, np.array([0.3, 0.7]))
    assert few.shape == (64, 7) and np.isnan(few[20:]).all()
    assert len(np.unique(few[:20, 6])) == 20
    x, known = dataset.normalise(torch.from_numpy(few)[None], described)
    assert known is not None and known.sum().item() == 20 * 7 and bool((x[~known] == 0).all())
    alone, _ = dataset.normalise(torch.from_numpy(few[:20])[None], described)
    torch.testing.assert_close(x[:, :20], alone)


def test_a_feature_that_a_file_lacks_is_zero_and_unknown_and_its_points_are_known() -> None:
    raw = torch.from_numpy(featured())[None].clone()
    raw[..., 6] = torch.nan
    x, known = dataset.normalise(raw, rich())
    assert known is not None and known[..., :6].all() and not known[..., 6].any()
    assert bool((x[..., 6] == 0).all()) and bool(x.isfinite().all())


def test_filling_with_what_is_unknown_can_be_asked_for_without_features() -> None:
    described = contract(Points(size=(64,), fill="unknown"))
    assert np.isnan(dataset.fetch(featured(20)[:, :3], described, None)[20:]).all()
