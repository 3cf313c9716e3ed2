"""Damage is what it says, in the unit that it says, and the same for a sample whatever else there is."""

from __future__ import annotations

import numpy as np
import pytest

from domains.contract import Contract
from domains.corruption import chance_for, known_of, mask_under
from domains.medical import corruptions as medical
from domains.pointcloud import corruptions as pointcloud
from domains.sample import UNKNOWN_CLASS, mask_shape
from domains.satellite import corruptions as satellite
from tests.fabricate import SIZES, contract_of

MODULES = {"xray": medical, "ct": medical, "multispectral": satellite, "points": pointcloud}
CASES = [(kind, name) for kind, module in MODULES.items() for name in module.corruptions(contract_of(kind))]


def sample(kind: str, seed: int = 0) -> tuple[np.ndarray, Contract]:
    """A stored sample, some of it unknown where its kind has something unknown."""
    contract, chance = contract_of(kind), np.random.default_rng(seed)
    if kind == "points":
        return chance.normal(0, 1, (400, 3)).astype(contract.dtype), contract
    values = chance.integers(60, 190, SIZES[kind]).astype(contract.dtype)
    if contract.unknown is not None:
        values[..., :3] = contract.unknown
    return values, contract


def damaged(kind: str, name: str, strength: float, key: str = "s1") -> tuple[np.ndarray, np.ndarray, Contract]:
    """(before, after, contract)"""
    values, contract = sample(kind)
    one = MODULES[kind].corruptions(contract)[name]
    before = values.copy()
    after = one.apply(values, contract, strength, chance_for(key, name))
    np.testing.assert_array_equal(values, before, "a stored sample is a map of a file: it may not be written to")
    return values, after, contract


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_damage_depends_on_the_sample_and_the_strength_alone(kind, name):
    one = MODULES[kind].corruptions(contract_of(kind))[name]
    _, first, contract = damaged(kind, name, one.strengths[-1])
    _, again, _ = damaged(kind, name, one.strengths[-1])
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.dtype(contract.dtype)
    others = [damaged(kind, name, one.strengths[-1], f"s{i}")[1] for i in range(2, 8)]
    if name not in ("resolution", "contrast"):  # these have no chance in them
        assert any(other.shape != first.shape or not np.array_equal(other, first) for other in others)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_damage_grows_with_the_strength(kind, name):
    one = MODULES[kind].corruptions(contract_of(kind))[name]
    assert list(one.strengths) == sorted(set(one.strengths)) and one.strengths[-1] <= one.highest
    sizes = []
    for strength in one.strengths:
        values, after, contract = damaged(kind, name, strength)
        both = known_of(values, contract) & known_of(after, contract) if values.shape == after.shape else None
        moved = 0.0 if both is None else float(np.abs(after[both].astype(float) - values[both]).mean())
        lost = len(values) - len(after) if both is None else float((~both).sum())
        sizes.append(1000 * lost if name in ("missing_bands", "density", "sectors") else moved)
    assert all(a < b for a, b in zip(sizes, sizes[1:], strict=False)) or len(sizes) == 1 or name == "rotation", sizes


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] in ("ct", "multispectral")])
def test_what_was_unknown_stays_unknown_and_nothing_known_becomes_so_by_accident(kind, name):
    one = MODULES[kind].corruptions(contract_of(kind))[name]
    values, after, contract = damaged(kind, name, one.strengths[-1])
    before, since = known_of(values, contract), known_of(after, contract)
    if name == "rotation":  # it moves what is unknown along, and brings more in from outside
        assert since.sum() < before.size
    else:
        assert not (since & ~before).any()
        if name != "missing_bands":
            assert (since == before).all()


def test_a_shift_moves_every_voxel_by_so_many_hu():
    values, after, contract = damaged("ct", "hu_shift", 100)
    known = known_of(values, contract)
    assert set(np.abs(after[known].astype(int) - values[known])) == {100}
    assert len(set(np.sign(after[known].astype(int) - values[known]))) == 1


def test_grey_levels_saturate_as_they_are_stored():
    _, after, _ = damaged("xray", "exposure", 255)
    assert set(np.unique(after)) in ({0}, {255})


def test_all_contrast_lost_leaves_the_training_mean():
    _, after, contract = damaged("xray", "contrast", 1.0)
    assert set(np.unique(after)) == {round(contract.channels[0].mean)}


def test_noise_has_the_standard_deviation_that_was_asked_for():
    values = np.full((1, 64, 64), 128, np.uint8)
    contract = contract_of("xray")
    one = medical.corruptions(contract)["noise"]
    after = one.apply(values, contract, 16, chance_for("s", "noise"))
    assert after.std() == pytest.approx(16, rel=0.03) and after.mean() == pytest.approx(128, abs=0.6)


