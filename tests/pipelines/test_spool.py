"""Events arrive in order or lie on the disk; a dead or silent server stops nobody."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from pipelines.tracking import spool
from pipelines.tracking.spool import Event, Refusal, Sender

OPENING: Event = {"op": "open", "key": "k"}


class _Server:
    def __init__(self, down: bool = False) -> None:
        self.down, self.got, self.silent = down, [], threading.Event()
        self.silent.set()

    def deliver(self, event: Event) -> None:
        self.silent.wait()
        if self.down:
            raise ConnectionError("refused\nand much more text")
        if event["op"] == "bad":
            raise Refusal("never")
        self.got.append(event)


def _points(*values: int) -> Event:
    return {"op": "metrics", "points": [["loss", float(value), 0, value] for value in values]}


def _steps(server: _Server) -> list[int]:
    return [point[3] for event in server.got if event["op"] == "metrics" for point in event["points"]]


def test_events_arrive_in_order_and_nothing_is_left(tmp_path: Path) -> None:
    server = _Server()
    sender = Sender(OPENING, server.deliver, tmp_path / "spool")
    for step in range(2500):
        sender.put(_points(step))
    assert sender.close(10)
    assert server.got[0] == OPENING and _steps(server) == list(range(2500))
    assert max(len(event.get("points", [])) for event in server.got) <= spool.MAX_POINTS
    assert not (tmp_path / "spool").exists()


def test_a_dead_server_costs_one_sentence_and_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = _Server(down=True)
    with caplog.at_level(logging.WARNING):
        sender = Sender(OPENING, server.deliver, tmp_path)
        sender.wait_for_first(5)
        for step in range(5):
            sender.put(_points(step))
        assert not sender.close(5)
    assert len(caplog.records) == 1 and "lacuna sync" in caplog.text and "much more" not in caplog.text
    assert spool.read(tmp_path / "k.jsonl")[0] == OPENING
    server.down = False
    assert spool.sync(tmp_path, server.deliver) == (1, 0)
    assert server.got[0] == OPENING and _steps(server) == list(range(5))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_comes_back_gets_everything_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "INTERVAL", 0.01)
    monkeypatch.setattr(spool, "FIRST_RETRY", 0.05)
    server = _Server()
    sender = Sender(OPENING, server.deliver, tmp_path)
    for step in range(60):
        server.down = 20 <= step < 40
        sender.put(_points(step))
        time.sleep(0.01)
    assert sender.close(10)
    assert sorted(set(_steps(server))) == list(range(60)) and not list(tmp_path.glob("*.jsonl"))


def test_a_server_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    server = _Server()
    server.silent.clear()
    sender = Sender(OPENING, server.deliver, tmp_path)
    assert not sender.wait_for_first(0.1)
    sender.put(_points(1))
    assert not sender.close(0.2)
    assert [event["op"] for event in spool.read(tmp_path / "k.jsonl")] == ["open", "metrics"]
    server.silent.set()  # the answer comes too late: the file stays for sync
    time.sleep(0.1)
    assert (tmp_path / "k.jsonl").is_file()


def test_an_event_that_is_never_taken_does_not_block_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = _Server()
    sender = Sender(OPENING, server.deliver, tmp_path)
    sender.put({"op": "bad"})
    sender.put(_points(1))
    assert sender.close(10)
    assert _steps(server) == [1] and "refused bad" in caplog.text


def test_files_are_kept_with_the_events_that_show_them(tmp_path: Path) -> None:
    server = _Server(down=True)
    picture = tmp_path / "reports/p.png"
    picture.parent.mkdir()
    sender = Sender(OPENING, server.deliver, tmp_path / "spool")
    for content in (b"first", b"second"):
        picture.write_bytes(content)
        sender.put({"op": "artifact", "file": str(picture), "folder": "pictures"})
        time.sleep(1.5 * spool.INTERVAL)
    sender.close(5)
    picture.unlink()
    server.down = False
    kept = [Path(event["file"]) for event in spool.read(tmp_path / "spool/k.jsonl")[1:]]
    assert [file.read_bytes() for file in kept] == [b"first", b"second"] and {file.name for file in kept} == {"p.png"}
    assert spool.sync(tmp_path / "spool", server.deliver) == (1, 0)
    assert list((tmp_path / "spool").iterdir()) == []


def test_sync_leaves_what_a_living_run_writes_to(tmp_path: Path) -> None:
    server = _Server(down=True)
    sender = Sender(OPENING, server.deliver, tmp_path)
    sender.wait_for_first(5)
    assert sender.failing
    assert spool.sync(tmp_path, _Server().deliver) == (0, 1)
    sender.close(5)
    assert spool.sync(tmp_path, _Server().deliver) == (1, 0)


def test_a_spool_cut_by_a_kill_is_sent_up_to_the_cut(tmp_path: Path) -> None:
    (tmp_path / "k.jsonl").write_text(
        '{"op": "open", "key": "k"}\n{"op": "metrics", "points": [["a", 1.0, 0, 0]]}\n{"op": "met'
    )
    server = _Server()
    assert spool.sync(tmp_path, server.deliver) == (1, 0)
    assert len(server.got) == 2
