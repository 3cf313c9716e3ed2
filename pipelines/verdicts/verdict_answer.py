"""From the cells of a verdict to its answer: scores of every way and budget, differences, floors, and a recipe.

Legend: n tested rows, S seeds, K outputs, R resamples of test groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from domains.store import Prepared
from pipelines.scoring import metrics
from pipelines.scoring.comparisons import Contrast, Difference, together
from pipelines.scoring.floors import floor_on
from pipelines.scoring.uncertainty import Estimate, Spread, estimates, spread
from pipelines.settings import plain
from pipelines.tracking import lineage
from pipelines.training.finetune_settings import FinetuneRun
from pipelines.training.training import Machine, Optimisation
from pipelines.verdicts.cells import SCRATCH, Cell, Rows, Told, all_labelled, rows_of, tested_rows
from pipelines.verdicts.label_efficiency import Curve, gains, worth
from pipelines.verdicts.verdict_report import Answer, Way
from pipelines.weights.starts import Start

if TYPE_CHECKING:
    from pipelines.verdict import VerdictRun


@dataclass(frozen=True)
class Tested:
    """What every way is scored on."""

    rows: np.ndarray
    """n: test rows with a label; with folds, all labelled rows. Ascending."""
    labels: np.ndarray
    """n L, NaN unknown."""
    groups: list[str]
    """n: each row's group."""

    @classmethod
    def of(cls, settings: VerdictRun, prepared: Prepared) -> Tested:
        """The test rows of the task, or all that folds are made of."""
        rows = (all_labelled(prepared, settings.task) if settings.folds
                else prepared.rows(split="test", task=settings.task))
        column = prepared.column("group")
        return cls(rows, prepared.labels(settings.task)[rows], [str(column[row]) for row in rows])


def headline_of(settings: VerdictRun, prepared: Prepared) -> str:
    """The metric that counts."""
    return settings.headline or metrics.HEADLINE[prepared.contract.tasks[settings.task].kind]


def line_of(cell: Cell, told: Told, settings: VerdictRun, prepared: Prepared) -> dict[str, Any]:
    """A cell's numbers, for a table and for tracking."""
    kind, headline = prepared.contract.tasks[settings.task].kind, headline_of(settings, prepared)
    numbers = told.numbers
    labels = prepared.labels(settings.task)[tested_rows(cell, prepared)]
    return {"way": cell.way, "budget": cell.budget, "seed": cell.seed, **({"fold": cell.fold} if cell.folds else {}),
            "learning_rate": numbers["learning_rate"], "val_loss": numbers["val_loss"],
            f"test_{headline}": metrics.values(kind, labels, told.predicted)[headline],
            "groups": numbers["groups"], "trained": numbers["trained"], "seconds": round(numbers["seconds"], 3)}


def answer_of(name: str, settings: VerdictRun, prepared: Prepared, told: Mapping[Cell, Told], root: Path,
              starts: Mapping[str, Start]) -> Answer:
    """Scores of every way and budget, differences from scratch, worth in labels, floors."""
    tested, headline = Tested.of(settings, prepared), headline_of(settings, prepared)
    kind = prepared.contract.tasks[settings.task].kind

    def scored(said: Said) -> Spread:
        return spread(kind, tested.labels, said.predicted, tested.groups, settings.resamples, models=said.models)

    names = list(dict.fromkeys(cell.way for cell in told))
    sign = 1.0 if metrics.METRICS[headline].higher_is_better else -1.0
    curves: dict[str, Curve] = {}
    ways: dict[str, Way] = {}
    num_groups = support = 0
    for way in names:
        spreads, sizes = [], []
        for budget in settings.budgets:
            own = {cell: one for cell, one in told.items() if (cell.way, cell.budget) == (way, budget)}
            spreads.append(scored(joined(own, settings, prepared, tested)))
            sizes.append(round(float(np.mean([one.numbers["groups"] for one in own.values()]))))
        num_groups, support = spreads[0].num_groups, spreads[0].support(headline)
        curves[way] = Curve(tuple(sign * one.metrics[headline] for one in spreads), tuple(sizes))
        ways[way] = _way(way, settings, told, tuple(estimates(one)[headline] for one in spreads), tuple(sizes))
    found = gains(curves, SCRATCH, num_groups, support)
    worths = {way: worth(curves[way], curves[SCRATCH], one, support) for way, one in found.items()
              if one.verdict == "helped"}
    recipe = _recipe(name, settings, told)
    simple = {at: scored(predicted) for at, predicted in _floors(settings, prepared, tested, root, headline).items()}
    pool = starts["pretrained"].record.get("provenance", {})
    return Answer(name=name, kind=prepared.contract.kind, headline=headline, num_groups=num_groups,
                  num_rows=len(tested.rows), ways=ways, gains=found, worths=worths,
                  floors={at: estimates(one)[headline] for at, one in simple.items()},
                  ahead=_ahead(curves[recipe[0]], simple, headline),
                  pretraining={arm: (int(start.record.get("provenance", {}).get("steps") or 0),
                                     lineage.seconds(settings.arms.starts[arm], root))
                               for arm, start in starts.items()},
                  pretrained_on=int(pool.get("samples", 0)), comparisons=len(found), seeds=len(settings.seeds),
                  folds=settings.folds, recipe=recipe, watts=settings.watts)