def test_coarser_pixels_keep_means_and_lose_what_is_finer():
    fine = np.indices((16, 16)).sum(0) % 2 * 200
    contract = contract_of("xray")
    one = medical.corruptions(contract)["resolution"]
    after = one.apply(fine[None].astype(np.uint8), contract, 2, chance_for("s", "resolution"))
    assert np.abs(after.astype(int) - 100).max() <= 1
    flat = np.full((1, 16, 16), 77, np.uint8)
    np.testing.assert_array_equal(one.apply(flat, contract, 3, chance_for("s", "resolution")), flat)


def test_a_quarter_turn_is_a_quarter_turn():
    values, after, _ = damaged("xray", "rotation", 90)
    turns = [np.rot90(values, k, (1, 2)) for k in (1, 3)]
    assert min(np.abs(after.astype(int) - one).max() for one in turns) <= 1


def test_missing_bands_are_so_many_and_those_of_a_lower_strength_are_among_them():
    gone = [{band for band, plane in enumerate(damaged("multispectral", "missing_bands", count)[1])
             if not known_of(plane, contract_of("multispectral")).any()} for count in (1, 2)]
    assert [len(one) for one in gone] == [1, 2] and gone[0] < gone[1]


def test_points_are_lost_in_the_share_that_was_asked_for_and_keep_their_order():
    values, after, _ = damaged("points", "density", 0.75)
    assert len(after) == 100
    places = [int(np.flatnonzero((values == point).all(1))[0]) for point in after]
    assert places == sorted(places)


def test_a_sector_that_no_beam_reached_holds_no_point():
    values, after, _ = damaged("points", "sectors", 120)
    angle = np.sort(np.arctan2(*(after[:, :2] - values[:, :2].mean(0)).T))
    gaps = np.diff(np.r_[angle, angle[0] + 2 * np.pi])
    assert np.degrees(gaps.max()) >= 119.9


def test_a_tilt_keeps_every_distance():
    values, after, _ = damaged("points", "tilt", 90)
    between = [np.linalg.norm(one[1:] - one[:-1], axis=1) for one in (values, after)]
    np.testing.assert_allclose(between[0], between[1], rtol=1e-4)
    assert np.abs(after[:, 2] - values[:, 2]).max() > 0.5


def test_a_cloud_is_never_left_without_points():
    _, after, _ = damaged("points", "sectors", 359)
    assert len(after) == pointcloud.FEWEST


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_mask_goes_where_the_damage_takes_what_it_is_of(kind, name):
    """What is bright is masked; under damage that moves things, the mask still covers what is bright."""
    values, contract = sample(kind)
    one = MODULES[kind].corruptions(contract)[name]
    mask = np.zeros(mask_shape(values.shape), np.uint8)
    if kind == "points":
        values[:, :3] = np.where(np.arange(400)[:, None] < 120, values[:, :3] * 0.1 + [0, 0, 9], values[:, :3])
        mask[:120] = 3
    else:
        values[:] = 20
        values[..., 4:11, 6:10] = 220
        mask[..., 4:11, 6:10] = 3
    strength = one.strengths[0] if name in ("sectors", "density", "missing_bands") else one.none
    for level in (strength, 30.0) if name == "rotation" else (strength,):
        after = one.apply(values, contract, level, chance_for("s", name))
        moved = mask_under(one, values, mask, contract, level, chance_for("s", name))
        assert moved.shape == mask_shape(after.shape) and moved.dtype == np.uint8
        assert set(np.unique(moved)) <= {0, 3, UNKNOWN_CLASS}
        if kind == "points":
            assert np.array_equal(moved == 3, after[:, 2] > 6) or name == "tilt"
            assert (moved == 3).sum() > 10
        elif name not in ("exposure", "noise", "hu_shift", "contrast", "missing_bands"):
            bright = after[0] > 120
            known = moved != UNKNOWN_CLASS
            assert ((moved == 3) != bright)[known].mean() < 0.05 and (moved == 3).sum() > 10


def test_a_quarter_turn_of_a_mask_is_one_too_and_to_the_same_side_as_the_samples():
    for key in ("s1", "s2", "s3", "s4"):
        values, contract = sample("xray")
        one = medical.corruptions(contract)["rotation"]
        mask = (values[0] > 120).astype(np.uint8)
        after = one.apply(mask[None] * np.uint8(200), contract, 90, chance_for(key, "rotation"))
        moved = mask_under(one, values, mask, contract, 90, chance_for(key, "rotation"))
        np.testing.assert_array_equal(moved == 1, after[0] > 100)


def test_what_a_turn_brings_in_from_outside_is_unknown_in_the_mask():
    values, contract = sample("xray")
    one = medical.corruptions(contract)["rotation"]
    moved = mask_under(one, values, np.ones((16, 16), np.uint8), contract, 45, chance_for("s", "rotation"))
    assert moved[0, 0] == moved[-1, -1] == UNKNOWN_CLASS and moved[8, 8] == 1
