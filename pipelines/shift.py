"""Stage `shift`: trained on one source, tested on it and on others; and how scores fall as samples are damaged.

Models are trained before, by finetune, on a task whose labels come from one source alone (`sources` of the task). Here
they only answer, as trained and after each way of adapting, on test rows of that source, on those of the others, and on
those of the first under graded corruptions.

Legend: n test rows, S seeds, K outputs.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.contract import Contract, enforce
from domains.corruption import Corruption, chance_for, mask_under
from domains.publish import folder_in_the_making
from domains.sample import Task
from models.heads.tuned import Tuned
from models.test_time.entropy import Batch
from pipelines import report
from pipelines.evaluate import check_task, check_unseen, headline_of, unseen_rows, write_predictions
from pipelines.prediction.test_time import TestTime, adapted, batches_of
from pipelines.scoring import shift_report
from pipelines.scoring.answers import Truth, answers
from pipelines.scoring.assessment import Arm, Unseen, repeats
from pipelines.scoring.shift_scores import Answers, Damage, compare, name_of
from pipelines.settings import plain
from pipelines.tracking import tracking
from pipelines.training.batches import Source, domain_code
from pipelines.training.true_masks import true_mask
from pipelines.weights.checkpoints import RECORD, is_scratch
from pipelines.weights.tuned_checkpoints import load_tuned

SCRATCH = "scratch"


@dataclass(frozen=True)
class Models:
    """Folders of fine-tuned models, or `scratch` for none. One place each, because DVC asks every paragraph for the
    same dependencies. Every arm that a folder holds is a model, every seed of an arm counts."""

    before: str
    """A finetune run, artifacts/finetune/NAME, that learnt from labels of the source alone; others are compared with
    its first arm."""
    further: str = SCRATCH
    """Another one, from an encoder that was pretrained further."""
    adapter: str = SCRATCH
    """Another one, tuned by adapters."""
    adapted: str = SCRATCH
    """Models that learnt from labels of the source and from files of the target without labels,
    artifacts/domain_adaptation/NAME."""

    def __post_init__(self) -> None:
        if is_scratch(self.before):
            raise ValueError("before: found scratch, expected the folder of a finetune run that learnt from one source "
                             "alone, such as artifacts/finetune/NAME.")

    @property
    def folders(self) -> dict[str, str]:
        """Name -> folder, of those that are there."""
        return {name: folder for name, folder in dataclasses.asdict(self).items() if not is_scratch(folder)}


@dataclass(frozen=True)
class ShiftRun:
    """One paragraph of `shift` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader and corruptions to use."""
    data: str
    """Name of the ingest run with both sources."""
    task: str
    """The task to score by, with labels of both sources. Models learn from one like it that takes labels of `source`
    alone."""
    source: str
    """What the models were trained on, as the manifest's column `source` has it."""
    models: Models
    """What is tested."""
    targets: tuple[str, ...] = ()
    """The other sources; empty: all that have labelled test rows."""
    test_time: tuple[TestTime, ...] = ()
    """Ways of adapting to the samples that are asked about, at prediction; each is tried on every model. The test rows
    of one source, or of one damage, are adapted to together."""
    corruptions: dict[str, tuple[float, ...]] | None = None
    """Name -> rising strengths, in the unit that domains/<domain>/corruptions.py gives. null: all of the domain, at
    its own strengths. {}: none."""
    headline: str = ""
    """The metric that counts; empty: auroc, mae for regression, dice for segmentation."""
    resamples: int = 1000
    """Resamples of test groups."""
    seed: int = 0
    """Of the resamples."""
    batch_size: int = 128
    """Samples at once; changes nothing but memory."""

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ValueError(f"resamples: found {self.resamples}, expected at least 100: an interval ends at the "
                             "rarest of them.")
        if self.source in self.targets:
            raise ValueError(f"targets: found {self.source}, which the models were trained on, expected other sources.")


@dataclass(frozen=True)
class View:
    """Some test rows as they are to be seen."""

    source: str
    damage: Damage | None = None

    @property
    def text(self) -> str:
        """For progress bars."""
        return self.source if self.damage is None else f"{self.damage.name} {self.damage.strength:g}"


