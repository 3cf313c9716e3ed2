from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import seeds
from domains.quarantine import Limits, Reader, read_all
from domains.sample import ManifestRow, Part, Refused
from domains.satellite import npy

WHOLE = np.arange(4 * 32 * 32, dtype=np.uint16).reshape(4, 32, 32)


def told(row: ManifestRow, reader: Reader) -> object:
    """What a reader makes of a row, or why it does not."""
    try:
        found = import_module(reader.module).read(row, reader.settings)
    except Refused as refused:
        return str(refused)
    assert not isinstance(found, Part)
    return [(piece.values.dtype, piece.values.tobytes(), repr(piece.facts), piece.placement) for piece in found]


def damaged(content: bytes, number: int) -> bytes:
    """The bytes cut off, or with one changed, in the header or anywhere."""
    rng = np.random.default_rng(number)
    if number % 3 == 0:
        return content[:rng.integers(len(content))]
    place = int(rng.integers(min(len(content), 360) if number % 3 == 1 else len(content)))
    return content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1:]


def array(changed: Callable[[np.ndarray], np.ndarray]) -> bytes:
    stream = BytesIO()
    np.save(stream, changed(WHOLE))
    return stream.getvalue()


def whole_file(folder: Path, ending: str) -> bytes:
    """What is in a file that nothing is wrong with."""
    if ending == ".npy":
        return array(lambda values: values)
    pytest.importorskip("PIL" if ending in (".png", ".jpg") else "nibabel")
    formats = seeds._of_films(folder) if ending in (".png", ".jpg") else seeds._of_volumes(folder)
    wanted = ending.removesuffix(".gz")
    plain = next(path.read_bytes() for form in formats for path in form.paths if path.name.endswith(wanted))
    return gzip.compress(plain, 1) if ending == ".nii.gz" else plain


FORMS = {".npy": seeds.ARRAYS, ".nii": seeds.VOLUMES, ".nii.gz": seeds.VOLUMES, ".png": seeds.FILMS,
         ".jpg": seeds.FILMS}


@pytest.mark.parametrize("ending", FORMS)
def test_bytes_at_hand_give_what_the_file_gives_also_where_they_are_damaged(tmp_path: Path, ending: str) -> None:
    reader, whole = FORMS[ending], whole_file(tmp_path / "seeds", ending)
    accepted = 0
    for number in range(150):
        content, path = damaged(whole, number) if number else whole, tmp_path / f"a{ending}"
        path.write_bytes(content)
        row = seeds.row(path)
        by_file = told(row, reader)
        assert told(replace(row, content=content), reader) == by_file
        accepted += not isinstance(by_file, str)
    assert accepted >= 1


@pytest.mark.parametrize("changed", [
    lambda values: np.asfortranarray(values), lambda values: values.astype(">u2"), lambda values: values.astype("<f4"),
    lambda values: values.astype(np.uint8), lambda values: values.astype(np.int64), lambda values: values[:, ::2, ::2],
    lambda values: values[:3], lambda values: values[0], lambda values: values[:0], lambda values: values.astype("c8"),
    lambda values: values.astype("M8[s]"), lambda values: values.view([("a", "u1"), ("b", "u1")])])
def test_arrays_of_every_kind_are_the_same_from_bytes_and_from_the_file(
        tmp_path: Path, changed: Callable[[np.ndarray], np.ndarray]) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(array(changed))
    assert told(replace(seeds.row(path), content=path.read_bytes()), seeds.ARRAYS) == told(seeds.row(path),
                                                                                        seeds.ARRAYS)


def test_no_objects_and_no_archives_are_taken_from_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object))
    np.savez(tmp_path / "b.npz", WHOLE)
    for name in ("a.npy", "b.npz"):
        content = (tmp_path / name).read_bytes()
        assert npy.array_of(content) is None
        (tmp_path / "c.npy").write_bytes(content)
        (found,) = read_all([seeds.row(tmp_path / "c.npy")], seeds.ARRAYS, Limits(workers=1))
        assert ".npy" in found.reason and not found.pieces


def test_a_header_that_numpy_cannot_cut_into_words_is_refused_in_a_sentence(tmp_path: Path) -> None:
    content = array(lambda values: values).replace(b"}", b"(")
    (tmp_path / "a.npy").write_bytes(content)
    for row in (seeds.row(tmp_path / "a.npy"), replace(seeds.row(tmp_path / "a.npy"), content=content)):
        assert "(TokenError); expected an array of numbers" in str(told(row, seeds.ARRAYS))


def test_what_a_row_holds_of_its_file_is_shown_nowhere() -> None:
    row = replace(seeds.row(Path("a.npy")), content=b"PATIENT")
    assert "PATIENT" not in repr(row) and row == seeds.row(Path("a.npy"))
