import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from domains.store import open_prepared
from models.encoder.transformer import Encoder
from models.objectives.masked_autoencoder import MaskedAutoencoder
from pipelines.training import training_module
from pipelines.training.batches import Source, TrainingBatches, domain_code
from pipelines.training.schedule import layer_of, learning_rate_share
from pipelines.training.training import Job, Optimisation, fit
from pipelines.weights.checkpoints import state_hash
from tests.fabricate import Killed, killing, prepare, restored, train_directly, untrained

ROOT = Path(__file__).resolve().parents[2]


def program(*arguments: str, **kwargs: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, "-m", "tests.fabricate", *arguments], cwd=ROOT, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def source_of(folder: Path) -> Source:
    data = open_prepared(folder)
    return Source(data, data.contract, domain_code(data.contract.domain), data.rows(split="train"))


@pytest.mark.parametrize("kind", ["xray", "ct", "multispectral", "points"])
def test_the_same_seed_gives_the_same_weights(tmp_path, kind):
    folder = prepare(tmp_path / "data", kind)
    assert train_directly(folder, kind, 4, 1, None, None) == train_directly(folder, kind, 4, 1, None, None)


@pytest.mark.parametrize("optimiser", ["adamw", pytest.param("adan", marks=pytest.mark.slow)])
def test_a_killed_run_that_resumes_ends_with_the_weights_of_one_that_was_not(tmp_path, optimiser):
    folder = prepare(tmp_path / "data")
    steps = 400
    asked = (str(folder), "--steps", str(steps), "--optimiser", optimiser)
    whole = program(*asked)
    killed = program(*asked, "--resume", str(tmp_path / "resume.pt"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "resume.pt").exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it had ended before it was killed; make the run longer"
    left = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert 0 < left["step"] < steps
    resumed = program(*asked, "--resume", str(tmp_path / "resume.pt"))
    assert resumed.communicate(timeout=300)[0].split()[-1] == whole.communicate(timeout=300)[0].split()[-1]


def with_dropout(folder: Path, accumulate: int = 1, **changes: Any) -> Job:
    """A job whose every block drops activations and branches."""
    settings, _, source = untrained(folder, "xray", 8, {"accelerator": "cpu", "save_every_seconds": 0,
                                                         "accumulate": accumulate})
    torch.manual_seed(0)
    model = MaskedAutoencoder(settings.objective, Encoder(replace(settings.encoder, dropout=0.3, drop_path=0.3), 1))
    return Job(model=model, losses=lambda batch, chance: model(batch.x, batch.known, chance), source=source,
               augment=None, machine=settings.machine, seed=5, num_blocks=2, optimisation=settings.optimisation,
               **changes)


def test_a_run_with_dropout_that_stops_and_goes_on_ends_as_one_that_did_not(tmp_path):
    folder = prepare(tmp_path / "data")
    whole = with_dropout(folder)
    fit(whole)
    for stop in (2, 4):
        file = tmp_path / f"{stop}.pt"
        with pytest.raises(Killed):
            fit(with_dropout(folder, resume=file, every=1, watch=killing(stop + 1)))
        torch.manual_seed(99)                                               # another process has drawn other numbers
        resumed = with_dropout(folder, resume=file)
        assert fit(resumed) == 8 and state_hash(resumed.model) == state_hash(whole.model)


def test_every_step_micro_batch_and_process_drops_something_else(tmp_path, monkeypatch):
    folder, keys = prepare(tmp_path / "data"), []
    monkeypatch.setattr(training_module, "seed_dropout", lambda key, device: keys.append(key))
    for rank in (0, 1, 0):
        monkeypatch.setattr(training_module.Training, "global_rank", rank)
        fit(with_dropout(folder, accumulate=2))
    first, second, again = keys[:16], keys[16:32], keys[32:]
    assert len({*first, *second}) == 32 and again == first


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), [("xray", "auto"), ("multispectral", "auto"), ("points", "auto"),
                                                ("xray", "fsdp")])
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(tmp_path, kind, strategy):
    folder = prepare(tmp_path / "data", kind)
    runs = [program(str(folder), "--kind", kind, "--world", str(world), "--strategy", strategy if world > 1 else "auto",
                    "--out", str(tmp_path / f"{world}.pt")) for world in (1, 2)]
    for run in runs:
        out, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors[-2000:]
    # Weights are not compared: those that no loss depends on (a shift before a normalisation) get rounding noise for a
    # gradient, and Adam scales noise up to the size of a step. What the models restore shows every other weight.
    one, two = (restored(folder, kind, tmp_path / f"{world}.pt") for world in (1, 2))
    fresh = restored(folder, kind, None)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3 * float((one - fresh).abs().max()))


def test_micro_batches_make_up_the_batch_and_ranks_share_it(tmp_path):
    source = source_of(prepare(tmp_path / "data"))
    whole = TrainingBatches(source, seed=1, batch_size=8, steps=5).batch(3, 0).ids.tolist()
    by_rank = [i for micro in range(2) for rank in range(2)
               for i in TrainingBatches(source, 1, 8, 5, 0, 2, rank, 2).batch(3, micro).ids.tolist()]
    assert by_rank == whole


def test_every_sample_is_seen_once_per_epoch(tmp_path):
    source = source_of(prepare(tmp_path / "data"))
    n = len(source.rows)
    batches = TrainingBatches(source, seed=1, batch_size=n // 2, steps=4)
    first = [i for step in range(2) for i in batches.batch(step, 0).ids.tolist()]
    second = [i for step in range(2, 4) for i in batches.batch(step, 0).ids.tolist()]
    assert sorted(first) == sorted(second) == source.rows.tolist()
    assert first != second, "each epoch has an order of its own"


def test_the_loader_starts_at_the_saved_step(tmp_path):
    source = source_of(prepare(tmp_path / "data"))
    whole = list(TrainingBatches(source, seed=1, batch_size=8, steps=6))
    rest = list(TrainingBatches(source, seed=1, batch_size=8, steps=6, start_step=4))
    assert [b.ids.tolist() for b in whole[4:]] == [b.ids.tolist() for b in rest]


def test_the_learning_rate_rises_then_follows_a_cosine():
    plan = Optimisation(steps=100, warmup=0.1)
    shares = [learning_rate_share(plan, step) for step in range(100)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(shares) == 1 and shares[55] == pytest.approx(0.5, abs=0.01) and shares[-1] < 0.001
    assert shares[10:] == sorted(shares[10:], reverse=True)


@pytest.mark.parametrize(("name", "layer"), [
    ("encoder.tokenizer.project.weight", 0), ("encoder.place_code.channel.weight", 0), ("encoder.class_token", 0),
    ("encoder.blocks.0.norm1.weight", 1), ("encoder.blocks.11.mlp.0.weight", 12), ("encoder.norm.weight", 13),
    ("head.output.weight", 13)])
def test_layer_decay_counts_layers_from_the_patches_up(name, layer):
    assert layer_of(name, num_blocks=12) == layer


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    source = source_of(prepare(tmp_path / "data"))
    with pytest.raises(ValueError, match="cannot be shared by 2 devices times 2"):
        TrainingBatches(source, 0, batch_size=6, steps=1, accumulate=2, world=2)
