"""What papers claim of methods that are here, tried small, whichever way it falls.

    python -m benchmarks.claims [--only CLAIM ...] [--seeds 3]

runs what is missing of examples/claims (samples, pretraining, verdicts; benchmarks/missing_bands.py and
benchmarks/centre_leakage.py where no verdict can say it) and prints a line for each claim: the difference in the
claimed direction, with the interval that a verdict gives (test groups and seeds), each claim for itself. What is done
is kept.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import centre_leakage, missing_bands
from domains.publish import write_text
from domains.store import open_prepared
from pipelines import cli
from pipelines.scoring.comparisons import Difference
from pipelines.scoring.uncertainty import spread
from pipelines.settings import load_params, load_run
from pipelines.training.resume import REPOSITORY
from pipelines.verdict import VerdictRun
from pipelines.verdicts.label_efficiency import Curve, gain
from pipelines.verdicts.verdict_answer import Tested, headline_of

ROOT = REPOSITORY / "examples/claims"
KEPT = "artifacts/claims"
MARKS = {"sample": "data/raw/{}", "ingest": "data/prepared/{}/index.parquet",
         "pretrain": "artifacts/pretrain/{}/checkpoint.json", "adapt": "artifacts/adapt/{}/checkpoint.json"}
"""What is there when a stage is done."""


@dataclass(frozen=True)
class Claim:
    """Something a verdict's ways can say: one is better than the other."""

    said: str
    published: str
    verdict: str
    better: str
    than: str


CLAIMS = {
    "gated": Claim("gated prompts over shallow ones, on MAE weights", "57.8 -> 73.4 (FGVC, accuracy)", "prompts",
                   "pretrained gated", "pretrained shallow"),
    "shallow": Claim("all weights far over shallow prompts, on MAE weights", "40 -> 60 (VTAB natural, recalled)",
                     "prompts", "pretrained full", "pretrained shallow"),
    "hidden": Claim("0.90 hidden over 0.75, on X-rays", "text only", "hidden", "other full", "pretrained full"),
    "origin": Claim("pretraining in the domain over outside of it", "78.6 -> 82.3", "origin", "pretrained full",
                    "other full"),
    "further": Claim("self-distillation over plain further pretraining", "1 to 2 points (recalled)", "origin",
                     "distilled full", "further full"),
    "point_peft": Claim("Point-PEFT over full tuning", "88.1 -> 89.1 (ScanObjectNN, PB-T50-RS)", "points",
                        "pretrained point_peft", "pretrained full"),
    "point_cmae": Claim("Point-CMAE over Point-MAE", "85.18 -> 88.75 (the same; the second recalled)", "contrast",
                        "other full", "pretrained full"),
}
"""Of verdicts. Two more have scripts of their own."""
BANDS, CENTRES = "bands", "centres"


@dataclass(frozen=True)
class Line:
    """One difference, in the direction that is claimed."""

    claim: str
    published: str
    setting: str
    better: float
    than: float
    gain: Difference

    @property
    def fell(self) -> str:
        """Which way."""
        return {"helped": "as claimed", "hurt": "against"}.get(self.gain.verdict, "cannot tell")

    def row(self) -> str:
        """Of a table in Markdown."""
        assert self.gain.low is not None and self.gain.high is not None
        return (f"| {self.claim} | {self.published} | {self.setting} | {self.better:.3f}, {self.than:.3f} | "
                f"{self.gain.value:+.3f} [{self.gain.low:+.3f}, {self.gain.high:+.3f}] | {self.fell} |")


def line(claim: str, published: str, setting: str, better: Curve, than: Curve, groups: int, sign: float = 1) -> Line:
    """Compare two curves; `sign` gives scores back their own direction."""
    values = [sign * float(one.mean()[:, 0].mean()) for one in (better, than)]
    return Line(claim, published, setting, values[0], values[1], gain(better, than, groups))


# ---- what is missing ----

def stage(root: Path, name: str, run: str) -> None:
    """One stage, where it is not done yet. Raises RuntimeError where it fails, having said why."""
    mark = root / MARKS[name].format(run)
    if not mark.exists() and cli.main([name, run]) != 0:
        raise RuntimeError(f"{name} {run}: found a failure, which is told above, expected {mark}.")


def prepare(root: Path, data: str) -> None:
    """Sample and ingest; `fields` are made of the parcels."""
    if data == "fields":
        prepare(root, "parcels")
        if not (root / MARKS["sample"].format(data)).exists():
            write_fields(root / "data/prepared/parcels", root / MARKS["sample"].format(data))
    else:
        stage(root, "sample", data)
    stage(root, "ingest", data)


def write_fields(parcels: Path, folder: Path) -> None:
    """Band B8 of every parcel as a grey film of twice as many pixels; without labels."""
    from PIL import Image
    prepared = open_prepared(parcels)
    band = [channel.name for channel in prepared.contract.channels].index("B8")
    low, high = 0.0, float(np.quantile([prepared.values(row)[band].max() for row in range(len(prepared))], 0.99))
    making = folder.with_name(f".{folder.name}")
    making.mkdir(parents=True, exist_ok=True)
    lines = ["path,group,source,split"]
    groups = prepared.column("group")
    for row in range(len(prepared)):
        grey = np.clip(255 * (prepared.values(row)[band].astype(float) - low) / (high - low), 0, 255).astype(np.uint8)
        Image.fromarray(np.kron(grey, np.ones((2, 2), np.uint8))).save(making / f"{row:05d}.png")
        lines.append(f"{row:05d}.png,{groups[row]},fields,unlabelled")
    write_text(making / "labels.csv", "\n".join(lines) + "\n")
    making.rename(folder)


