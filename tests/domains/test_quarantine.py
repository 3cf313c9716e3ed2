from __future__ import annotations

import json
import struct
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import seeds
from domains import frames, worker
from domains.outcome import DISHONEST, Outcome, outcome_of
from domains.placement import Placement
from domains.quarantine import Limits, Reader, fault, read_all, spare_children
from domains.reading_process import Child
from domains.sample import ManifestRow, Piece
from tests.domains.hostile_reader import Hostile, Nested
from tests.domains.witness_reader import Witness

READER = Reader("tests.domains.hostile_reader", Hostile(by_source={"x": Nested(("c",))}))
LIMITS = Limits(memory_gb=2, seconds=2, workers=2)


def make_rows(folder: Path, verbs: dict[int, str], num: int) -> list[ManifestRow]:
    rows = []
    for i in range(num):
        path = folder / f"{i}.txt"
        path.write_text(f"{verbs.get(i, 'fine')} {i}")
        rows.append(ManifestRow(path, path.name, f"g{i}", "train", "s"))
    return rows


def read(rows: list[ManifestRow], limits: Limits = LIMITS) -> list[Outcome]:
    return list(read_all(rows, READER, limits))


def test_one_bad_file_is_quarantined_alone_whatever_it_does(tmp_path: Path) -> None:
    verbs = {2: "segfault", 3: "segfault", 7: "sleep", 11: "raise", 12: "refuse", 13: "bomb", 14: "hidden", 17: "exit",
             23: "spin", 29: "lie", 39: "segfault"}
    outcomes = read(make_rows(tmp_path, verbs, 40))
    reasons = {i: outcome.reason for i, outcome in enumerate(outcomes) if outcome.reason}
    assert sorted(reasons) == sorted(verbs)
    assert "SIGSEGV" in reasons[2]
    assert reasons[7] == reasons[23] == "took longer than the 2 s of limits.seconds"
    assert reasons[12] == "transfer syntax 1.2.3 is not read"
    assert reasons[13] == reasons[14] == "needs more memory than the 2 GiB of limits.memory_gb"
    assert "exit code 3" in reasons[17]
    assert reasons[29] == "the reader broke its protocol"
    assert all(len(outcome.sha256) == 64 for outcome in outcomes)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_rows_order_with_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    rows = make_rows(tmp_path, {0: "sleep", 5: "segfault", 9: "many"}, 120)
    outcomes = read(rows, Limits(memory_gb=2, seconds=2, workers=workers))
    assert [outcome.row for outcome in outcomes] == rows
    for i, outcome in enumerate(outcomes):
        if i not in (0, 5):
            assert all((piece.values == i % 251).all() for piece in outcome.pieces)
    assert [piece.suffix for piece in outcomes[9].pieces] == ["@0", "@1", "@2"]


def test_small_files_are_answered_several_at_once_and_a_crash_among_them_blames_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    heard = Child.heard
    monkeypatch.setattr("domains.reading_process.AHEAD_SECONDS", 1e6)
    monkeypatch.setattr(Child, "heard", lambda child, rows: (together.append(rows), heard(child, rows)))
    bad = {17: "segfault", 18: "exit", 60: "segfault", 61: "raise", 99: "spin"}
    outcomes = read(make_rows(tmp_path, bad, 120), Limits(memory_gb=2, seconds=2, workers=1))
    assert max(together) > 1
    assert [outcome.index for outcome in outcomes] == list(range(120))
    assert {outcome.index for outcome in outcomes if outcome.reason} == bad.keys()
    assert all((outcome.pieces[0].values == outcome.index).all() for outcome in outcomes if not outcome.reason)


def test_a_count_that_a_broken_child_spoilt_blames_one_of_the_files_it_had() -> None:
    for unheard, guilty in ((0, 5), (1, 5), (2, 6), (3, 7), (4, 7), (2**64 - 1, 7), (-9, 5)):
        child = Child.__new__(Child)
        child.pending, child._unheard = deque([5, 6, 7]), unheard
        assert child.take_guilty() == guilty and guilty not in child.pending and len(child.pending) == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_file_in_parts_comes_in_order_and_between_its_neighbours(tmp_path: Path, workers: int) -> None:
    rows = make_rows(tmp_path, {3: "parts", 4: "parts", 11: "parts"}, 12)
    outcomes = read(rows, Limits(memory_gb=2, seconds=5, workers=workers))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, *[3] * 4, *[4] * 4, *range(5, 11), *[11] * 4]
    for outcome in outcomes:
        assert outcome.row.path == rows[outcome.index].path and not outcome.reason
        assert all((piece.values == outcome.index).all() for piece in outcome.pieces)
    parts = [outcome for outcome in outcomes if outcome.index == 4]
    assert [[piece.suffix for piece in part.pieces] for part in parts] == [["@0"], [], ["@2"], ["@3"]]
    assert [part.more for part in parts] == [True, True, True, False]


