"""What a shift says: sentences, tables, scores by source, curves over damage, calibration, and a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from domains.publish import write_text
from pipelines import page, report
from pipelines.scoring import metrics
from pipelines.scoring.shift_scores import Line, Shift

STYLES = ("-", "--", ":", "-.")
"""Of lines, by way of adapting; colours go by model."""
FEWEST = 5
"""Answers in a bin of the reliability diagram that is drawn."""


def write(folder: Path, shift: Shift) -> list[Path]:
    """summary.txt, table.csv, robustness.csv, metrics.json, three pictures and report.html; returns the pictures that
    were drawn."""
    rows, damage_rows = shift.rows(), shift.damage_rows()
    write_text(folder / "summary.txt", f"{report.table(rows)}\n\n"
               + "\n".join([*shift.sentences(), *(f"exploratory: {said}" for said in shift.compared(primary=False)),
                            *(f"note: {note}" for note in shift.notes)]) + "\n")
    report.write_csv(folder / "table.csv", rows)
    if damage_rows:
        report.write_csv(folder / "robustness.csv", damage_rows)
    report.write_json(folder / "metrics.json", shift.flat())
    drawn = {"sources.png": by_source, "robustness.png": by_damage, "reliability.png": by_confidence}
    pictures = [folder / name for name, call in drawn.items() if call(folder / name, shift)]
    write_text(folder / "report.html", _page(folder, shift, damage_rows))
    return pictures


def by_source(path: Path, shift: Shift) -> bool:
    """The headline metric of every line on every source."""
    rows = [(f"{line.name}, at {source}", one.value, one.low, one.high) for source in shift.num_groups
            for line in shift.lines.values() for one in [line.scores[source][shift.headline]]]
    groups = ", ".join(f"{count} at {source}" for source, count in shift.num_groups.items())
    axis, title = f"{shift.title} (test groups: {groups})", f"{shift.name}: trained on {shift.source}"
    return report.forest(path, rows, axis, title)


def by_damage(path: Path, shift: Shift) -> bool:
    """The headline metric over the strength of each corruption; curves begin with the samples as they are."""
    names = list(dict.fromkeys(damage.name for line in shift.lines.values() for damage in line.damaged))
    if not names or not report.can_draw():
        return False
    columns = min(3, len(names))
    figure = report.new_figure(4.2 * columns, 3.2 * -(-len(names) // columns) + 0.5)
    panels = figure.subplots(-(-len(names) // columns), columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(names):]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        for line in shift.lines.values():
            colour, style = _looks(line, shift)
            curve = [(shift.kinds[name].none, line.scores[shift.source][shift.headline])]
            curve += [(damage.strength, found[shift.headline]) for damage, found in line.damaged.items()
                      if damage.name == name]
            shown = [(strength, one) for strength, one in curve if one.value is not None]
            x, y = np.array([strength for strength, _ in shown]), np.array([one.value for _, one in shown], float)
            axes.plot(x, y, style, color=colour, marker="o", markersize=3, linewidth=1.5, label=line.name)
            if not line.way and all(one.low is not None for _, one in shown):
                axes.fill_between(x, np.array([one.low for _, one in shown], float),
                                  np.array([one.high for _, one in shown], float), color=colour, alpha=0.12)
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel(shift.kinds[name].unit)
        axes.grid(color="0.9")
    panels[0].set_ylabel(f"{shift.title} at {shift.source}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8,
                  handlelength=3)
    return report.save_figure(figure, path)


def by_confidence(path: Path, shift: Shift) -> bool:
    """Share right over confidence: a row of panels per model, a column per source, a line per way. Bins with a handful
    of answers would draw noise and are left out."""
    if not any(line.bins for line in shift.lines.values()) or not report.can_draw():
        return False
    models, ways = _named(shift)
    sources = [shift.source, *shift.targets]
    figure = report.new_figure(3.6 * len(sources), 3.3 * len(models) + 0.4)
    panels = figure.subplots(len(models), len(sources), sharex=True, sharey=True, squeeze=False)
    for axes in panels.ravel():
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--")
        axes.set_aspect("equal")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
    handles = {}
    for line in shift.lines.values():
        for axes, source in zip(panels[models.index(line.model)], sources, strict=True):
            certain, right, count = (column[line.bins[source][2] >= FEWEST] for column in line.bins[source])
            colour = report.COLOURS[ways.index(line.way) % len(report.COLOURS)]
            handles[line.way or "as trained"], = axes.plot(certain, right, color=colour, linewidth=1.3)
            axes.scatter(certain, right, s=6 + 90 * count / max(1, count.sum()), color=colour)
            axes.set_title(f"{line.model}, at {source}", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("confidence")
    for axes in panels[:, 0]:
        axes.set_ylabel("share right")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return report.save_figure(figure, path)


def _looks(line: Line, shift: Shift) -> tuple[str, str]:
    """Colour by model, style by way."""
    models, ways = _named(shift)
    return report.COLOURS[models.index(line.model) % len(report.COLOURS)], STYLES[ways.index(line.way) % len(STYLES)]


def _named(shift: Shift) -> tuple[list[str], list[str]]:
    """Models and ways, in order."""
    lines = shift.lines.values()
    return list(dict.fromkeys(one.model for one in lines)), list(dict.fromkeys(one.way for one in lines))


def _page(folder: Path, shift: Shift, damage_rows: list[dict[str, object]]) -> str:
    counts = "; ".join(f"{shift.num_rows[one]} labelled test rows in {shift.num_groups[one]} groups at {one}"
                       for one in shift.num_groups)
    parts = [*(page.strong(said) for said in shift.answer()),
             *(page.text(said) for said in [*shift.compared(primary=True), shift.caution()]),
             page.picture(folder / "sources.png", f"{shift.title} by source"), page.table(shift.rows()),
             page.text(f"* primary. {counts}. Values are means over seeds. A gain is the difference from the same "
                       "model as trained, or of a model from the first. Scores have intervals of 95 % over test "
                       "groups, for the models as they are; those of differences count the spread between seeds too, "
                       f"which is {_spread(shift)} in {shift.title}. All lines see the same resamples.")]
    parts += [page.heading("Exploratory"), *(page.text(said) for said in shift.compared(primary=False))]
    parts += [page.text(f"Note: {note}") for note in shift.notes]
    if damage_rows:
        parts += [page.heading(f"Under damage, at {shift.source}"),
                  page.text("Stored samples were damaged before normalisation, each in the same manner for every "
                            "model; curves begin with the samples as they are. Bands are 95 % over test groups, each "
                            "by itself, for the models as they are: exploratory."),
                  page.picture(folder / "robustness.png", f"{shift.title} over the strength of each corruption"),
                  page.table(damage_rows)]
    if (folder / "reliability.png").is_file():
        parts += [page.heading("Calibration"), page.text(metrics.METRICS["ece"].meaning),
                  page.picture(folder / "reliability.png", "share right over confidence, by source")]
    return page.page(f"Shift: {shift.name}", parts)


def _spread(shift: Shift) -> str:
    found = [(line.name, source, std) for line in shift.lines.values() if not line.way
             for source, std in line.seed_std.items() if std is not None]
    return ", ".join(f"{std:.3f} ({name}, {source})" for name, source, std in found) or "an unknown amount (one seed)"
