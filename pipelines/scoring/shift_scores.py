"""From what models say of test rows to what a shift costs: scores by source, the gap between sources, what each way of
adapting gives back, and curves over the strength of damage.

Every number is computed on the same resamples of test groups, so that all differences are paired. A page asks about
dozens of them, of which some would leave out zero by luck. So a few are primary, and their intervals hold all at once:
what the first model loses at each target, and what each other model, and each way of adapting the first, gives back
there. All others are exploratory, with intervals that hold each by itself.

Legend: n test rows, S seeds, K outputs, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from domains.corruption import Corruption
from pipelines.scoring import metrics
from pipelines.scoring.assessment import Unseen
from pipelines.scoring.comparisons import Contrast, Difference, alone, together
from pipelines.scoring.evaluation_pictures import reliability
from pipelines.scoring.metrics import Floats
from pipelines.scoring.uncertainty import Estimate, Spread, differences, estimates, gap, seed_std, spread


@dataclass(frozen=True, order=True)
class Damage:
    """One corruption at one strength."""

    name: str
    strength: float


@dataclass(frozen=True)
class Answers:
    """What the seeds of one model say, in one way of adapting."""

    temperatures: dict[str, float]
    """Seed -> temperature, in the order of S."""
    whole: Floats
    """S n K, on the rows as they are; of masks S n 3K."""
    damaged: Mapping[Damage, Floats]
    """S m K each, on the rows of the source that was trained on."""


@dataclass(frozen=True, order=True)
class Asked:
    """One comparison."""

    line: str
    """Name of the line that it is of."""
    at: str
    """Source."""
    of: Literal["fall", "return"]
    """From the source that was trained on, or beside another line."""


@dataclass(frozen=True)
class Line:
    """One model in one way of adapting, scored."""

    model: str
    way: str
    """Of adapting; empty: as trained."""
    against: str
    """Name of the line that it is compared with; empty: none, it is the first."""
    scores: Mapping[str, Mapping[str, Estimate]]
    """Source -> metric."""
    seed_std: Mapping[str, float | None]
    """Source -> spread of the headline metric between seeds."""
    gaps: Mapping[str, Mapping[str, Estimate]]
    """Target -> metric there minus metric at the source."""
    gains: Mapping[str, Mapping[str, Estimate]]
    """Source -> metric minus that of `against`; empty for the first line."""
    falls: Mapping[str, Difference]
    """Target -> headline metric there minus at the source, with the luck of seeds."""
    returns: Mapping[str, Difference]
    """Source -> headline metric minus that of `against`, with the luck of seeds; empty for the first line."""
    damaged: Mapping[Damage, Mapping[str, Estimate]]
    """Metric under damage."""
    losses: Mapping[Damage, Estimate]
    """Headline metric under damage minus without."""
    bins: Mapping[str, tuple[Floats, Floats, Floats]]
    """Source -> mean confidence, share right, rows of each bin; empty for regression and masks."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return name_of(self.model, self.way)


def name_of(model: str, way: str) -> str:
    """What tables call a model in one way of adapting."""
    return f"{model}, {way}" if way else model


