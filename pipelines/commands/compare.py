"""`lacuna compare`: evaluated runs side by side, from their reports alone; nothing is computed and no server asked.

Runs are only set beside each other. Differences with an interval are those that an evaluate run made itself, on the
same rows and resamples; subtracting the scores of two runs would need both to have the same test rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines import report
from pipelines.scoring.evaluation_record import METRICS_FILE, Evaluation, load, rows_of
from pipelines.scoring.metrics import METRICS
from pipelines.scoring.outcome import cost_sentence, notes_of, verdict
from pipelines.scoring.uncertainty import Estimate
from pipelines.settings import plain
from pipelines.tracking import tracking

PICTURES = ("masks.png", "arms.png", "roc.png", "predicted.png", "difference.png")
"""Which picture of a run is pointed to: the first that there is."""


def compare(names: Sequence[str], root: Path, out: Path | None = None) -> str:
    """Compare evaluate runs.

    Args:
        names: of evaluate runs; none: all that lie in reports/evaluate.
        out: folder for comparison.png, comparison.csv and comparison.json; None: print only.

    Returns:
        The text to print: table, verdicts with what pretraining cost, notes, pictures, how to open MLflow.

    Raises:
        FileNotFoundError, ValueError: a run has no evaluation, or one of another format.
    """
    chosen = list(dict.fromkeys(names)) or evaluated(root)
    if not chosen:
        raise FileNotFoundError("nothing to compare: found no evaluation in reports/evaluate, expected what `lacuna "
                                "evaluate RUN` writes. Run it, or `dvc repro`.")
    runs = [load(folder_of(name, root) / METRICS_FILE) for name in chosen]
    blocks = [report.table([row for run in runs for row in score_lines(run, root)])]
    said = []
    for run in runs:
        said += [f"{run.name}: {verdict(run, arm)}" for arm in run.paired] or [f"{run.name}: one arm, no difference"]
        cost = cost_sentence(run.cost)
        said += [f"  {cost}"] if cost else []
        said += [f"  note: {note}" for note in notes_of(run)]
    blocks.append("\n".join(said))
    if not names:
        blocks += pages(root)
    blocks.append("\n".join(where_to_look(runs, root)))
    if out is not None:
        blocks.append("written: " + ", ".join(str(path) for path in export(runs, root, out)))
    return "\n\n".join(blocks)


def pages(root: Path) -> list[str]:
    """What each `lacuna verdict` and `lacuna shift` has found: its table, its sentences, where its page lies."""
    told = {"verdict": ("by labelled groups", "curves.png"), "shift": ("by source", "sources.png")}
    return [f"{stage} {path.parent.name}, {by}\n{path.read_text(encoding='utf-8').rstrip()}\n"
            f"picture: {(path.parent / picture).relative_to(root)}   page: "
            f"{(path.parent / 'report.html').relative_to(root)}"
            for stage, (by, picture) in told.items()
            for path in sorted((root / "reports" / stage).glob("*/summary.txt"))]


def final_table(root: Path) -> str:
    """What `make repro` ends with: every evaluated run."""
    return compare([], root)


def evaluated(root: Path) -> list[str]:
    """Names of the runs that have an evaluation, sorted."""
    return sorted(path.parent.name for path in (root / "reports/evaluate").glob(f"*/{METRICS_FILE}"))


def folder_of(name: str, root: Path) -> Path:
    """The report of a run. Raises FileNotFoundError, which names those that there are."""
    folder = root / "reports/evaluate" / name
    if not (folder / METRICS_FILE).is_file():
        raise FileNotFoundError(f"run {name}: found no evaluation in reports/evaluate, expected one of "
                                f"{', '.join(evaluated(root)) or 'none yet'}. Remedy: `lacuna evaluate {name}`.")
    return folder


def score_lines(run: Evaluation, root: Path) -> list[dict[str, Any]]:
    """One line per arm and floor: the headline metric, the paired difference, the MLflow run."""
    metric = run.headline
    identity = run_id(run.name, root)

    def line(name: str, score: Estimate, difference: Estimate | None) -> dict[str, Any]:
        return {"track": run.name, "arm": name, "metric": METRICS[metric].title, "score": score.text(),
                f"minus {run.baseline}": difference.text(signed=True) if difference else None,
                "groups": score.num_groups, "MLflow run": identity}

    lines = [line(arm, result.metrics[metric], run.paired.get(arm, {}).get(metric)) for arm, result in run.arms.items()]
    return lines + [line(f"floor: {name}", simple.metrics[metric], None) for name, simple in run.floors.items()]


def where_to_look(runs: Sequence[Evaluation], root: Path) -> list[str]:
    """The picture of each run that exists, and the command that opens MLflow."""
    lines = []
    for run in runs:
        folder = Path("reports/evaluate") / run.name
        found = next((name for name in PICTURES if (root / folder / name).is_file()), None)
        if found:
            lines.append(f"picture: {folder / found}")
    return [*lines, f"MLflow:  {tracking.ui_command(root)}"]


def run_id(name: str, root: Path) -> str | None:
    """MLflow's id of an evaluate run; None where tracking was off or has not been sent yet."""
    path = root / "reports/evaluate" / name / "run.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("run_id")
    return str(found) if found else None


def export(runs: Sequence[Evaluation], root: Path, out: Path) -> list[Path]:
    """Every estimate as CSV and JSON, and the headline scores as a picture where they share a metric."""
    rows = [{**row, "run_id": run_id(run.name, root)} for run in runs for row in rows_of(run)]
    report.write_csv(out / "comparison.csv", rows)
    verdicts = {run.name: {arm: verdict(run, arm) for arm in run.paired} for run in runs}
    report.write_json(out / "comparison.json", {
        "runs": {run.name: json.loads(run.to_json()) for run in runs}, "verdicts": verdicts,
        "costs": {run.name: plain(run.cost) for run in runs},
        "mlflow": {run.name: run_id(run.name, root) for run in runs}})
    written = [out / "comparison.csv", out / "comparison.json"]
    for metric in dict.fromkeys(run.headline for run in runs):
        # AUROC and an error in millimetres do not belong on one axis.
        path = out / ("comparison.png" if len({run.headline for run in runs}) == 1 else f"comparison-{metric}.png")
        if report.forest(path, _score_rows([run for run in runs if run.headline == metric]), METRICS[metric].title):
            written.append(path)
    return written


def _score_rows(runs: Sequence[Evaluation]) -> list[report.Row]:
    rows = []
    for run in runs:
        scores = [(arm, result.metrics[run.headline]) for arm, result in run.arms.items()]
        scores += [(f"floor: {name}", simple.metrics[run.headline]) for name, simple in run.floors.items()]
        rows += [(f"{run.name}, {name}", one.value, one.low, one.high) for name, one in scores]
    return rows