def run(name: str, settings: ShiftRun, root: Path) -> dict[str, Any]:
    """Test every model; write artifacts/shift/<name> and reports/shift/<name>. Returns the number of test
    groups of each source.

    Raises:
        Leak, StaleCheckpoint, ContractMismatch, CheckpointError, ValueError: each a sentence for the user.
    """
    unseen, parts = rows_by_source(unseen_rows(root / "data/prepared" / settings.data, settings.task), settings)
    headline = headline_of(settings.headline, unseen.task)
    if settings.test_time and unseen.task.kind == "segmentation":
        raise ValueError(f"test_time: found {settings.test_time[0].kind} for the segmentation task {settings.task}, "
                         "expected none: these ways adapt answers about whole samples. Remedy: leave `test_time` out.")
    kinds = corruptions_of(settings, unseen.prepared.contract)
    models = found_models(settings.models, root)
    inputs: dict[str, str | None] = {f"data/prepared/{settings.data}": unseen.prepared.digest}
    inputs |= dict.fromkeys(settings.models.folders.values())
    with tracking.open_run(stage="shift", name=name, root=root, settings=plain(settings), domain=settings.domain,
                           inputs=inputs) as tracked:
        notes = dict.fromkeys(repeats(unseen))
        answers = {(model, way): one for model, folders in models.items()
                   for way, one in _answers(model, folders, unseen, parts, kinds, settings, notes).items()}
        shift = compare(name, settings.source, unseen, parts, answers, headline, settings.resamples, settings.seed,
                        kinds, tuple(notes))
        with folder_in_the_making(root / "artifacts/shift" / name) as making:
            arms = {name_of(*line): Arm(one.whole, one.temperatures) for line, one in answers.items()}
            write_predictions(making / "predictions.parquet", unseen, arms, {})
        reports = root / "reports/shift" / name
        reports.mkdir(parents=True, exist_ok=True)
        tracked.metrics(shift.flat())
        tracked.description([*shift.answer(), shift.caution()],
                            "\n".join([*shift.compared(primary=True), "", report.table(shift.rows())]))
        for picture in shift_report.write(reports, shift):
            tracked.picture(picture)
    print("\n".join([*shift.sentences(), *(f"note: {note}" for note in shift.notes)]))
    return {f"test groups of {source}": count for source, count in shift.num_groups.items()}


def rows_by_source(unseen: Unseen, settings: ShiftRun) -> tuple[Unseen, dict[str, np.ndarray]]:
    """The test rows of the sources in question, and where in them each source's are; what was trained on first.

    Raises:
        ValueError: a source has none.
    """
    sources = np.array(unseen.column("source"))
    there = sorted(set(sources.tolist()))
    wanted = [settings.source, *(settings.targets or (one for one in there if one != settings.source))]
    absent = [one for one in wanted if one not in there]
    if absent or len(wanted) < 2:
        raise ValueError(f"sources: found labelled test rows of {', '.join(map(repr, there)) or 'none'}, expected some "
                         f"of {', '.join(absent or ['another source than ' + settings.source])}. Remedy: name sources "
                         "as the manifest's column `source` does, and give each some test rows.")
    kept = np.isin(sources, wanted)
    parts = {one: np.flatnonzero(sources[kept] == one) for one in wanted}
    return dataclasses.replace(unseen, rows=unseen.rows[kept]), parts


def corruptions_of(settings: ShiftRun, contract: Contract) -> dict[str, Corruption]:
    """Those that are asked for, with their strengths. Raises ValueError for a name or strength that is none."""
    match settings.domain:
        case "medical":
            from domains.medical.corruptions import corruptions
        case "satellite":
            from domains.satellite.corruptions import corruptions
        case "pointcloud":
            from domains.pointcloud.corruptions import corruptions
    known = corruptions(contract)
    if settings.corruptions is None:
        return dict(known)
    found = {}
    for name, strengths in settings.corruptions.items():
        if name not in known:
            raise ValueError(f"corruptions: found {name}, expected among {', '.join(known)} for {contract.kind} of "
                             "this data.")
        rising = all(a < b for a, b in zip((known[name].none, *strengths), strengths, strict=False))
        if not strengths or not rising or strengths[-1] > known[name].highest:
            raise ValueError(f"corruptions.{name}: found {list(strengths)}, expected rising strengths above "
                             f"{known[name].none:g} and up to {known[name].highest:g} ({known[name].unit}).")
        found[name] = dataclasses.replace(known[name], strengths=strengths)
    return found


def found_models(models: Models, root: Path) -> dict[str, list[Path]]:
    """Name -> the checkpoint folders of its seeds. Raises FileNotFoundError where a folder holds no model."""
    found: dict[str, list[Path]] = {}
    for place, folder in models.folders.items():
        arms = _arms(root / folder)
        if not arms:
            raise FileNotFoundError(f"models.{place}: found no fine-tuned model in {folder}, expected a checkpoint "
                                    "folder or folders seed0, seed1 ... of them. Run the stage that makes them first.")
        for arm, seeds in arms.items():
            alone = len(arms) == 1
            plain_name = place == "before" or (not alone and arm not in found)
            found[arm if plain_name else place if alone else f"{place} {arm}"] = seeds
    return found


