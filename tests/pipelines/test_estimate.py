from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from domains.publish import DiskFull
from domains.store import open_prepared
from models.encoder.transformer import Encoder
from models.objectives.masked_autoencoder import MaskedAutoencoder
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from pipelines.training import estimate as module
from pipelines.training.batches import Source, domain_code
from pipelines.training.estimate import announce, estimate, out_of_memory_advice, with_memory_advice
from pipelines.training.training import Job, TrainingFailed
from pipelines.weights.checkpoints import state_hash
from tests.fabricate import prepare, pretrain_settings


def job(tmp_path: Path, kind: str = "points", losses: Callable[..., dict[str, Tensor]] | None = None) -> Job:
    """A training that is ready to start; points have BatchNorm, whose buffers change in every step."""
    settings = build(PretrainRun, pretrain_settings(kind), "test")
    data = open_prepared(prepare(tmp_path / "data", kind))
    torch.manual_seed(0)
    model = MaskedAutoencoder(settings.objective, Encoder(settings.encoder, len(data.contract.channels)))
    source = Source(data, data.contract, domain_code(settings.domain), data.pool())
    return Job(model=model, losses=losses or (lambda batch, chance: model(batch.x, batch.known, chance)), source=source,
               augment=None, optimisation=settings.optimisation, machine=settings.machine, seed=5, num_blocks=2,
               resume=tmp_path / "work" / "resume.pt")


@pytest.mark.parametrize("kind", ["xray", "points"])
def test_measuring_leaves_weights_buffers_gradients_mode_and_chance_as_they_were(tmp_path: Path, kind: str) -> None:
    one = job(tmp_path, kind)
    one.model.eval()
    before, chance = state_hash(one.model), torch.random.get_rng_state()
    assert announce("trial", one, num_samples=len(one.source.rows)) is not None
    assert state_hash(one.model) == before
    assert all(weight.grad is None for weight in one.model.parameters())
    assert not one.model.training
    assert torch.equal(torch.random.get_rng_state(), chance)


def test_the_announcement_names_steps_passes_weights_time_memory_and_disk(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = job(tmp_path)
    announce("pretrain trial", one, num_samples=32, repeats=3)
    said = capsys.readouterr().out
    weights = sum(weight.numel() for weight in one.model.parameters())
    for part in ("pretrain trial: 3 trainings of 8 steps of 8 samples, 2 passes over 32",
                 f"{weights / 1e6:.3g} M weights", "of memory on cpu", "of disk ("):
        assert part in said


@pytest.mark.parametrize(("seconds", "long"), [(60.0, False), (600.0, True)])
def test_a_training_of_more_than_half_an_hour_on_a_cpu_says_what_makes_it_shorter(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float,
        long: bool) -> None:
    monkeypatch.setattr(module, "measure", lambda job, device: (seconds, 1000))
    announce("finetune trial", job(tmp_path), num_samples=32)  # 8 steps
    assert ("encoder.size=tiny" in capsys.readouterr().out) == long


def test_time_and_disk_grow_with_steps_repeats_and_weights(tmp_path: Path) -> None:
    one = estimate(0.5, 1000, steps=10, parameters=100, trainable=60, folder=tmp_path)
    assert (one.seconds, one.memory) == (5.0, 1000 + 8 * 60 + 4 * 100 + 8 * 60)
    assert one.disk == 4 * 100 + 2 * 2 * (4 * 100 + 8 * 60), "twice: the state to go back to"
    several = estimate(0.5, 1000, steps=10, parameters=100, trainable=60, folder=tmp_path, repeats=3)
    assert several.seconds == 15.0
    assert several.disk - one.disk == 2 * 4 * 100


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "disk_free", lambda folder: 2**20)
    with pytest.raises(DiskFull, match=r"disk: found 1 MB free, expected \d+ MB .* \d+ bytes more.*Remedy") as error:
        announce("trial", job(tmp_path), num_samples=32)
    assert error.value.exit_code == 4


def test_what_a_stopped_run_has_saved_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a disk on which it was begun would be too small to go on."""
    ready = job(tmp_path)
    assert ready.resume is not None
    whole = announce("trial", ready, num_samples=32)
    assert whole is not None
    ready.resume.parent.mkdir()
    ready.resume.write_bytes(bytes(1000))
    monkeypatch.setattr(module, "disk_free", lambda folder: whole.disk + module.RESERVE - 1000)
    assert announce("trial", ready, num_samples=32) is not None
    ready.resume.write_bytes(bytes(999))
    with pytest.raises(DiskFull, match="expected .*, 1 bytes more"):
        announce("trial", ready, num_samples=32)


def test_a_step_that_does_not_fit_into_memory_gives_advice_not_a_traceback(tmp_path: Path) -> None:
    def too_large(batch: object, chance: object) -> dict[str, Tensor]:
        return {"loss": torch.empty(2**50)}

    with pytest.raises(TrainingFailed, match=r"memory: .* batch of 8\. Remedy: set machine.accumulate: 2 "):
        announce("trial", job(tmp_path, losses=too_large), num_samples=32)


@pytest.mark.parametrize(("batch_size", "accumulate", "advice"), [
    (64, 1, "machine.accumulate: 2 (micro-batches of 32"),
    (48, 4, "machine.accumulate: 6 (micro-batches of 8"),
    (9, 1, "machine.accumulate: 3 (micro-batches of 3"),
    (7, 1, "machine.accumulate: 7 (micro-batches of 1"),
    (8, 8, "every micro-batch is one sample already"),
])
def test_advice_names_a_number_of_micro_batches_that_divides_the_batch(batch_size: int, accumulate: int,
                                                                        advice: str) -> None:
    assert advice in out_of_memory_advice(MemoryError(), batch_size, accumulate)


def test_other_errors_pass_through_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), with_memory_advice(8, 1):
        raise RuntimeError("shapes differ")


def test_only_the_first_process_of_several_announces(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert announce("trial", job(tmp_path), num_samples=32) is None
    assert capsys.readouterr().out == ""
