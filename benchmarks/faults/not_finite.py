"""Losses and gradients that are not finite: `python -m benchmarks.faults.not_finite [NUMBER]`.

NUMBER (20) single updates of a training are spoilt: by turns a NaN loss, an infinite loss, and a NaN gradient under a
finite loss. Each must be survived and named, the weights must stay finite, and the final loss (without augmentation or
further steps, over the same batches) within 2 % of the clean run's. Then 50 updates in a row are spoilt: exit code 5,
and the last good state kept.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.small_project import PARAMS, RUN, make, readable
from domains.store import open_prepared
from models.encoder.build import build_encoder
from models.encoder.chance import Chance
from models.objectives.objective import build_objective
from pipelines.pretrain import PretrainRun
from pipelines.settings import build
from pipelines.training.bad_steps import NotFinite
from pipelines.training.batches import Batch, Source, TrainingBatches, domain_code, on_device
from pipelines.training.training import Job, fit

STEPS = 400


def main(number: int = 20) -> int:
    """Print what was survived; 1 when something was not."""
    with tempfile.TemporaryDirectory() as text:
        root = make(Path(text))
        torch.set_num_threads(1)
        clean, spoilt = job_of(root), job_of(root)
        fit(clean)
        bad = {7 + (STEPS - 10) * i // number: ("nan", "inf", "gradient")[i % 3] for i in range(number)}
        fit(dataclasses.replace(spoilt, losses=spoiling(spoilt, bad)))
        survived = [one.step for one in spoilt.skips]
        finite = all(bool(torch.isfinite(weight).all()) for weight in spoilt.model.parameters())
        before, after = final_loss(clean), final_loss(spoilt)
        stopped = dataclasses.replace(job_of(root), resume=root / "resume.pt")
        code = 0
        try:
            fit(dataclasses.replace(stopped, losses=spoiling(stopped, dict.fromkeys(range(100, 150), "nan"))))
        except NotFinite as error:
            code = error.exit_code
            print(error)
        kept = readable(root / "resume.pt")
    good = survived == sorted(bad) and finite and abs(after / before - 1) <= 0.02 and code == 5 and kept
    print(f"not_finite: {len(survived)} of {number} survived and named; final loss {after:.5f} against {before:.5f} of "
          f"the clean run ({after / before - 1:+.2%}); 50 in a row: exit code {code}, last good state "
          f"{'kept' if kept else 'LOST'}")
    return 0 if good else 1


def job_of(root: Path) -> Job:
    """The shipped X-ray pretraining, smaller."""
    paragraph = {**PARAMS["pretrain"][RUN], "machine": {"accelerator": "cpu", "save_every_seconds": 0}}
    settings = build(PretrainRun, paragraph, RUN)
    data = open_prepared(root / "data/prepared" / RUN)
    torch.manual_seed(0)
    assert settings.encoder is not None
    model = build_objective(settings.objective, build_encoder(settings.encoder, len(data.contract.channels)))
    plan = dataclasses.replace(settings.optimisation, steps=STEPS, batch_size=16)
    return Job(model=model, losses=lambda batch, chance: model(batch.x, batch.known, chance),
               source=Source(data, data.contract, domain_code("medical"), data.pool()), augment=None, optimisation=plan,
               machine=settings.machine, seed=0, num_blocks=4)


def spoiling(job: Job, bad: dict[int, str]) -> Any:
    """The job's losses; those of some updates are spoilt."""
    count = iter(range(STEPS))

    def losses(batch: Batch, chance: Chance) -> dict[str, Tensor]:
        how = bad.get(next(count), "")
        factor = {"nan": float("nan"), "inf": float("inf")}.get(how, 1.0)
        weight = next(iter(job.model.parameters()))
        nothing: Any = (0 * weight.sum()).abs().sqrt() if how == "gradient" else 0  # is 0; its slope is infinite
        return {name: value * factor + nothing for name, value in job.losses(batch, chance).items()}

    return losses


@torch.no_grad()
def final_loss(job: Job, batches: Collection[int] = range(STEPS, STEPS + 20)) -> float:
    """Mean loss of the trained model over batches that come after the last."""
    loader = TrainingBatches(job.source, job.seed, 16, STEPS + 100)
    found = []
    for step in batches:
        batch, chance = on_device(job.source, loader.batch(step, 0), job.seed, None, torch.device("cpu"))
        found.append(float(sum(job.losses(batch, chance).values())))
    return sum(found) / len(found)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
