from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domains import contract as contracts
from domains import duplicates
from domains.contract import Channel, Contract
from domains.sample import Fact, ManifestRow, Piece
from domains.store import LEAKS, Prepared, Writer, open_prepared

SPLITS = ("train", "val", "test", "unlabelled")


def scene(seed: int, size: int = 48) -> np.ndarray:
    """Smooth random hills and some noise: unlike each other, as films or tiles are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = sum(rng.normal() * np.sin(2 * np.pi * (rng.uniform(0, 4) * y + rng.uniform(0, 4) * x) + rng.uniform(0, 6))
                for _ in range(8))
    return np.clip(128 + 25 * waves + rng.normal(0, 3, (size, size)), 1, 255).astype(np.uint8)


def write(folder: Path, samples: list[np.ndarray], splits: list[str], facts: list[dict[str, Fact]] | None = None,
          kind: str = "xray") -> Prepared:
    writer = Writer(folder, samples[0].dtype.name)
    for i, values in enumerate(samples):
        writer.add(Piece(values, facts=facts[i] if facts else {}), ManifestRow(Path(), str(i), f"g{i}", splits[i], ""))
    writer.close()
    num = samples[0].shape[-1] if kind == "points" else 1
    contracts.save(Contract("medical", kind, tuple(Channel(str(c), "u") for c in range(num)),  # type: ignore[arg-type]
                            samples[0].dtype.name, (48, 48)), folder / "contract.json")
    return open_prepared(folder)


def as_jpeg(values: np.ndarray) -> np.ndarray:
    image_of = pytest.importorskip("PIL.Image")
    content = io.BytesIO()
    image_of.fromarray(values).save(content, "JPEG", quality=40)
    return np.asarray(image_of.open(content))


ALTERATIONS = {
    "re-encoded": as_jpeg,
    "brighter": lambda v: np.clip(v * 0.7 + 60, 0, 255).astype(np.uint8),
    "noisy": lambda v: np.clip(v + np.random.default_rng(0).normal(0, 6, v.shape), 0, 255).astype(np.uint8),
    "half the size": lambda v: v.reshape(24, 2, 24, 2).mean((1, 3)).astype(np.uint8),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path, alteration: str) -> None:
    samples = [scene(i) for i in range(60)] + [ALTERATIONS[alteration](scene(i)) for i in range(20)]
    splits = ["train"] * 60 + ["val", "test"] * 10
    found = duplicates.find(write(tmp_path, [values[None] for values in samples], splits))
    assert [(leak.a, leak.b, leak.what) for leak in found] == [(i, 60 + i, "near") for i in range(20)]


@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, np.rot90, np.transpose, lambda v: 255 - v])
def test_mirrored_turned_and_negative_copies_are_found_and_called_turned(tmp_path: Path, turn: Any) -> None:
    samples = [scene(i) for i in range(60)] + [np.ascontiguousarray(turn(scene(i))) for i in range(20)]
    found = duplicates.find(write(tmp_path, [values[None] for values in samples], ["train"] * 60 + ["test"] * 20))
    assert [(leak.a, leak.b, leak.what) for leak in found] == [(i, 60 + i, "turned") for i in range(20)]


def test_mirrored_volumes_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 9, (1, 10, 10, 10)).repeat(2, axis=1).astype(np.int16) for _ in range(30)]
    samples += [np.ascontiguousarray(samples[i][:, :, ::-1]) for i in range(10)]
    found = duplicates.find(write(tmp_path, samples, ["train"] * 30 + ["test"] * 10, kind="ct"))
    assert [(leak.a, leak.b, leak.what) for leak in found] == [(i, 30 + i, "turned") for i in range(10)]


def test_exact_copies_are_found_once_and_called_exact(tmp_path: Path) -> None:
    samples = [scene(i)[None] for i in range(30)] + [scene(i)[None] for i in range(10)]
    found = duplicates.find(write(tmp_path, samples, ["train"] * 30 + ["test"] * 10))
    assert [(leak.a, leak.b, leak.what) for leak in found] == [(i, 30 + i, "exact") for i in range(10)]


def test_repeats_inside_a_split_or_between_train_and_unlabelled_are_no_leak(tmp_path: Path) -> None:
    samples = [scene(0)[None]] * 3
    assert duplicates.find(write(tmp_path, samples, ["train", "train", "unlabelled"])) == []


def test_an_unlabelled_copy_of_a_test_sample_is_a_leak_and_leaves_the_pool(tmp_path: Path) -> None:
    samples = [scene(0)[None], scene(1)[None], scene(1)[None]]
    prepared = write(tmp_path, samples, ["train", "unlabelled", "test"])
    (tmp_path / LEAKS).write_text(duplicates.table(prepared, duplicates.find(prepared)))
    assert prepared.pool().tolist() == [0]


def test_blank_samples_are_not_near_each_other(tmp_path: Path) -> None:
    samples = [np.full((1, 16, 16), i, np.uint8) for i in range(6)]
    assert duplicates.find(write(tmp_path, samples, ["train", "test"] * 3)) == []


def test_two_draws_from_one_surface_are_near_and_two_shapes_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = rng.uniform(-1, 1, (12, 30, 3, 3))  # triangles

    def cloud(i: int, num: int = 8192) -> np.ndarray:
        first, second, third = np.moveaxis(shapes[i], 1, 0)
        area = np.linalg.norm(np.cross(second - first, third - first), axis=1)
        face = rng.choice(30, num, p=area / area.sum())
        weights = rng.dirichlet([1, 1, 1], num)
        return np.einsum("nk,nkf->nf", weights, shapes[i][face]).astype(np.float32)

    samples = [cloud(i) for i in range(12)] + [cloud(i) * 3 + 10 for i in range(4)]
    found = duplicates.find(write(tmp_path, samples, ["train"] * 12 + ["test"] * 4, kind="points"))
    assert [(leak.a, leak.b) for leak in found] == [(i, 12 + i) for i in range(4)]


def test_overlapping_ground_across_splits_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = [(1000.0 * i, 0.0) for i in range(60)]
    facts: list[dict[str, Fact]] = [{"bounds": [x, y, x + 320, y + 320], "epsg": 32621} for x, y in corners]
    for i in range(20):
        x, y = corners[i]
        facts.append({"bounds": [x + 200, y - 100, x + 520, y + 220], "epsg": 32621})
    facts.append({"bounds": [0.0, 0.0, 320.0, 320.0], "epsg": 32722})
    facts.append({})
    samples = [rng.integers(0, 255, (1, 16, 16), dtype=np.uint8) for _ in facts]
    found = duplicates.find(write(tmp_path, samples, ["train"] * 60 + ["test"] * 22, facts,
                                  "multispectral"))
    assert [(leak.a, leak.b) for leak in found] == [(i, 60 + i) for i in range(20)]
    assert found[0].what == "overlap"
    assert found[0].score == pytest.approx(120 * 220 / 320**2)


def test_a_small_tile_inside_a_large_one_overlaps_wholly() -> None:
    facts = [{"bounds": [0, 0, 1000, 1000]}, {"bounds": [10, 10, 30, 30]}, {"bounds": [990, 10, 1010, 30]}]
    found = list(duplicates.overlaps(facts, np.array([0, 2, 2])))
    pairs = {(min(a, b), max(a, b)): share for some in found for a, b, share in zip(*some, strict=True)}
    assert pairs == {(0, 1): pytest.approx(1.0), (0, 2): pytest.approx(0.5)}


def test_tiles_that_only_touch_do_not_overlap() -> None:
    facts = [{"bounds": [0, 0, 10, 10]}, {"bounds": [10, 0, 20, 10]}, {"bounds": [0, 10, 10, 20]}]
    assert list(duplicates.overlaps(facts, np.array([0, 1, 2]))) == []


def test_systems_that_epsg_does_not_list_are_told_apart_by_their_own_code() -> None:
    facts = [{"bounds": [0, 0, 10, 10], "crs": "ESRI:102003"}, {"bounds": [0, 0, 10, 10], "crs": "ESRI:102008"},
             {"bounds": [0, 0, 10, 10], "epsg": 32633}]
    assert list(duplicates.overlaps(facts, np.array([0, 1, 2]))) == []


def test_the_quick_search_finds_what_comparing_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 40)) * np.linspace(2, 0.1, 40)
    vectors[2000:] = vectors[:1000] + rng.normal(size=(1000, 40)) * rng.uniform(0, 0.6, (1000, 1))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    sides = rng.integers(0, 3, 3000).astype(np.int8)
    scores, search = vectors @ vectors.T, duplicates.Search(vectors)
    near = 0.98
    a, b = np.nonzero(np.triu((scores >= near) & (sides[:, None] != sides), 1))
    expected = {(i, j) for i, j in zip(a.tolist(), b.tolist(), strict=True) if abs(scores[i, j] - near) > 1e-5}
    found = {(i, j) for i, j, score in duplicates.near_leaks(np.arange(3000), search, 0 * sides, near)}
    assert found == set(), "one side has no pairs"
    pairs = duplicates.near_leaks(np.arange(3000), search, sides, near)
    found = {(min(i, j), max(i, j)) for i, j, score in pairs if abs(score - near) > 1e-5}
    assert len(pairs) == len(set(pairs)), "no pair is found twice"
    assert len(expected) > 100
    assert found == expected


@pytest.mark.parametrize("unknown", [-1, 32767])
def test_unknown_pixels_do_not_make_samples_alike(unknown: int) -> None:
    a, b = scene(0)[None].astype(np.int16), scene(1)[None].astype(np.int16)
    a[:, :24], b[:, :24] = unknown, unknown
    left, right = duplicates.signature(a[None], float(unknown)), duplicates.signature(b[None], float(unknown))
    assert float((left * right).sum()) < 0.9


def test_the_table_lists_keys_and_splits(tmp_path: Path) -> None:
    prepared = write(tmp_path, [scene(0)[None]] * 2, ["test", "train"])
    table = duplicates.table(prepared, duplicates.find(prepared))
    assert table.splitlines() == ["key_a,split_a,key_b,split_b,what,score", "1,train,0,test,exact,1.00000"]


def test_samples_without_contrast_leave_the_others_their_own_signatures(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    samples = [np.full((1, 16, 16), 9, np.uint8) if i % 3 == 0 else rng.integers(0, 255, (1, 16, 16), dtype=np.uint8)
               for i in range(5000)]
    prepared = write(tmp_path, samples, ["train"] * 5000)
    rows, search = duplicates.signatures(prepared, None)
    assert rows.tolist() == [i for i in range(5000) if i % 3]
    expected = duplicates.signature(np.stack(samples), None)[rows]
    assert np.array_equal(search.vectors, expected)