def test_a_file_that_fails_in_a_later_part_says_so_and_its_neighbours_are_read(tmp_path: Path) -> None:
    outcomes = read(make_rows(tmp_path, {1: "crash", 3: "parts"}, 5), Limits(memory_gb=2, seconds=5, workers=2))
    reasons = {outcome.index: outcome.reason for outcome in outcomes if outcome.reason}
    assert list(reasons) == [1] and reasons[1].startswith("from part 3 on: ") and "SIGSEGV" in reasons[1]
    assert [outcome.index for outcome in outcomes] == [0, 1, 1, 1, 2, 3, 3, 3, 3, 4]


def test_children_that_are_left_read_on_and_those_that_crashed_are_not_left(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, {3: "segfault", 30: "parts"}, 40)
    with spare_children() as spare:
        first = list(read_all(rows[:10], READER, LIMITS, spare))
        left = [child.process.pid for child in spare]
        assert len(left) == 2
        spare[0].process.kill()  # as the system does where memory runs out
        spare[0].process.wait()
        again = list(read_all(rows[10:], READER, LIMITS, spare))
        assert [outcome.index for outcome in first if outcome.reason] == [3]
        assert not any(outcome.reason for outcome in again) and len(again) == 33
        assert left[1] in [child.process.pid for child in spare] and left[0] not in [
            child.process.pid for child in spare]
        kept = list(spare)
    assert all(child.process.poll() is not None for child in kept)


def test_a_file_that_changes_between_its_parts_is_refused(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, {0: "parts"}, 1)
    outcomes = []
    for outcome in read_all(rows, READER, Limits(memory_gb=2, seconds=5, workers=1)):
        outcomes.append(outcome)
        rows[0].path.write_text("parts 77")
    assert outcomes[-1].reason == "from part 2 on: the file changed while it was read"


def test_values_masks_and_facts_arrive_as_they_were_made(tmp_path: Path) -> None:
    piece = read(make_rows(tmp_path, {}, 8))[7].pieces[0]
    assert piece.values.dtype == np.uint8 and piece.values.shape == (1, 4, 5)
    assert piece.mask is not None and (piece.mask == 7).all() and piece.mask.shape == (4, 5)
    assert piece.facts == {"exact": 1.5, "list": [1, 2]}


HONEST = {"dtype": "uint8", "shape": [2, 2], "facts": {"format": "x", "spacing": [1.0, 2.0]}, "suffix": "@1",
          "mask_shape": None, "placement": None}
PLACED = {"shape": [2, 2], "axes": [0, 1], "fractions": struct.pack("<4d", 0, 0, 1, 1).hex(), "crs": ""}


@pytest.mark.parametrize("changed", [
    {"dtype": "object"}, {"dtype": ["uint8"]}, {"shape": [float("inf")]}, {"shape": [float("nan"), 4]}, {"shape": "22"},
    {"shape": [-2, -2]}, {"shape": [2, 3]}, {"shape": [2**70, 2**70]}, {"shape": None}, {"facts": [1]}, {"facts": None},
    {"facts": {"name": {"a": "b"}}}, {"facts": {"name": "x" * 200}}, {"facts": {"name": "a\nb"}},
    {"facts": {"n": None}},
    {"suffix": "x" * 200}, {"suffix": "\x1b[2J"}, {"suffix": 3}, {"mask_shape": [9], "mask_dtype": "uint8"},
    {"placement": 3}, {"placement": {**PLACED, "shape": [1e400, 1]}},
    *({"placement": {**PLACED, "fractions": fractions}} for fractions in (
        3, None, [0.0], "xy", "0" * 63, "0" * 2000, "", struct.pack("<4d", 0, float("nan"), 1, 1).hex(),
        struct.pack("<4d", 0, 0, 0, 1).hex(), struct.pack("<5d", 0, 0, 1, 1, 1).hex()))])
def test_what_no_honest_child_says_is_not_believed(tmp_path: Path, changed: dict[str, object]) -> None:
    row = make_rows(tmp_path, {}, 1)[0]
    honest = json.dumps({**HONEST, "placement": PLACED})
    (piece,) = outcome_of(row, 0, {"pieces": [honest], "more": False}, bytearray(4)).pieces
    assert piece.suffix == "@1" and piece.placement == Placement((2, 2), (0, 1), (0.0, 0.0), (1.0, 1.0))
    for _ in range(2):  # what was looked at once is remembered, but only what was believed
        with pytest.raises(DISHONEST):
            outcome_of(row, 0, {"pieces": [json.dumps({**HONEST, **changed})], "more": False}, bytearray(4))


@pytest.mark.parametrize("header", [[], "x", {}, {"pieces": 3, "more": False}, {"pieces": []},
                                    {"pieces": [3], "more": False}, {"pieces": [{}], "more": False},
                                    {"pieces": ["{"], "more": False}, {"pieces": [b"\xff"], "more": False},
                                    {"pieces": ["[" * 100_000], "more": False},
                                    {"pieces": [], "more": False, "peak_bytes": float("inf")}])
def test_a_header_of_another_kind_is_not_believed(tmp_path: Path, header: object) -> None:
    with pytest.raises(DISHONEST):
        outcome_of(make_rows(tmp_path, {}, 1)[0], 0, header, bytearray())  # type: ignore[arg-type]


