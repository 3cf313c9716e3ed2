"""Lines of print are flagged, marks that every film carries are not, and what to do about them is a setting."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.faults.burned_in import found, planted
from domains.medical import burned_in, ingest
from domains.medical.burned_in import lines_of_text
from domains.medical.settings import XRay
from domains.sample import ManifestRow, Refused


def film(seed: int, edge: int = 256) -> np.ndarray:
    """uint8 H W: smooth shapes and noise, bright in the middle as a chest is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:edge * 1j, -1:1:edge * 1j]
    body = 150 * np.exp(-2 * x**2 - y**2) + 25 * np.cos(12 * y + 3 * x**2 + rng.uniform(0, 6)) * (np.abs(x) < 0.7)
    return np.clip(body + 20 + rng.normal(0, 4, (edge, edge)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [9, 14, 24])
@pytest.mark.parametrize("grey", [255, 200])
def test_nine_of_ten_lines_of_print_are_found(size: int, grey: int) -> None:
    draw = random.Random(0)
    hits = [found(*planted(film(i), draw, size, grey)[:2]) for i in range(20)]
    assert sum(hits) >= 18


def test_a_film_without_print_and_one_with_a_side_marker_are_not_flagged() -> None:
    for seed in range(20):
        assert lines_of_text(film(seed) / 255.0) == []
    marked = film(0)
    marked[20:40, 20:24] = marked[36:40, 20:32] = 255  # an L
    assert lines_of_text(marked / 255.0) == []


@pytest.mark.parametrize("values", [np.zeros((40, 40)), np.ones((3, 3)), np.full((64, 64), np.nan), np.zeros((0, 5)),
                                    np.random.default_rng(0).random((200, 150))], ids=str)
def test_odd_films_give_no_lines_and_no_error(values: np.ndarray) -> None:
    assert lines_of_text(values) == []


def test_boxes_of_a_large_film_are_in_its_own_pixels() -> None:
    small, line, _ = planted(film(0), random.Random(1), 16, 255)
    large = np.repeat(np.repeat(small, 8, axis=0), 8, axis=1)
    top, left, bottom, right = lines_of_text(large / 255.0)[0]
    assert found(small, line) and top >= 8 * line[0] - 16 and bottom <= 8 * line[2] + 16 and left >= 8 * line[1] - 16


def test_a_film_in_bytes_and_the_same_in_shares_are_searched_alike() -> None:
    marked, line, _ = planted(film(3), random.Random(2), 16, 255)
    shares = marked.astype(np.float32) / 255
    assert found(marked, line) and lines_of_text(marked) == lines_of_text(shares)
    assert np.array_equal(burned_in._bytes(shares, 1), marked)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_large_film_is_looked_at_as_the_means_of_its_squares(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_in, "ROWS", 20)
    grey = np.random.default_rng(0).random((127, 101), dtype=np.float32)
    height, width = (n // step for n in grey.shape)
    means = grey[:height * step, :width * step].reshape(height, step, width, step).mean(axis=(1, 3))
    assert np.array_equal(burned_in._bytes(grey, step), (means * 255).astype(np.uint8))


@pytest.mark.parametrize("shape", [(11, 40), (40, 11), (23, 24)])
def test_the_extreme_over_squares_is_that_of_every_pixels_square(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for size in (5, 7, 11):
        padded = np.pad(values, size // 2, mode="edge")
        squares = np.lib.stride_tricks.sliding_window_view(padded, (size, size))
        assert np.array_equal(burned_in._spread_out(values, size, np.minimum), squares.min(axis=(2, 3)))
        assert np.array_equal(burned_in._spread_out(values, size, np.maximum), squares.max(axis=(2, 3)))


def test_strokes_are_joined_as_a_flood_would() -> None:
    rng = np.random.default_rng(0)
    for share in (0.02, 0.05, 0.1):
        strokes = rng.random((40, 50)) < share
        marks = burned_in._marks(np.flatnonzero(strokes), np.full(strokes.shape, 200, np.uint8))
        assert sorted(zip(marks.area.tolist(), marks.top.tolist(), marks.left.tolist(), strict=True)) == flood(strokes)


def flood(strokes: np.ndarray) -> list[tuple[int, int, int]]:
    """Area, top and left of every piece, pixels touching at corners, by the plainest walk."""
    left = {tuple(at) for at in np.argwhere(strokes).tolist()}
    pieces = []
    while left:
        stack, piece = [left.pop()], []
        while stack:
            y, x = stack.pop()
            piece.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        pieces.append((len(piece), min(y for y, _ in piece), min(x for _, x in piece)))
    return sorted(pieces)


def test_the_setting_says_whether_print_is_flagged_refused_or_not_looked_for(tmp_path: Path) -> None:
    Image.fromarray(planted(film(0), random.Random(0), 14, 255)[0]).save(tmp_path / "a.png")
    row = ManifestRow(tmp_path / "a.png", "a.png", "g", "train", "")
    (flagged,) = ingest.read(row, XRay(size=(32, 32)))
    assert flagged.facts["text_lines"] == 1
    assert "text_lines" not in ingest.read(row, XRay(size=(32, 32), burned_in="ignore"))[0].facts
    with pytest.raises(Refused, match="text were burned into the picture .1 lines."):
        ingest.read(row, XRay(size=(32, 32), burned_in="refuse"))