@dataclass(frozen=True)
class Shift:
    """All that was found."""

    name: str
    kind: str
    headline: str
    source: str
    targets: tuple[str, ...]
    num_rows: Mapping[str, int]
    num_groups: Mapping[str, int]
    kinds: Mapping[str, Corruption]
    """The corruptions that were tried, by name."""
    lines: Mapping[str, Line]
    primary: frozenset[Asked]
    """The comparisons that the answer rests on."""
    notes: tuple[str, ...]
    """What a reader should know of rows and models."""

    @property
    def title(self) -> str:
        """The headline metric, for people."""
        return metrics.METRICS[self.headline].title

    @property
    def first(self) -> Line:
        """The line that others are compared with."""
        return next(iter(self.lines.values()))

    def sentences(self) -> list[str]:
        """What was found in short, then the primary comparisons, and what the others are."""
        return [*self.answer(), *self.compared(primary=True), self.caution()]

    def answer(self) -> list[str]:
        """A sentence per target: what the first model loses there, and what was shown to help."""
        return [self._answer(target) for target in self.targets]

    def caution(self) -> str:
        """How sure which numbers are."""
        count = len(self.primary)
        hold = "its interval holds" if count == 1 else f"the intervals of these {count} hold all at once"
        return (f"Primary comparisons are what {self.first.name} loses, and what each other model and each way of "
                f"adapting {self.first.name} gives back; {hold} with 95 %. All other lines are exploratory: each of "
                "their intervals holds by itself, so some leave out zero by luck.")

    def compared(self, primary: bool) -> list[str]:
        """A sentence per comparison: of the primary ones, or of the others."""
        said = []
        for target in self.targets:
            for line in self.lines.values():
                if not line.way and (Asked(line.name, target, "fall") in self.primary) == primary:
                    said.append(self._fall(line, target))
                if line.against and (Asked(line.name, target, "return") in self.primary) == primary:
                    said.append(self._return(line, target))
        return said

    def _answer(self, target: str) -> str:
        """What the first model loses at a target and what was shown to help there."""
        fall, line = self.first.falls[target], self.first
        if fall.low is None or fall.high is None:
            said = f"what {line.name} loses at {target} is not estimable ({fall.note})"
        elif fall.sign == 0:
            said = f"{line.name} could not be shown to lose anything at {target} ({self.title} {fall.text()})"
        else:
            verb = "loses" if self._worse(fall.value) else "gains"
            said = f"{line.name} {verb} {abs(fall.value):.3f} of {self.title} at {target} ({fall.text()})"
        tried = {name: one.returns[target] for name, one in self.lines.items()
                 if Asked(name, target, "return") in self.primary}
        shown = {name: one for name, one in tried.items() if one.sign}
        parts = [f"{name} {'costs' if self._worse(one.value) else 'gives back'} {abs(one.value):.3f}"
                 for name, one in shown.items()]
        if len(tried) > len(shown):
            others = f"the {len(tried) - len(shown)} others" if shown else (
                "what was tried against it" if len(tried) == 1 else f"none of {len(tried)} things tried against it")
            none = "could be shown to change it" if not shown and len(tried) > 1 else "could not be shown to change it"
            parts.append(f"{others} {none}")
        return f"Trained on {self.source}, {'; '.join([said, *parts])}."

    def _fall(self, line: Line, target: str) -> str:
        here, there, found = (line.scores[self.source][self.headline], line.scores[target][self.headline],
                              line.falls[target])
        said = f"{line.name}: trained on {self.source}"
        if here.value is None or there.value is None:
            return f"{said}, what {self.title} does at {target} cannot be estimated: {found.note}."
        values = f"{self.title} {here.value:.3f} at {self.source}, {there.value:.3f} at {target}"
        if found.low is None or found.detectable is None:
            return f"{said}, {values}; no interval: {found.note}."
        shown = f"difference {found.text()}"
        if found.sign == 0:
            return (f"{said}, no fall could be shown: {values}, {shown}. With these test groups and seeds "
                    f"{metrics.under(self.headline, 'fall', found.detectable)} would stay invisible{_of(found)}.")
        verb = "falls" if there.value < here.value else "rises"
        how = "" if self._worse(found.value) else ", which is better"
        return (f"{said}, {self.title} {verb} from {here.value:.3f} to {there.value:.3f} at {target}{how} "
                f"({shown}).")

    def _return(self, line: Line, target: str) -> str:
        found = line.returns[target]
        what = f"{line.name} against {line.against} at {target}"
        if found.low is None or found.detectable is None:
            return f"{what}: cannot be estimated ({found.note})."
        if found.low == found.high == 0:
            return f"{what}: {self.title} is the same on every resample."
        if found.sign == 0:
            return (f"{what}: no difference could be shown ({self.title} {found.text()}); "
                    f"{metrics.under(self.headline, 'difference', found.detectable)} would stay invisible{_of(found)}.")
        verb = "costs" if self._worse(found.value) else "returns"
        return f"{what}: {verb} {abs(found.value):.3f} of {self.title} ({found.text()})."

    def _worse(self, difference: float) -> bool:
        return (difference < 0) == metrics.METRICS[self.headline].higher_is_better

    def rows(self) -> list[dict[str, Any]]:
        """The table: a line per model and way."""
        calibrated = "ece" in next(iter(self.lines.values())).scores[self.source]
        found = []
        for line in self.lines.values():
            row: dict[str, Any] = {"model, way": line.name}
            row |= {f"{self.title} {one}": score[self.headline].text() for one, score in line.scores.items()}
            row |= {f"{target} - {self.source}": one.text() + self._mark(line, target, "fall")
                    for target, one in line.falls.items()}
            row |= {f"gain, {one}": line.returns[one].text() + self._mark(line, one, "return") if line.returns else "-"
                    for one in line.scores}
            if calibrated:
                row |= {f"ECE {one}": score["ece"].text() for one, score in line.scores.items()}
            found.append(row)
        return found

    def _mark(self, line: Line, at: str, of: Literal["fall", "return"]) -> str:
        return " *" if Asked(line.name, at, of) in self.primary else ""

    def damage_rows(self) -> list[dict[str, Any]]:
        """A line per model, way, corruption and strength."""
        return [{"model, way": line.name, "corruption": damage.name, "strength": damage.strength,
                 "unit": self.kinds[damage.name].unit, self.title: found[self.headline].text(),
                 "damaged - clean": line.losses[damage].text(signed=True),
                 **({"ECE": found["ece"].text()} if "ece" in found else {})}
                for line in self.lines.values() for damage, found in line.damaged.items()]

    def flat(self) -> dict[str, float]:
        """The numbers that there are, by dotted name."""
        found: dict[str, float] = {}

        def add(name: str, one: Estimate | Difference) -> None:
            ends = {"": one.value, ".low": one.low, ".high": one.high}
            found.update({name + end: value for end, value in ends.items()
                          if value is not None and math.isfinite(value)})

        for line in self.lines.values():
            for prefix, by_source in (("score", line.scores), ("gap", line.gaps), ("gain", line.gains)):
                for source, scores in by_source.items():
                    for metric in (self.headline, "ece"):
                        if metric in scores and (prefix == "score" or metric != self.headline):
                            add(f"{line.name}.{prefix}.{source}.{metric}", scores[metric])
            for prefix, told in (("gap", line.falls), ("gain", line.returns)):
                for source, difference in told.items():
                    add(f"{line.name}.{prefix}.{source}.{self.headline}", difference)
            for damage, one in line.losses.items():
                add(f"{line.name}.loss.{damage.name}.{damage.strength:g}.{self.headline}", one)
        return found


