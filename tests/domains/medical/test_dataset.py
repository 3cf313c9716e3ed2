from dataclasses import replace

import numpy as np
import pytest
import torch

from domains.contract import Channel, Contract
from domains.medical.dataset import NUM_FETCH_DRAWS, denormalise, fetch, normalise

HU = Channel("HU", "HU", low=-1000, high=400, mean=-600, std=300)
GREY = Channel("grey", "grey 0-255", low=0, high=255, mean=100, std=50)
CT = Contract(domain="medical", kind="ct", channels=(HU,), dtype="int16", size=(4, 5, 6),
              unknown=-32768.0, spacing=(1, 1, 1), orientation="SPL")
FILM = Contract(domain="medical", kind="xray", channels=(GREY,), dtype="uint8", size=(8, 8))


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(1, *shape)


def test_a_film_of_the_right_size_comes_as_it_is() -> None:
    film = np.random.default_rng(0).integers(0, 255, (1, 8, 8)).astype(np.uint8)
    for draws in (None, np.full(NUM_FETCH_DRAWS, 0.7)):
        assert np.array_equal(fetch(film, FILM, draws), film)


def test_without_draws_the_crop_is_the_middle() -> None:
    volume = numbered(8, 9, 10)
    assert np.array_equal(fetch(volume, CT, None), volume[:, 2:6, 2:7, 2:8])


def test_draws_reach_every_corner_and_nothing_beyond() -> None:
    volume = numbered(6, 6, 8)
    assert np.array_equal(fetch(volume, CT, np.zeros(3)), volume[:, :4, :5, :6])
    assert np.array_equal(fetch(volume, CT, np.full(3, np.nextafter(1, 0))), volume[:, 2:, 1:, 2:])
    starts = {int(fetch(volume, CT, np.array([0.0, 0, u]))[0, 0, 0, 0]) for u in np.linspace(0, 0.999, 50)}
    assert starts == {0, 1, 2}


def test_what_is_too_small_is_padded_with_unknown_around_it() -> None:
    volume = numbered(2, 9, 3)
    out = fetch(volume, CT, None)
    assert out.shape == (1, 4, 5, 6) and out.dtype == volume.dtype
    assert np.array_equal(out[:, 1:3, :, 1:4], volume[:, :, 2:7])
    assert (out != CT.unknown).sum() == 2 * 5 * 3


def test_a_crop_is_a_view_so_that_only_the_batch_copies_it() -> None:
    volume = numbered(4, 5, 6)
    assert np.shares_memory(fetch(volume, CT, None), volume)


def test_data_without_an_unknown_value_is_never_padded() -> None:
    with pytest.raises(ValueError, match="no value for unknown places"):
        fetch(np.zeros((1, 6, 8), np.uint8), FILM, None)


def test_samples_of_other_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3"):
        fetch(np.zeros((1, 8, 8), np.int16), CT, None)


def test_normalised_numbers_are_clipped_standardised_and_0_where_unknown() -> None:
    raw = torch.tensor([-32768, -2000, -600, -300, 3000], dtype=torch.int16).view(1, 1, 1, 1, 5)
    x, known = normalise(raw, CT)
    assert known is not None and known.flatten().tolist() == [False, True, True, True, True]
    torch.testing.assert_close(x.flatten(), torch.tensor([0.0, -400 / 300, 0.0, 1.0, 1000 / 300]))


def test_data_without_an_unknown_value_has_no_map() -> None:
    x, known = normalise(torch.full((2, 1, 8, 8), 150, dtype=torch.uint8), FILM)
    assert known is None and (x == 1).all()
    known = normalise(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), replace(FILM, unknown=0.0))[1]
    assert known is not None and not known.any()


def test_denormalise_inverts_normalise() -> None:
    raw = torch.randint(-1000, 400, (3, 1, 4, 5, 6), dtype=torch.int16)
    torch.testing.assert_close(denormalise(normalise(raw, CT)[0], CT), raw.float(), atol=1e-2, rtol=0)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="channels: found 3, expected 1"):
        normalise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), FILM)
