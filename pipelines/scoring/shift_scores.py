"""From what models say of test rows to what a shift costs: scores by source, the gap between sources, what each way of
adapting gives back, and curves over the strength of damage.

Every number is computed on the same resamples of test groups, so that all differences are paired.

Legend: n test rows, S seeds, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.corruption import Corruption
from pipelines.scoring import metrics
from pipelines.scoring.assessment import Unseen
from pipelines.scoring.evaluation_pictures import reliability
from pipelines.scoring.metrics import Floats
from pipelines.scoring.outcome import SEED_ERRORS
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
    gap_errors: Mapping[str, float | None]
    """Target -> standard error of the headline gap that comes from having few seeds; None with one."""
    gain_errors: Mapping[str, float | None]
    """Source -> the same of the headline gain."""
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
    notes: tuple[str, ...]
    """What a reader should know of rows and models."""

    @property
    def title(self) -> str:
        """The headline metric, for people."""
        return metrics.METRICS[self.headline].title

    def sentences(self) -> list[str]:
        """What the shift costs each model, and what each way of adapting returns."""
        said = []
        for target in self.targets:
            for line in self.lines.values():
                if not line.way:
                    said.append(self._fall(line, target))
                if line.against:
                    said.append(self._return(line, target))
        return said

    def _fall(self, line: Line, target: str) -> str:
        here, there, found = (line.scores[self.source][self.headline], line.scores[target][self.headline],
                              line.gaps[target][self.headline])
        said = f"{line.name}: trained on {self.source}"
        if found.value is None or here.value is None or there.value is None:
            return f"{said}, what {self.title} does at {target} cannot be estimated: {found.note}."
        values = f"{self.title} {here.value:.3f} at {self.source}, {there.value:.3f} at {target}"
        if found.low is None or found.high is None:
            return f"{said}, {values}; no interval: {found.note}."
        shown = f"difference {found.text(signed=True)}"
        if luck := _luck(found, line.gap_errors[target]):
            return f"{said}, no fall could be shown: {values}, {shown}, {luck}."
        if found.low <= 0 <= found.high:
            reach = (found.high - found.low) / 2
            return (f"{said}, no fall could be shown: {values}, {shown}. With these test groups a fall under "
                    f"{reach:.3f} would stay invisible.")
        verb = "falls" if there.value < here.value else "rises"
        how = "" if self._worse(found.value) else ", which is better"
        return (f"{said}, {self.title} {verb} from {here.value:.3f} to {there.value:.3f} at {target}{how} "
                f"({shown}).")

    def _return(self, line: Line, target: str) -> str:
        found = line.gains[target][self.headline]
        what = f"{line.name} against {line.against} at {target}"
        if found.value is None or found.low is None or found.high is None:
            return f"{what}: cannot be estimated ({found.note})."
        if luck := _luck(found, line.gain_errors[target]):
            return f"{what}: no difference could be shown ({self.title} {found.text(signed=True)}), {luck}."
        if found.low == found.high == 0:
            return f"{what}: {self.title} is the same on every resample."
        if found.low <= 0 <= found.high:
            return (f"{what}: no difference could be shown ({self.title} {found.text(signed=True)}); one under "
                    f"{(found.high - found.low) / 2:.3f} would stay invisible.")
        verb = "costs" if self._worse(found.value) else "returns"
        return f"{what}: {verb} {abs(found.value):.3f} of {self.title} ({found.text(signed=True)})."

    def _worse(self, difference: float) -> bool:
        return (difference < 0) == metrics.METRICS[self.headline].higher_is_better

    def rows(self) -> list[dict[str, Any]]:
        """The table: a line per model and way."""
        calibrated = "ece" in next(iter(self.lines.values())).scores[self.source]
        found = []
        for line in self.lines.values():
            row: dict[str, Any] = {"model, way": line.name}
            row |= {f"{self.title} {one}": score[self.headline].text() for one, score in line.scores.items()}
            row |= {f"{target} - {self.source}": one[self.headline].text(signed=True)
                    for target, one in line.gaps.items()}
            row |= {f"gain, {one}": line.gains[one][self.headline].text(signed=True) if line.gains else "-"
                    for one in line.scores}
            if calibrated:
                row |= {f"ECE {one}": score["ece"].text() for one, score in line.scores.items()}
            found.append(row)
        return found

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

        def add(name: str, one: Estimate) -> None:
            ends = {"": one.value, ".low": one.low, ".high": one.high}
            found.update({name + end: value for end, value in ends.items()
                          if value is not None and math.isfinite(value)})

        for line in self.lines.values():
            for prefix, by_source in (("score", line.scores), ("gap", line.gaps), ("gain", line.gains)):
                for source, scores in by_source.items():
                    for metric in (self.headline, "ece"):
                        if metric in scores:
                            add(f"{line.name}.{prefix}.{source}.{metric}", scores[metric])
            for damage, one in line.losses.items():
                add(f"{line.name}.loss.{damage.name}.{damage.strength:g}.{self.headline}", one)
        return found


def _luck(found: Estimate, error: float | None) -> str:
    """Why a difference whose interval leaves out zero may still be that of these seeds; empty where it is not."""
    if found.value is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
        return ""
    if error is None or abs(found.value) >= SEED_ERRORS * error:
        return ""
    return (f"which leaves out zero, but is less than {SEED_ERRORS:g} standard errors between seeds ({error:.3f}); "
            "more seeds would tell")


def seed_error(one: Floats, other: Floats, paired: bool) -> float | None:
    """Standard error of the difference of two means over seeds; None with fewer than two on a side.

    Args:
        one, other: S numbers each. paired: seed by seed they are of the same trained model.
    """
    if min(len(one), len(other)) < 2 or np.isnan(one).any() or np.isnan(other).any():
        return None
    square = (one - other).var(ddof=1) / len(one) if paired else (
        one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return float(np.sqrt(square))


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
    lines = []
    for (model, way), told in answers.items():
        own, against = spreads[model, way], (model, "") if way else first
        alone = against == (model, way)
        damaged = {damage: scored(predicted, parts[source]) for damage, predicted in told.damaged.items()}
        lines.append(Line(
            model=model, way=way, against="" if alone else name_of(*against),
            scores={one: estimates(each) for one, each in own.items()},
            seed_std={one: seed_std(each)[headline] for one, each in own.items()},
            gaps={one: gap(own[one], own[source]) for one in parts if one != source},
            gap_errors={one: seed_error(own[one].metrics[headline][:, 0], own[source].metrics[headline][:, 0], True)
                        for one in parts if one != source},
            gain_errors={} if alone else {
                one: seed_error(own[one].metrics[headline][:, 0], spreads[against][one].metrics[headline][:, 0],
                                against[0] == model) for one in parts},
            gains={} if alone else {one: differences(own[one], spreads[against][one]) for one in parts},
            damaged={damage: estimates(each) for damage, each in damaged.items()},
            losses={damage: differences(each, own[source])[headline] for damage, each in damaged.items()},
            bins={} if kind in ("regression", "segmentation") else {
                one: reliability(kind, labels[part], told.whole[:, part]) for one, part in parts.items()}))
    return Shift(name=name, kind=unseen.prepared.contract.kind, headline=headline, source=source,
                 targets=tuple(one for one in parts if one != source),
                 num_rows={one: spreads[first][one].num_rows for one in parts},
                 num_groups={one: spreads[first][one].num_groups for one in parts}, kinds=dict(kinds),
                 lines={line.name: line for line in lines}, notes=notes)
