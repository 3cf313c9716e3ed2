"""What a verdict says: a sentence, a table, label-efficiency curves, a page, and the paragraph to go on with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from domains.publish import write_text
from pipelines import page, report
from pipelines.scoring import metrics
from pipelines.scoring.comparisons import Difference
from pipelines.scoring.outcome import duration
from pipelines.scoring.uncertainty import MIN_GROUPS, Estimate
from pipelines.verdicts.label_efficiency import Worth

SAMPLES = {"xray": "X-rays", "ct": "CT volumes", "multispectral": "tiles", "points": "clouds"}
STYLES = ("-", "--", ":", "-.")
"""Of lines: ways, where there are more than colours; floors, from the second on."""
UNITS = {"xray": "patients", "ct": "patients", "multispectral": "blocks", "points": "objects"}
"""What samples and groups usually are; a manifest may mean something else by its groups."""


@dataclass(frozen=True)
class Way:
    """One way of starting and adapting, over all budgets."""

    scores: tuple[Estimate, ...]
    groups: tuple[int, ...]
    seconds: float
    """Of all its trainings together."""
    steps: int
    trained: int
    weights: int
    val_loss: float
    """On all labels, mean over seeds."""


@dataclass(frozen=True)
class Answer:
    """All that a verdict has found."""

    name: str
    kind: str
    headline: str
    num_groups: int
    num_rows: int
    ways: Mapping[str, Way]
    gains: Mapping[str, Difference]
    worths: Mapping[str, Worth | None]
    """Of the ways that helped."""
    floors: Mapping[str, Estimate]
    ahead: Mapping[str, Difference]
    """How far the recipe's way is ahead of each floor, with all labels."""
    pretraining: Mapping[str, tuple[int, float | None]]
    """Arm -> steps that its pretraining took, and seconds, where they are known."""
    pretrained_on: int
    """Samples that own pretraining has seen; 0: not known."""
    comparisons: int
    seeds: int
    folds: int
    recipe: tuple[str, dict[str, Any]]
    watts: float

    @property
    def title(self) -> str:
        """The headline metric, for people."""
        return metrics.METRICS[self.headline].title

    def sentence(self, way: str) -> str:
        """Whether a way helped, by how much, and what it is worth in labels."""
        gain, worth, unit = self.gains[way], self.worths.get(way), UNITS[self.kind]
        what = self._what(way)
        if gain.low is None or gain.high is None or gain.detectable is None:
            remedy = "" if self.folds or self.num_groups >= MIN_GROUPS else (
                " Remedy: `folds: 5` in the verdict's paragraph tests all labelled groups in turn, with weights that "
                "were pretrained on none of them (`splits: [unlabelled]` of the pretrain run).")
            found = "" if math.isnan(gain.value) else (
                f" Averaged over budgets {self.title} is {gain.value:+.3f} beside scratch (above 0 is better).")
            return f"{what}: {gain.note}.{found}{remedy}"
        sizes = next(iter(self.ways.values())).groups
        averaged = ", averaged over budgets" if len(sizes) > 1 else ""
        shown = f"{self.title} better by {gain.text()}{averaged}"
        if gain.verdict == "no difference":
            return (f"{what}: no difference could be shown ({self.title} {gain.text()} beside scratch, above 0 is "
                    f"better{averaged}); with these {self.num_groups} test groups and "
                    f"{self.seeds} seeds {metrics.under(self.headline, 'gain', gain.detectable)} would stay invisible"
                    f"{f' ({gain.note})' if gain.note else ''}.")
        if gain.verdict == "hurt":
            return (f"{what} hurt: {self.title} worse by {-gain.value:.3f} [{-gain.high:.3f}, {-gain.low:.3f}]"
                    f"{averaged}.")
        if len(sizes) < 2:
            return f"{what} helped: {shown}. What it is worth in labels takes more than one budget."
        if worth is None:
            return f"{what} helped: {shown}. With all labels it does not reach what scratch reaches."
        least, more = "at least " if worth.capped else "", " or more" if worth.open else ""
        return (f"{what} helped: {shown}. It is worth {least}{worth.value:.0f} labelled {unit} "
                f"[{worth.low:.0f}, {worth.high:.0f}{more}]: with so many fewer it reaches what scratch reaches with "
                f"all {sizes[-1]}.")

    def _what(self, way: str) -> str:
        if way.startswith("pretrained") and self.pretrained_on:
            adapted = way.removeprefix("pretrained ")
            how = "" if adapted == "full" else f" (adapted by {adapted})"
            return f"pretraining on your {self.pretrained_on} {SAMPLES[self.kind]}{how}"
        return way

    def sentences(self) -> list[str]:
        """All, the one that the verdict is about first."""
        return [self.sentence(way) for way in sorted(self.gains, key=lambda way: not way.startswith("pretrained"))]

    def cost(self) -> str:
        """What pretraining took, which the table leaves out; empty where nothing is known."""
        said = [f"{arm} {steps} steps" + ("" if seconds is None else f" ({duration(seconds)})")
                for arm, (steps, seconds) in self.pretraining.items() if steps]
        return f"Pretraining took, beside the table's times: {', '.join(said)}." if said else ""

    def warnings(self) -> list[str]:
        """A floor that the models are not shown to beat is said as loudly as the answer: what it sees may be all that
        they use."""
        said = []
        for name, ahead in self.ahead.items():
            if ahead.verdict not in ("no difference", "hurt"):
                continue
            level = "is better than the models" if ahead.verdict == "hurt" else "may be as good as the models"
            said.append(f"beware: the floor {name} {level} ({self.title} {self.floors[name].text()}; "
                        f"{self.recipe[0]} beside it {ahead.text()}, above 0 is better). What it sees may be all "
                        "that they use; a gain by pretraining then says nothing of the rest.")
        return said

    def rows(self) -> list[dict[str, Any]]:
        """The table: a line per way, a column per budget."""
        lines: list[dict[str, Any]] = []
        for name, way in self.ways.items():
            line: dict[str, Any] = {"way": name}
            line |= {f"{groups} groups": score.text() for groups, score in zip(way.groups, way.scores, strict=True)}
            gain = self.gains.get(name)
            line["better than scratch by"] = "-" if gain is None else gain.text()
            line |= {"trained": way.trained, "share": f"{way.trained / way.weights:.2%}",
                     "time": duration(way.seconds)}
            if self.watts:
                line["kWh"] = round(way.seconds * self.watts / 3.6e6, 4)
            lines.append(line)
        last = f"{next(iter(self.ways.values())).groups[-1]} groups"
        lines += [{"way": f"floor: {name}", last: score.text(), "recipe better by": self.ahead[name].text()}
                  for name, score in self.floors.items()]
        return lines

    def headlines(self) -> dict[str, Any]:
        """What the command line prints."""
        return {"test groups": self.num_groups, **{f"verdict {i + 1}": text for i, text in enumerate(self.sentences())},
                **{f"floor {i + 1}": text for i, text in enumerate(self.warnings())},
                "recipe": f"{self.recipe[0]} (reports/verdict/{self.name}/recipe.yaml)"}

    def flat(self) -> dict[str, float]:
        """Numbers for tracking."""
        found: dict[str, float] = {}
        for name, way in self.ways.items():
            for groups, score in zip(way.groups, way.scores, strict=True):
                if score.value is not None:
                    found[f"{name}.{groups}_groups.{self.headline}"] = score.value
        for name, gain in self.gains.items():
            ends = {"": gain.value, ".low": gain.low, ".high": gain.high}
            found |= {f"{name}.gain{end}": value for end, value in ends.items() if value is not None}
        found |= {f"floor.{name.partition(' ')[0]}.{self.headline}": score.value
                  for name, score in self.floors.items() if score.value is not None}
        return found


