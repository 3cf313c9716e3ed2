from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domains.joining import MAX_SHARE, Joined, join
from domains.sample import Fact
from tests.domains.test_duplicates import ALTERATIONS, as_jpeg, scene, write


def joined(folder: Path, samples: list[np.ndarray], groups: list[str] | None = None, splits: list[str] | None = None,
           ours: list[bool] | None = None, facts: list[dict[str, Fact]] | None = None) -> Joined:
    """What is joined among samples of the groups g0, g1, ... in training, all of them ours to place."""
    prepared = write(folder, [values[None] for values in samples], splits or ["train"] * len(samples), facts,
                     "multispectral" if facts else "xray")
    return join(prepared, groups or [f"g{i:03d}" for i in range(len(samples))],
                np.array(ours or [True] * len(samples)), near=0.99)


def units(found: Joined) -> list[list[str]]:
    """Groups of every unit, sorted."""
    return sorted(sorted(g for g, unit in found.units.items() if unit == name) for name in set(found.units.values()))


def test_exact_and_near_copies_join_their_groups_and_each_link_is_told(tmp_path: Path) -> None:
    samples = [scene(i) for i in range(60)] + [scene(3), as_jpeg(scene(4)), as_jpeg(scene(60))]
    found = joined(tmp_path, samples)
    assert units(found) == [["g003", "g060"], ["g004", "g061"]]
    assert [(link.a, link.b, link.what) for link in found.links] == [(3, 60, "exact"), (4, 61, "near")]
    assert found.record()["links"] == {"exact": 1, "near": 1}
    assert "4 groups that repeat each other" in found.said()[0]


def test_footprints_that_overlap_join_their_scenes(tmp_path: Path) -> None:
    facts: list[dict[str, Fact]] = [{"bounds": [x, 0.0, x + 100, 100.0], "epsg": 32621} for x in (0.0, 50.0, 500.0)]
    facts += [{"bounds": [0.0, 0.0, 100.0, 100.0], "epsg": 32722}]
    found = joined(tmp_path, [scene(i) for i in range(4)], facts=facts)
    assert units(found) == [["g000", "g001"]]


def test_links_go_through_groups_and_a_group_is_never_linked_with_itself(tmp_path: Path) -> None:
    samples = [scene(0), scene(1), scene(0), scene(2), scene(1), *(scene(i) for i in range(5, 40))]
    groups = ["a", "a", "b", "b", "c", *(f"g{i}" for i in range(35))]
    assert units(joined(tmp_path, samples, groups)) == [["a", "b", "c"]]
    assert joined(tmp_path, [scene(0), scene(0), scene(1)], ["a", "a", "b"]).units == {}


def test_a_thousand_equal_tiles_take_as_many_links_as_groups(tmp_path: Path) -> None:
    tile = scene(0, 16)
    samples = [tile] * 300 + [ALTERATIONS["brighter"](tile)] * 300 + [scene(i, 16) for i in range(1, 3000)]
    found = joined(tmp_path, samples)
    assert len(found.units) == 600 and len(set(found.units.values())) == 1
    assert len(found.links) == 599


def test_unlabelled_samples_link_nothing_and_given_groups_are_not_moved(tmp_path: Path) -> None:
    copies = [scene(0), scene(0), scene(0)]
    assert joined(tmp_path, copies, splits=["train", "unlabelled", "test"], ours=[True, False, True]).units == {
        "g000": "g000", "g002": "g000"}
    assert joined(tmp_path, copies, splits=["train", "val", "test"], ours=[False] * 3).units == {}


def test_a_chain_that_would_swallow_the_data_is_left_apart_and_said_while_surer_links_stay(tmp_path: Path) -> None:
    first, second = scene(0).astype(float) - 128, scene(1).astype(float) - 128
    angles = 0.1 * np.arange(30)  # each nearly the one before; those far apart are unlike
    chain = [np.clip(128 + np.cos(angle) * first + np.sin(angle) * second, 0, 255).astype(np.uint8) for angle in angles]
    samples = [*chain, *(scene(i) for i in range(100, 150)), scene(100)]
    found = joined(tmp_path, samples)
    assert found.left_apart[0] == "near" and found.chain > MAX_SHARE
    assert units(found) == [["g030", "g080"]]
    assert any("no fair division would be left" in sentence for sentence in found.said())


@pytest.mark.parametrize("order", [1, -1])
def test_units_do_not_depend_on_the_order_of_samples(tmp_path: Path, order: int) -> None:
    samples = [scene(i % 37) for i in range(50)]
    groups = [f"g{i:03d}" for i in range(50)]
    found = joined(tmp_path, samples[::order], groups[::order])
    assert found.units == {**{f"g{i:03d}": f"g{i % 37:03d}" for i in range(37, 50)},
                           **{f"g{i:03d}": f"g{i:03d}" for i in range(13)}}