def test_an_exceptions_text_never_reaches_the_parent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reason = read(make_rows(tmp_path, {0: "raise"}, 1))[0].reason
    assert "PATIENT" not in reason
    assert "ValueError at domains/hostile_reader.py" in reason
    assert capfd.readouterr() == ("", "")


def test_a_reader_is_given_no_secrets_and_writes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    outcomes = read(make_rows(tmp_path, {0: "environment", 1: "write"}, 2))
    assert not outcomes[0].reason
    assert "OSError" in outcomes[1].reason
    assert not (tmp_path / "written").exists() or (tmp_path / "written").stat().st_size == 0


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    outcome = read([ManifestRow(tmp_path / "none.png", "none.png", "g", "train", "")])[0]
    assert outcome.reason.startswith("no such file")
    assert outcome.sha256 == ""


def test_a_missing_library_stops_the_run_and_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"lacuna\[satellite\]"):
        read(make_rows(tmp_path, {3: "missing"}, 6))


def test_a_reader_that_is_not_there_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="no_such_reader"):
        list(read_all(make_rows(tmp_path, {}, 1), Reader("no_such_reader", Hostile()), LIMITS))


def test_the_hash_of_a_folder_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series/1").write_text("a")
    first = worker.hash_of(tmp_path / "series")
    (tmp_path / "series/1").rename(tmp_path / "series/2")
    second = worker.hash_of(tmp_path / "series")
    (tmp_path / "series/2").write_text("b")
    assert len({first, second, worker.hash_of(tmp_path / "series")}) == 3


def test_settings_survive_the_way_to_the_child() -> None:
    for value in (READER.settings, ManifestRow(Path("/a"), "a", "g", "", "s", None, {"": "x"}), [1, (2.5, None)]):
        assert frames.decode(frames.encode(value)) == value


@pytest.mark.parametrize(("values", "mask", "says"), [
    (np.zeros((1, 4, 4), np.int16), None, "found int16"),
    (np.zeros((4, 4), np.uint8), None, "2 dimensions"),
    (np.zeros((2, 4, 4), np.uint8), None, "2 channels"),
    (np.zeros((1, 4, 4), np.uint8), np.zeros((4, 5), np.uint8), "a mask of"),
    (np.zeros((1, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), ""),
])
def test_a_piece_that_breaks_its_contract_is_told(values: np.ndarray, mask: np.ndarray | None, says: str) -> None:
    found = fault(Piece(values, mask), "uint8", 1, 3, None)
    assert says in found and bool(says) == bool(found)


def test_not_a_number_is_a_fault_unless_it_means_unknown() -> None:
    values = np.array([[[np.nan, 1.0]]], np.float32)
    assert "not finite" in fault(Piece(values), "float32", 1, 3, None)
    assert fault(Piece(values), "float32", 1, 3, float("nan")) == ""
    assert "no known value" in fault(Piece(values * np.nan), "float32", 1, 3, float("nan"))
    assert "not finite" in fault(Piece(values * np.inf), "float32", 1, 3, float("nan"))


def test_a_process_kept_waiting_for_a_processor_is_not_late_and_one_that_sleeps_is(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = iter([10.0, 11.5, 11.5])  # seconds that the kernel says it was ready and not let: first, and when asked
    child = Child(READER.module, READER.settings, 2**31, LIMITS.seconds)
    try:
        monkeypatch.setattr(child, "_waiting_for_processor", lambda: next(waited))
        child.ready, child.pending = True, deque([0])
        child.start_clock()
        now = child.begun
        monkeypatch.setattr(time, "monotonic", lambda: now + 3.4)
        assert not child.is_late()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3.6)
        assert child.is_late()
        monkeypatch.setattr(child, "_waiting_for_processor", lambda: 1e6)
        monkeypatch.setattr(time, "monotonic", lambda: now + 6.1)
        assert child.is_late(), "three times the limit is the most that any file gets"
    finally:
        child.deadline = 0.0
        child.process.kill()
        child.end()


def test_a_child_gives_back_what_a_large_file_took(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, dict.fromkeys(range(6), "hoard"), 6)
    outcomes = read(rows, Limits(memory_gb=1, seconds=20, workers=1))
    assert [outcome.reason for outcome in outcomes] == [""] * 6


@pytest.mark.parametrize("domain", ["medical", "satellite", "pointcloud"])
def test_a_reading_process_never_imports_torch(tmp_path: Path, domain: str) -> None:
    reader, rows = seeds.of_domain(domain, tmp_path)
    witness = Reader("tests.domains.witness_reader", Witness(reader.module, reader.settings))
    outcomes = list(read_all(rows, witness, Limits(workers=1)))
    assert len(outcomes) > 1
    for outcome in outcomes:
        assert not outcome.reason
        assert [piece.facts["torch"] for piece in outcome.pieces] == [0] * len(outcome.pieces)


def test_limits_that_no_library_fits_into_are_refused() -> None:
    with pytest.raises(ValueError, match="memory_gb"):
        Limits(memory_gb=0.1)
