from dataclasses import replace

import numpy as np

from domains.contract import Channel, Contract
from domains.medical.picture import UNKNOWN_RGB, picture, plane, section

FILM = Contract(domain="medical", kind="xray", channels=(Channel("grey", "grey 0-255", low=1, high=255),),
                dtype="uint8", size=(6, 9), unknown=0.0)
CT = Contract(domain="medical", kind="ct", channels=(Channel("HU", "HU", low=-1000, high=1000),), dtype="int16",
              size=(8, 8, 8), unknown=-32768.0, spacing=(3.0, 1.0, 1.0), orientation="SPL")


def test_a_film_is_shown_as_it_is_with_its_margins_marked() -> None:
    film = np.random.default_rng(0).integers(1, 255, (1, 6, 9)).astype(np.uint8)
    film[0, :, 0] = 0
    out = picture(film, FILM)
    assert out.shape == (6, 9, 3) and out.dtype == np.uint8
    assert np.array_equal(out[:, 1:], np.repeat(film[0, :, 1:, None], 3, axis=2))
    assert (out[:, 0] == UNKNOWN_RGB).all()


def test_a_reconstruction_in_floats_is_shown_too() -> None:
    out = picture(np.full((1, 6, 9), 99.6, np.float32), FILM, known=np.ones((1, 6, 9), bool))
    assert (out == 100).all()


def test_a_volume_shows_three_planes_with_superior_on_top_and_left_on_the_right() -> None:
    volume = np.full((1, 8, 20, 20), -700, np.int16)
    volume[0, 6:, 9:12, 9:12] = 1000     # superior, in the middle
    volume[0, 3:5, 9:12, 16:] = 1000     # left, at mid height
    out = picture(volume, CT)[..., 0]
    axial, coronal = out[:, :20], out[:, 22:42]
    assert out.shape == (24, 20 * 3 + 4)
    assert axial[12, 17] == 255 and axial[12, 2] < 100
    assert coronal[2, 10] == 255 and coronal[-2, 10] < 100   # three rows of pixels per 3 mm voxel
    assert coronal[11, 17] == 255


def test_a_reconstruction_is_painted_like_its_original() -> None:
    """The window comes from the contract, never from what happens to be in a sample."""
    lung, bone = np.full((1, 8, 8, 8), -850, np.int16), np.full((1, 8, 8, 8), 600, np.int16)
    half = np.where(np.arange(8) < 4, lung, bone)
    assert picture(half, CT)[12, 0, 0] == picture(lung, CT)[12, 0, 0] < picture(bone, CT)[12, 7, 0]
    assert picture(half, CT)[12, 7, 0] == picture(bone, CT)[12, 7, 0]


def test_statistics_narrow_the_window_and_the_clip_range_bounds_it() -> None:
    def grey(hu: int, **numbers: float) -> int:
        contract = replace(CT, channels=(replace(CT.channels[0], **numbers),))
        return int(picture(np.full((1, 8, 8, 8), hu, np.int16), contract)[12, 0, 0])

    assert grey(0) == 128                                         # no statistics: the clip range, -1000 to 1000
    assert grey(-100, mean=0.0, std=40.0) == 0 and grey(100, mean=0.0, std=40.0) == 255
    assert grey(-1000, mean=-900.0, std=400.0) == 0 and grey(100, mean=-900.0, std=400.0) == 255


def test_pictures_are_deterministic_and_survive_volumes_without_data() -> None:
    volume = np.full((1, 8, 8, 8), -32768, np.int16)
    first = picture(volume, CT)
    assert np.array_equal(first, picture(volume, CT))
    assert (first[:, :8].reshape(-1, 3) == UNKNOWN_RGB).all(1).any()


def test_a_mask_and_the_section_that_it_lies_on_are_turned_and_stretched_alike() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 20, 14)) < 0.3
    volume = np.where(mask, 1000, -1000).astype(np.int16)[None]
    for axis, index in ((0, 3), (1, 11), (2, 2)):
        shown = section(volume, CT, axis, index)
        assert np.array_equal(shown[..., 0] == 255, plane(mask, CT, axis, index))
    assert section(volume, CT, 1, 11).shape == (15, 14, 3), "three rows of pixels per 3 mm voxel"
