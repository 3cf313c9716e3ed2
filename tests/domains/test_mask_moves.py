"""A mask goes where its sample goes: painted from the sample, it is what would be painted from the moved sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from domains.sample import UNKNOWN_CLASS
from pipelines.training.batches import domain_code
from pipelines.training.crops import around_a_class
from tests.fabricate import contract_of

WILD = {"xray": {"crop_scale": [0.2, 0.9], "flip_left_right": 0.5, "intensity_scale": 0.3, "intensity_shift": 0.3},
        "ct": {"flip_left_right": 0.5, "flip_other_axes": 0.5, "quarter_turns": 0.7},
        "multispectral": {"crop": [0.2, 0.9], "gain": 0.3, "shift": 0.2}}
DOMAINS = {"xray": "medical", "ct": "medical", "multispectral": "satellite"}


def painted(kind: str, batch: int = 12, size: int = 16) -> torch.Tensor:
    """Blobs of 1 on 0: B C (D) H W."""
    generator = torch.Generator().manual_seed(1)
    shape = (size,) * (3 if kind == "ct" else 2)
    coarse = torch.rand(batch, 1, *(s // 4 for s in shape), generator=generator)
    mode = "trilinear" if kind == "ct" else "bilinear"
    return (torch.nn.functional.interpolate(coarse, shape, mode=mode) > 0.5).float()


@pytest.mark.parametrize("kind", WILD)
def test_a_moved_mask_is_what_is_painted_from_the_moved_sample(kind):
    code = domain_code(DOMAINS[kind])
    settings = code.augment.Augment(**WILD[kind])
    of_values = ("intensity_scale", "intensity_shift", "gain", "shift")
    still = dataclasses.replace(settings, **{name: 0.0 for name in of_values if hasattr(settings, name)})
    x = painted(kind)
    draws = torch.rand(len(x), code.augment.NUM_DRAWS, generator=torch.Generator().manual_seed(2))
    moved, _ = code.augment.augment(x, None, draws, still)
    mask = code.augment.move_mask(x[:, 0].to(torch.uint8), 2, draws, settings)
    sure = (moved[:, 0] - 0.5).abs() > 1e-4   # exactly between two classes, either is right
    assert (mask == (moved[:, 0] > 0.5))[sure].all() and sure.float().mean() > 0.9
    assert (mask != x[:, 0]).any(), "nothing moved"


@pytest.mark.parametrize("kind", WILD)
def test_what_comes_from_unknown_places_is_unknown(kind):
    code = domain_code(DOMAINS[kind])
    x = painted(kind)
    classes = x[:, 0].to(torch.uint8)
    classes[..., :4] = UNKNOWN_CLASS
    draws = torch.rand(len(x), code.augment.NUM_DRAWS, generator=torch.Generator().manual_seed(2))
    moved = code.augment.move_mask(classes, 2, draws, code.augment.Augment(**WILD[kind]))
    assert set(moved.unique().tolist()) == {0, 1, UNKNOWN_CLASS}
    hidden = torch.full_like(classes, UNKNOWN_CLASS)
    assert (code.augment.move_mask(hidden, 2, draws, code.augment.Augment(**WILD[kind])) == UNKNOWN_CLASS).all()


@pytest.mark.parametrize(("kind", "stored"), [
    ("xray", (1, 20, 30)), ("ct", (1, 12, 9, 20)), ("multispectral", (4, 20, 30)), ("points", (50, 3))])
def test_a_mask_is_cut_as_its_sample_is(kind, stored):
    contract = contract_of(kind)
    domain = {"points": "pointcloud"}.get(kind) or DOMAINS[kind]
    code = domain_code(domain)
    size = {"xray": (16, 16), "ct": (8, 16, 16), "multispectral": (16, 16), "points": (32,)}[kind]
    contract = dataclasses.replace(contract, size=size, unknown=7 if kind == "ct" else contract.unknown)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, stored).astype(contract.dtype)
    mask = (values[:, 0] if kind == "points" else values[0]).astype(np.uint8)
    for draws in (None, *rng.uniform(size=(20, code.dataset.NUM_FETCH_DRAWS))):
        sample, own = code.dataset.fetch(values, contract, draws), code.dataset.fetch_mask(mask, contract, draws)
        like = sample[:, 0] if kind == "points" else sample[0]
        assert own.shape == like.shape and own.dtype == np.uint8
        filled = own == UNKNOWN_CLASS
        assert (own[~filled] == like[~filled]).all() and (not filled.any() or (like[filled] == 7).all())
        assert filled.any() == (kind == "ct")


def test_a_crop_around_a_class_holds_it_and_is_placed_by_the_draws_alone():
    rng = np.random.default_rng(0)
    mask = np.zeros((30, 40, 50), np.uint8)
    mask[3, 35, 20], mask[25:28, 2:6, 44:49] = 1, 2
    contract = dataclasses.replace(contract_of("ct"), size=(8, 16, 16), unknown=None)
    fetch = domain_code("medical").dataset.fetch_mask
    seen = []
    for draws, which in zip(rng.uniform(size=(200, 3)), rng.uniform(size=(200, 2)), strict=True):
        crop = fetch(mask, contract, around_a_class(mask, np.array([1, 2]), contract.size, draws, which))
        assert crop.any()
        seen.append(1 in crop)
    assert 60 < sum(seen) < 140, "a single voxel is drawn as often as the larger thing"
    assert (around_a_class(mask, np.array([], int), contract.size, draws, which) == draws).all()
