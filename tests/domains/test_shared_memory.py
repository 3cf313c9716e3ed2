from __future__ import annotations

import os
import random
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from domains import shared_memory
from domains.quarantine import LIED, Limits, Reader, read_all
from domains.reading_process import Frame
from domains.shared_memory import Inbox, Outbox
from tests.domains.hostile_reader import Hostile, Nested
from tests.domains.test_quarantine import make_rows

READER = Reader("tests.domains.hostile_reader", Hostile(by_source={"x": Nested(("c",))}))
ONE = Limits(memory_gb=2, seconds=5, workers=1)


def both_sides(monkeypatch: pytest.MonkeyPatch, room: int) -> tuple[Inbox, Outbox]:
    monkeypatch.setattr(shared_memory, "ROOM_BYTES", room)
    inbox = Inbox()
    return inbox, Outbox(os.dup(inbox.file))


def test_frames_that_wait_are_never_written_over_and_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, outbox = both_sides(monkeypatch, 10_000)
    rng, waiting, wrapped = random.Random(0), deque[tuple[int, list[np.ndarray]]](), 0
    for number in range(3000):
        arrays = [np.full(rng.randrange(1, 1200), number % 2**16, np.uint16) for _ in range(rng.randrange(1, 4))]
        num_bytes = sum(array.nbytes for array in arrays)
        while outbox._room(num_bytes) is None or (waiting and rng.random() < 0.3):
            begin, sent = waiting.popleft()
            wrapped += bool(waiting) and waiting[0][0] < begin
            found = inbox.arrays(begin, sum(array.nbytes for array in sent))
            assert bytes(found) == b"".join(array.tobytes() for array in sent)
            inbox.took()
            if not waiting:
                assert outbox._room(10_000) == 0, "all is taken: it begins anew"
        begin = outbox.put(arrays, num_bytes, -1)
        assert begin is not None
        waiting.append((begin, arrays))
    assert wrapped > 10


def test_a_child_waits_for_room_until_its_parent_has_taken_some_or_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, outbox = both_sides(monkeypatch, 100)
    reads, writes = os.pipe()
    full = [np.ones(80, np.uint8)]
    assert outbox.put(full, 80, writes) == 0
    timer = threading.Timer(0.05, inbox.took)
    timer.start()
    assert outbox.put(full, 80, writes) == 0
    timer.join()
    os.close(reads)
    with pytest.raises(BrokenPipeError):
        outbox.put(full, 80, writes)
    os.close(writes)


def test_nobody_can_make_the_memory_shorter_or_longer_or_point_outside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, _ = both_sides(monkeypatch, 100)
    for length in (0, 1, 2**20):
        with pytest.raises(PermissionError):
            os.ftruncate(inbox.file, length)
    assert len(inbox.arrays(20, 80)) == 80
    for begin, num in ((20, 81), (-1, 4), (0, 101), (2**62, 2**62), (-50, 100), (101, 0)):
        with pytest.raises(ValueError, match="outside"):
            inbox.arrays(begin, num)


@pytest.mark.parametrize("memfd", ["there", "missing", "forbidden"])
def test_arrays_that_do_not_fit_and_those_on_a_system_without_such_memory_go_through_the_pipe(
        tmp_path: Path, memfd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError
    if memfd == "missing":
        monkeypatch.delattr(os, "memfd_create")
    elif memfd == "forbidden":
        monkeypatch.setattr(os, "memfd_create", forbidden)
    outcomes = list(read_all(make_rows(tmp_path, {3: "large", 5: "segfault", 7: "many"}, 12), READER, ONE))
    assert [outcome.index for outcome in outcomes if outcome.reason] == [5]
    assert all((piece.values == outcome.index).all() for outcome in outcomes for piece in outcome.pieces)
    assert outcomes[3].num_bytes > shared_memory.ROOM_BYTES
    assert outcomes[2].pieces[0].mask is not None and (outcomes[2].pieces[0].mask == 2).all()


@pytest.mark.parametrize("verb", ["lie", "ahead", "endless", "lines", "elsewhere"])
def test_a_process_that_lies_and_goes_on_costs_its_own_file_alone(
        tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domains.reading_process.AHEAD_SECONDS", 1e6)
    outcomes = list(read_all(make_rows(tmp_path, {40: verb, 41: "fine", 70: verb}, 100), READER, ONE))
    assert [outcome.index for outcome in outcomes] == list(range(100))
    for outcome in outcomes:
        if outcome.index in (40, 70):
            assert outcome.reason == LIED
        else:
            assert not outcome.reason and (outcome.pieces[0].values == outcome.index).all()


def test_an_answer_forged_with_the_childs_own_token_moves_no_other_files_answer(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that took over a process can answer for what that has in hand; the honest answer then comes too late."""
    monkeypatch.setattr("domains.reading_process.AHEAD_SECONDS", 1e6)
    outcomes = list(read_all(make_rows(tmp_path, {40: "twice"}, 100), READER, ONE))
    assert [outcome.index for outcome in outcomes] == list(range(100))
    assert 1 <= len([outcome for outcome in outcomes if outcome.reason]) <= 2
    assert outcomes[40].reason in (LIED, "forged")
    assert all((outcome.pieces[0].values == outcome.index).all() for outcome in outcomes if not outcome.reason)


def test_a_child_cannot_cut_the_memory_by_way_of_its_parent(tmp_path: Path) -> None:
    outcomes = list(read_all(make_rows(tmp_path, {1: "cut"}, 3), READER, ONE))
    assert [outcome.reason for outcome in outcomes] == ["", "", ""]


def test_more_lines_than_the_header_tells_of_are_not_taken_apart() -> None:
    for words, told in ((b"\n" * 9, 9), (b"", 2), (b"x", 0), (b"\n", 0), (b"{}", 2**40)):
        with pytest.raises(ValueError, match="other words"):
            Frame({}, words, bytearray(), False).lines(told)
    assert Frame({}, b"a\nb", bytearray(), False).lines(2) == [b"a", b"b"]
    assert Frame({}, b"", bytearray(), False).lines(0) == []


def test_a_file_of_which_too_much_would_be_said_is_refused_in_words_and_those_beside_it_are_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the talkative ones more is said together than goes into one frame's share."""
    monkeypatch.setattr("domains.reading_process.AHEAD_SECONDS", 1e6)
    verbs = {**dict.fromkeys((20, 21, 22, 25), "talkative"), 23: "verbose"}
    outcomes = list(read_all(make_rows(tmp_path, verbs, 40), READER, ONE))
    assert "found 1 samples in one file" in outcomes[23].reason and "larger or fewer samples" in outcomes[23].reason
    assert [outcome.index for outcome in outcomes if outcome.reason] == [23]
    assert all((outcome.pieces[0].values == outcome.index).all() for outcome in outcomes if not outcome.reason)
    assert len(outcomes[25].pieces[0].facts["list"]) == 500_000