def _of(found: Difference) -> str:
    return f" ({found.note})" if found.note else ""


def compare(name: str, source: str, unseen: Unseen, parts: Mapping[str, np.ndarray],
            answers: Mapping[tuple[str, str], Answers], headline: str, resamples: int, seed: int,
            kinds: Mapping[str, Corruption], notes: tuple[str, ...] = ()) -> Shift:
    """Score every line on every source and under every damage.

    Args:
        parts: source -> indices into the rows of `unseen`, what was trained on first.
        answers: by model and way. A way is compared with its model as trained, a model with the first.
    """
    kind, labels = unseen.task.kind, unseen.labels
    groups = np.array(unseen.column("group"))

    def scored(predicted: Floats, part: np.ndarray) -> Spread:
        return spread(kind, labels[part], predicted, groups[part].tolist(), resamples, seed, among=groups.tolist())

    spreads = {at: {one: scored(told.whole[:, part], part) for one, part in parts.items()}
               for at, told in answers.items()}
    first = next(iter(answers))
    targets = tuple(one for one in parts if one != source)
    contrasts = _contrasts(spreads, source, headline)
    primary = frozenset(one for one in contrasts if _is_primary(one, first, list(answers), targets))
    told_of = {**{one: alone(contrast) for one, contrast in contrasts.items() if one not in primary},
               **together({one: contrasts[one] for one in sorted(primary)})}
    lines = []
    for (model, way), told in answers.items():
        own, against, line = spreads[model, way], _against(first, model, way), name_of(model, way)
        only = against == (model, way)
        damaged = {damage: scored(predicted, parts[source]) for damage, predicted in told.damaged.items()}
        lines.append(Line(
            model=model, way=way, against="" if only else name_of(*against),
            scores={one: estimates(each) for one, each in own.items()},
            seed_std={one: seed_std(each)[headline] for one, each in own.items()},
            gaps={one: gap(own[one], own[source]) for one in targets},
            gains={} if only else {one: differences(own[one], spreads[against][one]) for one in parts},
            falls={one: told_of[Asked(line, one, "fall")] for one in targets},
            returns={} if only else {one: told_of[Asked(line, one, "return")] for one in parts},
            damaged={damage: estimates(each) for damage, each in damaged.items()},
            losses={damage: differences(each, own[source])[headline] for damage, each in damaged.items()},
            bins={} if kind in ("regression", "segmentation") else {
                one: reliability(kind, labels[part], told.whole[:, part]) for one, part in parts.items()}))
    return Shift(name=name, kind=unseen.prepared.contract.kind, headline=headline, source=source, targets=targets,
                 num_rows={one: spreads[first][one].num_rows for one in parts},
                 num_groups={one: spreads[first][one].num_groups for one in parts}, kinds=dict(kinds),
                 lines={line.name: line for line in lines}, primary=primary, notes=notes)


def _against(first: tuple[str, str], model: str, way: str) -> tuple[str, str]:
    """What a line is compared with: a way with its model as trained, a model with the first."""
    return (model, "") if way else first


def _is_primary(asked: Asked, first: tuple[str, str], lines: list[tuple[str, str]], targets: tuple[str, ...]) -> bool:
    """What the first model loses at a target; what another as trained, or the first by a way, gives back there."""
    model, way = next(line for line in lines if name_of(*line) == asked.line)
    if asked.at not in targets:
        return False
    return (model, way) == first if asked.of == "fall" else not way or model == first[0]


def _contrasts(spreads: Mapping[tuple[str, str], Mapping[str, Spread]], source: str,
               headline: str) -> dict[Asked, Contrast]:
    """Every comparison of the headline metric. Seeds go in pairs where both sides are of one trained model."""
    first = next(iter(spreads))
    found = {}
    for (model, way), own in spreads.items():
        line, against = name_of(model, way), _against(first, model, way)
        for at, one in own.items():
            if at != source:
                pairs = (one.metrics[headline] - own[source].metrics[headline],)
                found[Asked(line, at, "fall")] = Contrast(
                    pairs, min(one.num_groups, own[source].num_groups),
                    min(one.support(headline), own[source].support(headline)))
            if against != (model, way):
                theirs = spreads[against][at].metrics[headline]
                sides = ((one.metrics[headline] - theirs,) if against[0] == model else (one.metrics[headline], -theirs))
                found[Asked(line, at, "return")] = Contrast(sides, one.num_groups, one.support(headline))
    return found
