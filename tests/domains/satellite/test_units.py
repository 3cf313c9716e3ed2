"""Wrong units are found in the values themselves, and right ones are left alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from domains.sample import Piece
from domains.satellite import ingest
from domains.satellite.ingest import Multispectral
from domains.satellite.units import UNKNOWN

SETTINGS = Multispectral(bands=("B3", "B4", "B8"), sensor="sentinel2", size=(32, 32))


def pieces(count: int = 30, **change: Any) -> list[Piece]:
    """Vegetation and shadow: green and red dark, near infrared bright."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        shade = rng.choice([0.05, 1.0], size=(32, 32), p=[0.1, 0.9])
        level = np.array([700.0, 500.0, 3000.0])[:, None, None] * shade * rng.uniform(0.7, 1.3, (3, 32, 32))
        made.append(Piece(np.rint(change.get("of", lambda x: x)(level)).clip(0, UNKNOWN).astype(np.uint16),
                          facts={"negative": change.get("negative", 0.0)}))
    return made


def test_reflectance_is_left_alone() -> None:
    assert ingest.implausible(pieces(), SETTINGS) is None
    assert ingest.implausible([], SETTINGS) is None


@pytest.mark.parametrize(("change", "message"), [
    ({"of": lambda x: x + 1000}, "Remedy: set `offset: -0.1`"), ({"of": lambda x: x / 10000}, "Remedy: set `scale: 1`"),
    ({"of": lambda x: x * 10}, "Remedy: set `scale` and `offset` to what the product says"),
    ({"of": lambda x: np.where(x > 1500, x, np.minimum(x, 255))}, "found a largest value of exactly 255"),
    ({"of": lambda x: x * np.array([1, 0, 1])[:, None, None]}, "band B4: found 30 of 30 samples with zero everywhere"),
    ({"of": lambda x: x * 0 + UNKNOWN}, "found no known pixel"),
    ({"negative": 0.4}, "found 40% of the pixels below zero")])
def test_other_units_are_found_and_the_remedy_named(change: dict[str, Any], message: str) -> None:
    found = ingest.implausible(pieces(**change), SETTINGS)
    assert found is not None and message in found and "expected" in found and "Remedy" in found
    assert ingest.implausible(pieces(**change), replace(SETTINGS, check_units=False)) is None


def test_a_few_bright_tiles_without_shadow_are_no_proof_of_an_offset() -> None:
    assert ingest.implausible(pieces(5, of=lambda x: x + 1000), SETTINGS) is None
