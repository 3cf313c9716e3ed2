from pathlib import Path

import pytest

from pipelines.training import resources


def test_a_containers_limit_counts_where_it_is_lower_than_the_machine(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  4096 kB\nMemAvailable:  2048 kB\n")
    monkeypatch.setattr(resources, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    assert resources.memory() == (2048 * 1024, 4096 * 1024)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert resources.memory() == (600000, 1000000)
    (tmp_path / "memory.max").write_text("max\n")
    assert resources.memory() == (2048 * 1024, 4096 * 1024)


def test_a_containers_share_of_cores_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_CGROUP", tmp_path)
    whole = resources.cores()
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert resources.cores() == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert resources.cores() == whole


def test_disk_is_asked_where_a_folder_will_be(tmp_path: Path) -> None:
    assert resources.disk_free(tmp_path / "not" / "yet") > 0


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (60, "60 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert resources.time_text(seconds) == text


def test_sizes_read_well() -> None:
    assert (resources.size_text(3 * 2**20), resources.size_text(1.5 * 2**30)) == ("3 MB", "1.5 GB")
