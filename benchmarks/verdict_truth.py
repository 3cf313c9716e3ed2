"""Does a verdict tell the truth? `python -m benchmarks.verdict_truth [--only SCENARIO ...] [--seeds 40] [--out DIR]`.

Samples are made of which the truth is known, an encoder is pretrained on them, and a whole verdict is run:

structure  an image is one of six patterns under noise, three of them of each class: what hides the noise is the same
           that tells the class, so masked pretraining helps. Right: "helped".
chance     the same images, and a label that a coin has drawn: nothing can help. Right: "no difference".
untouched  the images and labels of `structure`, and a start that has learnt nothing: its weights are random. Right: "no
           difference", although both arms learn.
leak       what is tested on was in the pool: a test group, a validation group, one that the start of the start has
           seen, or a test group's samples under another name. Right: refused before anything is trained.
shortcut   a label that the scanner tells, 95 times of 100, by its name and by its brightness; the pattern says nothing.
           Right: a warning that the floor which sees the name alone is as good as the models.

Every seed draws other patterns, samples, masks and weights. What is done stands in DIR/verdict_truth.jsonl and is not
done again. Of each scenario: how many seeds came out right, and the gains that were told.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paired import REPORTS
from domains import contract as contracts
from domains.contract import Channel, Contract
from domains.publish import write_text
from domains.sample import ManifestRow, Piece, Task
from domains.store import Writer, open_prepared
from pipelines import pretrain, report, verdict
from pipelines.evaluate import Leak
from pipelines.pretrain import PretrainRun
from pipelines.scoring import metrics
from pipelines.settings import build
from pipelines.training.batches import Batch, Source, domain_code, in_order
from pipelines.verdict import VerdictRun
from pipelines.weights import checkpoints

SIDE, PATTERNS = 16, 3
"""Pixels a side; patterns of each class."""
GROUPS = {"train": 18, "val": 16, "test": 80, "unlabelled": 220}
"""Of each split; two samples a group."""
NOISE = 1.5
"""Of the pixels, in standard deviations of a pattern."""
RIGHT = {"structure": "helped", "chance": "no difference", "untouched": "no difference", "leak": "refused",
         "shortcut": "warned"}
STEPS = {"structure": 800, "chance": 100, "untouched": 1, "leak": 1, "shortcut": 50}
"""Of pretraining."""
LEAKS = ("test", "val", "start", "renamed")


def patterns(rng: np.random.Generator) -> np.ndarray:
    """2 * PATTERNS smooth images of mean 0 and deviation 1, at right angles: none resembles another."""
    along = np.fft.fftfreq(SIDE) * SIDE
    smooth = np.exp(-(along[:, None] ** 2 + along[None] ** 2) / 8)
    drawn = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2 * PATTERNS, SIDE, SIDE))) * smooth).real
    drawn -= drawn.mean(axis=(1, 2), keepdims=True)
    apart = np.linalg.qr(drawn.reshape(2 * PATTERNS, -1).T)[0].T.reshape(drawn.shape)
    scaled: np.ndarray = apart / apart.std(axis=(1, 2), keepdims=True)
    return scaled


def draw(folder: Path, scenario: str, seed: int, leak: str = "") -> None:
    """Prepared data of a scenario. With a leak, one held-out group lies in the pool, maybe under another name.

    Of each pattern three groups have labels: one without any could not be told, whatever had been learnt.
    """
    rng = np.random.default_rng([seed, list(RIGHT).index(scenario)])
    known = patterns(rng)
    contract = Contract(domain="medical", kind="xray", dtype="uint8", unknown=None, size=(SIDE, SIDE), spacing=None,
                        channels=(Channel("grey", "grey 0-255", low=0, high=255, mean=128, std=45),), orientation=None,
                        normalisation="standardise", tasks={"label": Task("single_label", ("label",), ("0", "1"))})
    folder.mkdir(parents=True)
    writer = Writer(folder, contract.dtype, tasks=["label"])
    splits = [split for split, count in GROUPS.items() for _ in range(count)]
    leaking = splits.index("val" if leak == "val" else "test") if leak else -1
    for group, split in enumerate(splits):
        which, scanner = int(rng.integers(2 * PATTERNS)), int(rng.integers(2))
        which = group % (2 * PATTERNS) if split == "train" else which
        label = which // PATTERNS if scenario in ("structure", "untouched") else int(rng.integers(2))
        if scenario == "shortcut":
            label = scanner if rng.random() < 0.95 else 1 - scanner
        split = "unlabelled" if group == leaking else split
        name = f"renamed{group}" if group == leaking and leak == "renamed" else f"g{group:03d}"
        for view in range(2):
            values = 128 + 25 * (known[which] + NOISE * rng.normal(size=(SIDE, SIDE)))
            values += 20 * (scanner - 0.5) * (scenario == "shortcut")
            row = ManifestRow(path=folder / f"{group}-{view}", key=f"s{group:03d}{view}", group=name, split=split,
                              source="made")
            told = np.array([np.nan if split == "unlabelled" else label], np.float32)
            piece = Piece(np.clip(values, 0, 255).astype(np.uint8)[None],
                          facts={"scanner": f"type {scanner}"} if scenario == "shortcut" else {})
            writer.add(piece, row, {"label": told})
    writer.close()
    contracts.save(contract, folder / "contract.json")
    write_text(folder / "reader.json", json.dumps({"kind": "xray"}))


def pretrained(root: Path, name: str, data: str, steps: int, seed: int, start: str = "scratch") -> None:
    """Masked pretraining of an encoder of 26,000 weights."""
    encoder = {"tokenizer": {"kind": "grid", "patch": [4, 4]}, "size": {"width": 32, "depth": 2, "num_heads": 2}}
    paragraph = {"domain": "medical", "data": data, "seed": seed, "num_pictures": 1, "start": start,
                 "encoder": encoder if start == "scratch" else None,
                 "objective": {"masking": {"kind": "random", "ratio": 0.6}, "readout": {"kind": "pixels"},
                               "decoder": {"width": 24, "depth": 1, "num_heads": 2}},
                 "optimisation": {"steps": steps, "batch_size": 48, "learning_rate": 3e-3 if steps > 1 else 1e-9},
                 "machine": {"accelerator": "cpu"}, "gates": {"min_std": 0, "min_rank": 0}}
    pretrain.run(name, build(PretrainRun, paragraph, f"pretrain.{name}"), root)


def asked(scenario: str, arms: dict[str, str]) -> VerdictRun:
    """The verdict of a scenario: all labels, four seeds, 40 steps."""
    return build(VerdictRun, {
        "domain": "medical", "data": "made", "task": "label", "arms": arms,
        "floors": [{"kind": "facts"}] if scenario == "shortcut" else [],
        "tuning": {"grid": [2e-3], "validations": 1, "patience": 0, "machine": {"accelerator": "cpu"},
                   "optimisation": {"steps": 40, "batch_size": 32, "betas": [0.9, 0.999]}},
        "budgets": [1.0], "seeds": [0, 1, 2, 3]}, f"verdict.{scenario}")


def one(scenario: str, seed: int, root: Path) -> dict[str, Any]:
    """What the verdict says of one seed, and whether that is the truth."""
    began = time.process_time()
    draw(root / "data/prepared/made", scenario, seed)
    arms = {"pretrained": "artifacts/pretrain/made"}
    leak = LEAKS[seed % len(LEAKS)] if scenario == "leak" else ""
    if leak:
        draw(root / "data/prepared/leaky", scenario, seed, leak)
        pretrained(root, "leaky", "leaky", 1, seed)
        arms["other"] = "artifacts/pretrain/leaky"
    if leak == "start":
        pretrained(root, "second", "made", 1, seed, "artifacts/pretrain/leaky")
        arms["other"] = "artifacts/pretrain/second"
    pretrained(root, "made", "made", STEPS[scenario], seed)
    found = told(scenario, asked(scenario, arms), root)
    return {"scenario": scenario, "seed": seed, **({"leak": leak} if leak else {}), **found,
            "right": found["found"] == RIGHT[scenario], "seconds": round(time.process_time() - began, 1)}


def told(scenario: str, settings: VerdictRun, root: Path) -> dict[str, Any]:
    """What a verdict says, in a word, with the gain that it gives."""
    try:
        verdict.run(scenario, settings, root)
    except Leak as error:
        cells = list((root / verdict.CELLS).glob("*"))
        return {"found": "refused" if not cells else "refused too late", "said": str(error).split(" (")[0]}
    folder = root / "reports/verdict" / scenario
    numbers = json.loads((folder / "metrics.json").read_text())
    low, high = (numbers.get(f"pretrained full.gain.{end}") for end in ("low", "high"))
    found = "not estimable" if low is None else "helped" if low > 0 else "hurt" if high < 0 else "no difference"
    warned = "beware: the floor" in (folder / "summary.txt").read_text()
    return {"found": ("warned" if warned else "silent") if scenario == "shortcut" else found, "verdict": found,
            "warned": warned, "gain": numbers["pretrained full.gain"], "low": low, "high": high}


def oracle(seed: int, root: Path) -> dict[str, float]:
    """AUROC on the test rows of `structure` by ridge regression on pixels, on what random weights make of them and on
    what pretrained ones do: whether there is a gain to be found, with no fine-tuning in between."""
    draw(root / "data/prepared/made", "structure", seed)
    prepared = open_prepared(root / "data/prepared/made")
    rows = [prepared.rows(split=split, task="label") for split in ("train", "test")]
    y, labels = (prepared.labels("label")[part][:, 0] for part in rows)
    features = {"pixels": [np.stack([prepared.values(row).reshape(-1) for row in part]).astype(float)
                           for part in rows]}
    for name, steps in (("random", 1), ("pretrained", STEPS["structure"])):
        pretrained(root, name, "made", steps, seed)
        encoder = checkpoints.load_encoder(root / "artifacts/pretrain" / name).encoder.eval()

        def seen(batch: Batch, encoder: Any = encoder) -> torch.Tensor:
            tokens: torch.Tensor = encoder(encoder.tokenizer.patchify(batch.x, batch.known)).tokens.mean(1)
            return tokens

        with torch.no_grad():
            features[name] = [in_order(Source(prepared, prepared.contract, domain_code("medical"), part), seen, 256,
                                       torch.device("cpu")) for part in rows]
    scores = {}
    for name, (x, test) in features.items():
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        x, test = (x - mean) / deviation, (test - mean) / deviation
        weights = x.T @ np.linalg.solve(x @ x.T + x.shape[1] * np.eye(len(x)), 2 * y - 1)
        scores[name] = round(metrics.values("single_label", labels[:, None], _as_two(test @ weights))["auroc"], 3)
    return scores


def _as_two(scores: np.ndarray) -> np.ndarray:
    """Probabilities of two classes in the order of the scores."""
    one = 1 / (1 + np.exp(-scores))
    return np.stack([1 - one, one], 1)


def summary(lines: list[dict[str, Any]], scenario: str) -> str:
    """One line of text of a scenario."""
    own = [line for line in lines if line["scenario"] == scenario]
    right = sum(line["right"] for line in own)
    said = f"{scenario:10} right ({RIGHT[scenario]}) {right} of {len(own)}"
    gains = np.array([line["gain"] for line in own if "gain" in line])
    if len(gains):
        reach = np.array([line["high"] - line["low"] for line in own if line.get("high") is not None]) / 2
        said += (f"; gains {gains.mean():+.3f} (deviation {gains.std():.3f}), half an interval {reach.mean():.3f}; "
                 f"helped {sum(line['verdict'] == 'helped' for line in own)}, "
                 f"hurt {sum(line['verdict'] == 'hurt' for line in own)}, "
                 f"warned of a floor {sum(line['warned'] for line in own)}")
    return said


def main(arguments: list[str]) -> int:
    """Run what is missing, print a line per scenario; 1 where one came out right in fewer than 34 of 40."""
    parser = argparse.ArgumentParser(description="Does a verdict tell the truth?")
    parser.add_argument("--only", nargs="+", default=list(RIGHT), choices=RIGHT)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--oracle", nargs="+", type=int, default=[], metavar="SEED",
                        help="only: is there a gain to be found in `structure`, without a verdict")
    parser.add_argument("--out", type=Path, default=REPORTS)
    given = parser.parse_args(arguments)
    os.environ["LACUNA_TRACKING"] = "off"
    torch.set_num_threads(1)
    report.can_draw = lambda library="": False  # nobody looks at a hundred pictures
    for seed in given.oracle:
        with tempfile.TemporaryDirectory() as text, contextlib.redirect_stdout(io.StringIO()):
            scores = oracle(seed, Path(text))
        print(f"seed {seed}: AUROC {', '.join(f'{name} {score:.3f}' for name, score in scores.items())}")
    if given.oracle:
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "verdict_truth.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    done = {(line["scenario"], line["seed"]) for line in lines}
    for scenario, seed in ((scenario, seed) for seed in range(given.seeds) for scenario in given.only):
        if (scenario, seed) in done:
            continue
        with tempfile.TemporaryDirectory() as text, contextlib.redirect_stdout(io.StringIO()):
            lines.append(one(scenario, seed, Path(text)))
        with file.open("a") as out:
            out.write(json.dumps(lines[-1]) + "\n")
    for scenario in given.only:
        print(summary(lines, scenario))
    least = 34 / 40
    shares = [np.mean([line["right"] for line in lines if line["scenario"] == scenario])
              for scenario in given.only]
    return 0 if all(share >= (1 if scenario == "leak" else least)
                    for scenario, share in zip(given.only, shares, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