def start(root: Path, checkpoint: str) -> None:
    """What a verdict's arm begins from, and what that begins from."""
    _, name, run = checkpoint.split("/")
    paragraph = load_params(root)[name][run]
    if name == "adapt":
        start(root, paragraph["start"])
    prepare(root, paragraph["data"])
    stage(root, name, run)


# ---- what is compared ----

def of_verdict(root: Path, claim: Claim) -> Line:
    """A difference between two ways of a verdict."""
    settings: VerdictRun = load_run("verdict", claim.verdict, VerdictRun, root)
    prepare(root, settings.data)
    for checkpoint in settings.arms.starts.values():
        start(root, checkpoint)
    folder = root / "artifacts/verdict" / claim.verdict
    if not (folder / "cells.csv").is_file() and cli.main(["verdict", claim.verdict]) != 0:
        raise RuntimeError(f"verdict {claim.verdict}: found a failure, which is told above, expected {folder}.")
    prepared = open_prepared(root / "data/prepared" / settings.data)
    tested, kind = Tested.of(settings, prepared), prepared.contract.tasks[settings.task].kind
    with (folder / "cells.csv").open(newline="") as file:
        ways = [told["way"] for told in csv.DictReader(file)]
    curves = []
    for way in (claim.better, claim.than):
        predicted = np.stack([np.load(folder / f"cell-{number:04d}.npy", allow_pickle=False)
                              for number, one in enumerate(ways) if one == way])
        found = spread(kind, tested.labels, predicted, tested.groups, settings.resamples)
        curves.append(Curve((found.metrics[headline_of(settings, prepared)],), (found.num_groups,)))
    steps = settings.tuning["optimisation"]["steps"]
    return line(claim.said, claim.published, f"{settings.data}, {steps} steps, {len(settings.seeds)} seeds, "
                f"{found.num_groups} test groups", curves[0], curves[1], found.num_groups)


def of_bands(root: Path, seeds: int) -> list[Line]:
    """Sampling of bands, and tokens per band, when one band alone is there."""
    prepare(root, "parcels")
    prepared = open_prepared(root / "data/prepared/parcels")
    curves = {}
    for way in missing_bands.WAYS:
        told = [missing_bands.tell(prepared, *way, seed, root / KEPT) for seed in range(seeds)]
        curves[way] = missing_bands.curves(prepared, told)
    groups = curves["grid", False]["all"].groups[0]
    lines = []
    for claim, published, better, than in (
            ("sampling of bands, tokens per band", "29.4 -> 68.9 (RGB to R)", ("bands", True), ("bands", False)),
            ("sampling of bands, tokens of all bands", "29.4 -> 68.9 (RGB to R)", ("grid", True), ("grid", False)),
            ("tokens per band over tokens of all bands, both sampled", "+9 to +11", ("bands", True), ("grid", True))):
        lines += [line(claim, published, f"parcels, {view} of 4 bands, {missing_bands.STEPS} steps, {seeds} seeds, "
                       f"{groups} test groups", curves[better][view], curves[than][view], groups)
                  for view in curves[better]]
    return lines


def of_centres(root: Path, seeds: int) -> list[Line]:
    """Chamfer distances of hidden groups, by what the decoder is told."""
    prepare(root, "shapes")
    prepared = open_prepared(root / "data/prepared/shapes")
    paragraph = load_params(root)["pretrain"]["point_mae"]
    told = {way: [centre_leakage.tell(prepared, paragraph, way, seed, root / KEPT) for seed in range(seeds)]
            for way in centre_leakage.WAYS}
    curves = {way: centre_leakage.curve(prepared, [one["own"] for one in said]) for way, said in told.items()}
    curves["moved"] = centre_leakage.curve(prepared, [one["moved"] for one in told["as it is"]])
    groups = curves["moved"].groups[0]
    return [line(claim, published, f"shapes, {centre_leakage.STEPS} steps, {seeds} seeds, {groups} groups, 1000 x "
                 "Chamfer distance", *(Curve(tuple(1000 * one for one in curves[way].scores), curves[way].groups)
                                       for way in pair), groups, -1)
            for claim, published, pair in (
                ("centres alone restore better than the encoder alone", "restores well without encoder",
                 ("centres alone", "encoder alone")),
                ("centres and encoder over centres alone", "", ("as it is", "centres alone")),
                ("encoder alone over neither", "", ("encoder alone", "neither")),
                ("as it is, over the same model with another sample's centres", "", ("as it is", "moved")))]


def main(arguments: list[str]) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description="What papers claim, tried small.")
    parser.add_argument("--only", nargs="+", default=[BANDS, CENTRES, *CLAIMS], choices=[BANDS, CENTRES, *CLAIMS])
    parser.add_argument("--seeds", type=int, default=3, help="of the two that are no verdict")
    given = parser.parse_args(arguments)
    os.environ.setdefault("LACUNA_TRACKING", "off")
    os.chdir(ROOT)
    torch.set_num_threads(1)
    rows = ["| claim | published | here | scores | difference | fell |", "|---|---|---|---|---|---|"]
    for name in given.only:
        lines = (of_bands(ROOT, given.seeds) if name == BANDS else of_centres(ROOT, given.seeds) if name == CENTRES
                 else [of_verdict(ROOT, CLAIMS[name])])
        rows += [one.row() for one in lines]
        print("\n".join(one.row() for one in lines), flush=True)
    reports = ROOT / "reports"
    reports.mkdir(exist_ok=True)
    write_text(reports / "claims.md", "\n".join(rows) + "\n")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
