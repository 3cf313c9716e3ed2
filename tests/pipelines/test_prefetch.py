import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.training.bad_steps import NotFinite
from pipelines.training.prefetch import ahead
from pipelines.training.training import Job, Machine, fit
from pipelines.weights.checkpoints import state_hash
from tests.fabricate import prepare, spoilt, untrained


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def job(folder: Path, kind: str = "xray", steps: int = 8, spoil: tuple[int, ...] = (), resume: Path | None = None,
        **machine: object) -> Job:
    settings, model, source = untrained(folder, kind, steps, {"accelerator": "cpu", "save_every_seconds": 0, **machine})
    return Job(model=model, losses=spoilt(lambda batch, chance: model(batch.x, batch.known, chance), spoil),
               source=source, augment=None, optimisation=settings.optimisation, machine=settings.machine, seed=5,
               num_blocks=2, resume=resume)


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
def test_all_come_in_order_and_no_thread_is_left(depth: int) -> None:
    assert list(ahead(range(5), depth)) == list(range(5))
    assert threads() == []


def test_no_more_than_depth_are_read_before_they_are_asked_for() -> None:
    read: list[int] = []

    def reading() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    batches = ahead(reading(), 2)
    assert read == [], "reading begins when the first is asked for"
    assert [next(batches), next(batches)] == [0, 1]
    batches.close()
    assert len(read) <= 4 and threads() == []


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_what_reading_raises_comes_where_the_batch_would_have(depth: int) -> None:
    def reading() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the disk is gone")

    batches = ahead(reading(), depth)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert threads() == []


@pytest.mark.parametrize("kind", ["xray", "ct", "multispectral", "points"])
def test_weights_do_not_depend_on_how_far_ahead_is_read(tmp_path: Path, kind: str) -> None:
    folder = prepare(tmp_path / "data", kind)
    hashes = set()
    for depth in (0, 1, 2):
        one = job(folder, kind, steps=4, prefetch=depth, accumulate=2)
        assert fit(one) == 4
        hashes.add(state_hash(one.model))
        assert threads() == [], "the thread ends with the training"
    assert len(hashes) == 1


def test_a_training_that_is_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    folder, file = prepare(tmp_path / "data"), tmp_path / "resume.pt"
    whole = job(folder, steps=8)
    fit(whole)
    stopped = job(folder, steps=8, resume=file, prefetch=2)

    def log(step: int, numbers: dict[str, float]) -> None:
        if step == 6:
            raise KeyboardInterrupt

    object.__setattr__(stopped, "log", log)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(stopped)
    assert file.exists() and threads() == []
    rest = job(folder, steps=8, resume=file, prefetch=2)
    assert fit(rest) == 8 and state_hash(rest.model) == state_hash(whole.model)


def test_a_training_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "data")
    with pytest.raises(NotFinite):
        fit(job(folder, steps=3, spoil=tuple(range(48)), prefetch=2))
    assert threads() == []


def test_a_negative_or_huge_number_is_refused() -> None:
    for wrong in (-1, 17):
        with pytest.raises(ValueError, match=f"prefetch: found {wrong}, expected 0 to 16"):
            Machine(prefetch=wrong)