@dataclass(frozen=True)
class Said:
    """What one way with one budget, or a simple model, says of the tested rows."""

    predicted: np.ndarray
    """S n K."""
    models: np.ndarray
    """S n: the fold whose model said it; zeros without folds."""


def joined(own: Mapping[Cell, Told], settings: VerdictRun, prepared: Prepared, tested: Tested) -> Said:
    """What one way says with one budget; the folds of a seed side by side."""
    seeds = []
    for seed in settings.seeds:
        parts = {cell.fold: (tested_rows(cell, prepared), one.predicted) for cell, one in own.items()
                 if cell.seed == seed}
        seeds.append(_side_by_side(parts, tested))
    return Said(np.stack([predicted for predicted, _ in seeds]), np.stack([models for _, models in seeds]))


def _side_by_side(parts: Mapping[int, tuple[np.ndarray, np.ndarray]], tested: Tested) -> tuple[np.ndarray, np.ndarray]:
    """n K and n: what the model of each fold said of its rows, and whose rows they are."""
    first = next(iter(parts.values()))[1]
    predicted = np.zeros((len(tested.rows), first.shape[1]), first.dtype)
    models = np.zeros(len(tested.rows), np.int64)
    for fold, (rows, own) in parts.items():
        at = np.searchsorted(tested.rows, rows)
        predicted[at], models[at] = own, fold
    return predicted, models


def _floors(settings: VerdictRun, prepared: Prepared, tested: Tested, root: Path, headline: str) -> dict[str, Said]:
    """What each simple model says of the tested rows; with folds, of those that the first seed draws."""
    found = {}
    for asked in settings.floors:
        if not settings.folds:
            train, val = (prepared.rows(split=split, task=settings.task) for split in ("train", "val"))
            parts = [Rows(train, val, tested.rows)]
        else:
            run = FinetuneRun(domain=settings.domain, data=settings.data, task=settings.task,
                              start=settings.arms.pretrained)
            parts = [rows_of(Cell("", "", 1.0, settings.seeds[0], run, settings.folds, fold), prepared)
                     for fold in range(settings.folds)]
        fitted = [floor_on(prepared, settings.task, asked, part, root, headline) for part in parts]
        both = enumerate(zip(parts, fitted, strict=True))
        predicted, models = _side_by_side({fold: (part.test, one.predicted) for fold, (part, one) in both}, tested)
        chosen = fitted[0].model if len(fitted) == 1 else f"{len(fitted)} folds"
        found[f"{asked.kind} ({chosen})"] = Said(predicted[None], models[None])
    return found


def _ahead(best: Curve, floors: Mapping[str, Spread], headline: str) -> dict[str, Difference]:
    """How far a way is ahead of each floor with all labels. A floor has no seeds: its luck is the test groups' alone.
    """
    sign = 1.0 if metrics.METRICS[headline].higher_is_better else -1.0
    return together({
        at: Contrast((best.scores[-1] - sign * one.metrics[headline],), one.num_groups, one.support(headline))
        for at, one in floors.items()})


def _way(way: str, settings: VerdictRun, told: Mapping[Cell, Told], scores: tuple[Estimate, ...],
         sizes: tuple[int, ...]) -> Way:
    own = [(cell, one) for cell, one in told.items() if cell.way == way]
    last = [one for cell, one in own if cell.budget == settings.budgets[-1]]
    numbers = last[0].numbers
    return Way(scores=scores, groups=sizes, seconds=float(sum(one.numbers["seconds"] for _, one in own)),
               steps=int(numbers["steps"]), trained=int(numbers["trained"]), weights=int(numbers["weights"]),
               val_loss=float(np.mean([one.numbers["val_loss"] for one in last])))


def _recipe(name: str, settings: VerdictRun, told: Mapping[Cell, Told]) -> tuple[str, dict[str, Any]]:
    """The way with the lowest mean validation loss on all labels, and its paragraph for params.yaml. Chosen by
    validation rows: one chosen by its test score would no longer be tested."""
    losses: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    runs: dict[str, FinetuneRun] = {}
    for cell, one in told.items():
        if cell.budget == settings.budgets[-1]:
            losses.setdefault(cell.way, []).append(one.numbers["val_loss"])
            rates.setdefault(cell.way, []).append(one.numbers["learning_rate"])
            runs[cell.way] = cell.run
    best = min(losses, key=lambda way: float(np.mean(losses[way])))
    return best, {f"{name}_recipe": paragraph_of(runs[best], settings.seeds, rates[best])}


def paragraph_of(run: FinetuneRun, seeds: tuple[int, ...], rates: Sequence[float]) -> dict[str, Any]:
    """A cell's run with all labels and seeds, as a paragraph of `finetune`; what is usual is left out."""
    run = dataclasses.replace(run, seeds=seeds, label_share=1.0, label_seed=0, grid=tuple(sorted(set(rates))))
    default = plain(FinetuneRun(domain=run.domain, data="", task="", start=run.start))
    kept = ("domain", "start")
    paragraph = {key: value for key, value in plain(run).items() if value != default.get(key) or key in kept}
    for key, usual in (("optimisation", plain(Optimisation(steps=1))), ("machine", plain(Machine()))):
        if key in paragraph:
            paragraph[key] = {part: value for part, value in paragraph[key].items()
                              if value != usual[part] or part == "steps"}
    return paragraph