def write(folder: Path, answer: Answer) -> str:
    """summary.txt, table.csv, metrics.json, recipe.yaml, curves.png and report.html. Returns the text of the first."""
    rows = answer.rows()
    text = "\n".join([*answer.sentences(), *answer.warnings(), *filter(None, [answer.cost()])])
    said = f"{report.table(rows)}\n\n{text}\n"
    way, paragraph = answer.recipe
    recipe = (f"# {way}: the lowest validation loss with all labels. For params.yaml, under `finetune`.\n"
              + yaml.safe_dump(paragraph, sort_keys=False))
    write_text(folder / "summary.txt", said)
    report.write_csv(folder / "table.csv", rows)
    write_text(folder / "recipe.yaml", recipe)
    write_text(folder / "metrics.json", json.dumps({key: value for key, value in answer.flat().items()
                                                    if math.isfinite(value)}, indent=2) + "\n")
    drawn = curves(folder / "curves.png", answer)
    write_text(folder / "report.html", _page(answer, rows, recipe, folder / "curves.png" if drawn else None))
    return said


def curves(path: Path, answer: Answer) -> bool:
    """Score over labelled groups, a line per way with its interval, floors dashed. False without matplotlib."""
    if not report.can_draw():
        return False
    figure = report.new_figure(7.5, 4.8 + 0.2 * (len(answer.ways) + len(answer.floors)))
    axes = figure.subplots()
    for i, (name, way) in enumerate(answer.ways.items()):
        colour, style = report.COLOURS[i % len(report.COLOURS)], STYLES[i // len(report.COLOURS) % len(STYLES)]
        shown = [(groups, score) for groups, score in zip(way.groups, way.scores, strict=True)
                 if score.value is not None]
        x = np.array([groups for groups, _ in shown]) * 1.03 ** (i - len(answer.ways) / 2)
        y = np.array([score.value for _, score in shown], float)
        ends = [(score.low, score.high) for _, score in shown]
        if all(low is not None for low, _ in ends):
            axes.errorbar(x, y, np.abs(np.array(ends, float).T - y), color=colour, marker="o", markersize=4,
                          linestyle=style, linewidth=1.6, capsize=2.5, elinewidth=0.8, label=name)
        else:
            axes.plot(x, y, style, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
    for i, (name, score) in enumerate(answer.floors.items()):
        if score.value is not None:
            axes.axhline(score.value, color="0.5", linestyle=STYLES[1 + i % (len(STYLES) - 1)], linewidth=1.2,
                         label=f"floor, all labels: {name}")
    sizes = next(iter(answer.ways.values())).groups
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"labelled training groups (usually {UNITS[answer.kind]})")
    axes.set_ylabel(answer.title)
    over = f"groups in {answer.folds} folds" if answer.folds else "test groups"
    axes.set_title(f"{answer.name}: {answer.num_groups} {over}, {answer.seeds} seeds, 95 % over test groups",
                   fontsize=10)
    axes.grid(color="0.9")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8,
                  handlelength=3)
    return report.save_figure(figure, path)