def _arms(folder: Path) -> dict[str, list[Path]]:
    """Arm -> folders of its seeds, the arms of a finetune run in its own order."""
    if (folder / RECORD).is_file():
        return {"model": [folder]}
    seeds = sorted((one for one in folder.glob("seed*") if (one / RECORD).is_file()), key=_number)
    if seeds:
        return {"model": seeds}
    summary = folder / "summary.json"
    order = json.loads(summary.read_text(encoding="utf-8")).get("arms", []) if summary.is_file() else []
    names = order or sorted(one.name for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []
    return {arm: inner["model"] for arm in names if (inner := _arms(folder / arm))}


def _number(folder: Path) -> tuple[int, str]:
    digits = folder.name.removeprefix("seed")
    return (int(digits) if digits.isdecimal() else 1 << 30), folder.name


def _answers(model: str, folders: list[Path], unseen: Unseen, parts: Mapping[str, np.ndarray],
             kinds: Mapping[str, Corruption], settings: ShiftRun, notes: dict[str, None]) -> dict[str, Answers]:
    """What every seed of a model says of every view, by way of adapting; `notes` takes what a reader should know."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = [View(source) for source in parts]
    views += [View(settings.source, Damage(name, strength)) for name, kind in kinds.items()
              for strength in kind.strengths]
    told: dict[str, dict[View, list[np.ndarray]]] = {}
    temperatures: dict[str, float] = {}
    bar = tqdm(total=len(folders) * len(views), desc=f"shift {model}", leave=False,
               mininterval=0.5 if sys.stderr.isatty() else 30)
    for at in folders:
        tuned, contract, record = load_tuned(at)
        notes.update(dict.fromkeys(f"{model}: {said}" for said in check_model(record, contract, unseen, settings, at)))
        temperatures[str(len(temperatures))] = float(record["temperature"])
        for view in views:
            source = Source(unseen.prepared, contract, domain_code(settings.domain),
                            unseen.rows[parts[view.source]], change=_change(view, unseen, kinds))
            for way, answer in _ways(tuned, source, record, settings, device, truth_of(view, unseen, kinds)):
                told.setdefault(way, {}).setdefault(view, []).append(answer)
            bar.update()
    bar.close()
    return {way: _together(temperatures, of_view, parts, len(unseen.rows)) for way, of_view in told.items()}


def _ways(tuned: Tuned, source: Source, record: Mapping[str, Any], settings: ShiftRun, device: torch.device,
          truth: Truth | None) -> Iterator[tuple[str, np.ndarray]]:
    """As trained, and adapted in every way. `truth` says where a mask lies under damage that moves what it is of."""
    yield "", answers(tuned, source, record["task"], settings.task, record["temperature"], device,
                      settings.batch_size, truth)

    def samples(size: int) -> Iterator[Batch]:
        for first, last in batches_of(len(source.rows), size):
            raw, _ = source.read(source.rows[first:last], None)
            yield source.normalise(raw.to(device))

    names = [way.kind for way in settings.test_time]
    for i, way in enumerate(settings.test_time):
        number = names[:i].count(way.kind) + 1
        yield way.kind + (f" {number}" if number > 1 else ""), adapted(
            tuned, float(record["temperature"]), samples, way).answers


def _together(temperatures: dict[str, float], told: Mapping[View, list[np.ndarray]],
              parts: Mapping[str, np.ndarray], num_rows: int) -> Answers:
    whole = np.empty((len(temperatures), num_rows, next(iter(told.values()))[0].shape[1]))
    for source, part in parts.items():
        whole[:, part] = np.stack(told[View(source)])
    damaged = {view.damage: np.stack(answers) for view, answers in told.items() if view.damage is not None}
    return Answers(temperatures, whole, damaged)


def check_model(record: Mapping[str, Any], contract: Contract, unseen: Unseen, settings: ShiftRun,
                at: Path) -> list[str]:
    """Refuse a model that has seen a test group, was tuned on other data, or learnt from labels of another source.

    Returns:
        Sentences on what was mapped, and on what could not be looked at.

    Raises:
        Leak, StaleCheckpoint, ContractMismatch, ValueError.
    """
    said = enforce(unseen.prepared.contract, contract)
    found: Task = record["task"]
    check_task(found, unseen.task, at)
    uncompared = check_unseen(record, unseen, at)
    sources = tuple(record["provenance"].get("labelled_sources") or found.sources)
    if sources != (settings.source,):
        taken = f"of {', '.join(sources)}" if sources else "of every source"
        raise ValueError(f"{at}: found a model that learnt from labels {taken}, expected of {settings.source} alone. "
                         f"Remedy: give the ingest run a second task like {settings.task} with `sources: "
                         f"[{settings.source}]`, and fine-tune on that.")
    return [*said, *([uncompared] if uncompared else [])]


def _change(view: View, unseen: Unseen, kinds: Mapping[str, Corruption]) -> Any:
    if view.damage is None:
        return None
    keys = unseen.prepared.column("key")
    return partial(_damaged, kinds[view.damage.name], view.damage, unseen.prepared.contract, keys)


def truth_of(view: View, unseen: Unseen, kinds: Mapping[str, Corruption]) -> Truth | None:
    """Row -> the mask as damage moves it; None where it stays, and for other tasks."""
    damage = view.damage
    if damage is None or unseen.task.kind != "segmentation":
        return None
    keys, prepared, kind = unseen.prepared.column("key"), unseen.prepared, kinds[damage.name]

    def moved(row: int) -> np.ndarray:
        return mask_under(kind, prepared.values(row), true_mask(prepared, unseen.task_name, row), prepared.contract,
                          damage.strength, chance_for(keys[row], damage.name))

    return moved


def _damaged(kind: Corruption, damage: Damage, contract: Contract, keys: list[str], row: int,
             values: np.ndarray) -> np.ndarray:
    return kind.apply(values, contract, damage.strength, chance_for(keys[row], damage.name))
