"""Crops and normalisation: what is unknown is 0 and marked, and a picture gets its units back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from domains.contract import Channel, Contract
from domains.satellite import dataset
from domains.satellite.units import UNKNOWN

CONTRACT = Contract(domain="satellite", kind="multispectral", dtype="uint16", size=(8, 6), unknown=UNKNOWN, channels=(
    Channel("B4", "reflectance x 10000", low=0, high=10000, mean=1000, std=500),
    Channel("B8", "reflectance x 10000", low=0, high=10000, mean=3000, std=1000)))


def test_without_draws_the_middle_is_taken_and_with_them_every_corner_can_be() -> None:
    values = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16)
    assert np.array_equal(dataset.fetch(values, CONTRACT, None), values[:, 4:12, 5:11])
    assert np.array_equal(dataset.fetch(values, CONTRACT, np.array([0.0, 0.0])), values[:, :8, :6])
    assert np.array_equal(dataset.fetch(values, CONTRACT, np.array([0.9999, 0.9999])), values[:, 8:, 10:])
    draws = np.linspace(0, 1, 200, endpoint=False)
    starts = {dataset.fetch(values, CONTRACT, np.array([draw, 0.0]))[0, 0, 0] for draw in draws}
    assert len(starts) == 9


def test_a_sample_of_the_right_size_comes_back_whole_and_a_smaller_one_is_refused() -> None:
    values = np.ones((2, 8, 6), np.uint16)
    assert np.array_equal(dataset.fetch(values, CONTRACT, np.array([0.5, 0.5])), values)
    with pytest.raises(ValueError, match="expected at least"):
        dataset.fetch(values[:, :7], CONTRACT, None)


def test_known_values_are_standardised_after_clipping_and_unknown_ones_are_0() -> None:
    raw = torch.tensor([[[[1500, 0]], [[20000, UNKNOWN]]]], dtype=torch.int32).to(torch.uint16)
    x, known = dataset.normalise(raw, CONTRACT)
    assert x.dtype == torch.float32 and x.flatten().tolist() == [1.0, -2.0, 7.0, 0.0]
    assert known is not None and known.flatten().tolist() == [True, True, True, False]


def test_without_an_unknown_value_everything_is_known() -> None:
    x, known = dataset.normalise(torch.full((1, 2, 1, 1), UNKNOWN), replace(CONTRACT, unknown=None))
    assert known is None and (x != 0).all()


def test_denormalise_undoes_normalise() -> None:
    raw = torch.randint(0, 10000, (3, 2, 4, 4))
    x, _ = dataset.normalise(raw, CONTRACT)
    assert torch.allclose(dataset.denormalise(x, CONTRACT), raw.float(), atol=1e-2)