def _tested(answer: Answer) -> str:
    if not answer.folds:
        return ""
    return (f"Each seed draws {answer.folds} folds over all labelled groups: every row is predicted by models that "
            "learnt from other folds, and scored once per seed. AUROC and average precision set a row against rows of "
            "its own fold alone, since the models of two folds need not agree on where zero is. Models of different "
            "folds share much of what they learnt from, which the intervals do not know. ")


def _page(answer: Answer, rows: list[dict[str, Any]], recipe: str, picture: Path | None) -> str:
    """One page that needs no other file."""
    together = f", all {answer.comparisons} at once" if answer.comparisons > 1 else ""
    first, *others = answer.sentences()
    return page.page(f"Verdict: {answer.name}", [
        page.strong(first[:1].upper() + first[1:]),
        *(page.text(said[:1].upper() + said[1:]) for said in others),
        *(page.warning(said) for said in answer.warnings()),
        *([page.picture(picture, "scores over budgets of labels")] if picture else []),
        page.table(rows),
        page.text("Scores have intervals of 95 % over test groups, for the models as they are. They may overlap where "
                  "a difference is sure: all ways are tested on the same groups, whose common luck cancels in it."),
        page.text(f"{answer.cost()} Time is of all trainings of a way together; trained and share count weights."),
        page.text("Every way got the same steps, grid and seeds; each seed draws the labelled groups of its budget, a "
                  f"smaller budget being part of a larger one. {_tested(answer)}Differences are averaged over budgets; "
                  "their intervals count the choice of test groups and the spread between seeds, and hold the truth in "
                  f"95 of 100 verdicts{together}. Pretrained weights and the groups that have labels are taken as they "
                  "are: what another pretraining or other labels would give is not in them. The recipe was chosen on "
                  "validation rows."),
        page.heading("Recipe"), page.verbatim(recipe)])
