"""Did pretraining help? The answer in one sentence, "no" and "cannot tell" included, with what it rests on and cost."""

from __future__ import annotations

from typing import Any

from pipelines.report import table
from pipelines.scoring.evaluation_record import Cost, Evaluation
from pipelines.scoring.metrics import METRICS
from pipelines.scoring.uncertainty import LEFT_OUT, MIN_GROUPS


def verdict(evaluation: Evaluation, arm: str = "pretrained") -> str:
    """Whether an arm is better than the baseline, in a sentence that says on what it rests.

    helped: the interval of the paired difference lies on the better side of zero; did not help: on the worse side;
    cannot tell: it holds zero, or there is none. The interval counts test groups and seeds, and holds together
    with those of the other arms.
    """
    what = "pretraining" if arm == "pretrained" else arm
    if arm not in evaluation.paired:
        return f"cannot tell whether {what} helped: this run has no arm {arm} beside {evaluation.baseline}."
    metric = evaluation.headline
    difference = evaluation.paired[arm][metric]
    title, up = METRICS[metric].title, METRICS[metric].higher_is_better
    ours, theirs = (evaluation.arms[name].metrics[metric].value for name in (arm, evaluation.baseline))
    if difference.value is None or ours is None or theirs is None:
        return f"cannot tell whether {what} helped: {title} is not estimable ({difference.note})."
    shown = (f"{title} {ours:.3f} against {theirs:.3f} of {evaluation.baseline}, difference "
             f"{difference.text(signed=True)}")
    if difference.low is None or difference.high is None:
        return f"cannot tell whether {what} helped: {shown}; {difference.note}.{_remedy(evaluation)}"
    seeds = len(evaluation.arms[arm].per_seed[metric])
    basis = f"over {difference.num_groups} test groups and {seeds} seed{'s' * (seeds > 1)}"
    note = f" ({difference.note})" if difference.note else ""
    if difference.low <= 0 <= difference.high:
        gain, loss = map(abs, (difference.high, difference.low) if up else (difference.low, difference.high))
        return (f"cannot tell whether {what} helped: {shown} {basis} holds zero; it may have gained up to {gain:.3f} "
                f"or lost up to {loss:.3f}{note}.")
    word = "helped" if (difference.value > 0) == up else "did not help, it was worse"
    return f"{what} {word}: {shown} {basis}{note}."


def _remedy(evaluation: Evaluation) -> str:
    """What to do about too few test groups; empty where there are enough."""
    if evaluation.num_groups >= MIN_GROUPS:
        return ""
    found = evaluation.labelled_groups
    if found < MIN_GROUPS:
        return f" Remedy: label more groups; {found} have a label in all."
    return (f" Remedy: `lacuna verdict` with `folds: 5` in its paragraph tests all {found} labelled groups in turn, "
            "with weights that were pretrained on none of them (`splits: [unlabelled]` of the pretrain run).")


def cost_sentence(cost: Cost) -> str:
    """What pretraining took beside fine-tuning; empty where nothing is known."""
    said = []
    if cost.pretrain_steps:
        seconds = "" if cost.pretrain_seconds is None else f" ({duration(cost.pretrain_seconds)})"
        said.append(f"pretraining {cost.pretrain_steps} steps{seconds}")
    for arm, steps in cost.finetune_steps.items():
        seconds = f" ({duration(cost.finetune_seconds[arm])})" if arm in cost.finetune_seconds else ""
        said.append(f"fine-tuning {arm} {steps} steps{seconds}")
    return "cost: " + ", ".join(said) if said else ""


def duration(seconds: float) -> str:
    """12 s, 4 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def summary(evaluation: Evaluation) -> str:
    """A page of text: scores of the arms with intervals, sources, floors, the verdict, the cost and the notes."""
    head = (f"{evaluation.name}: {evaluation.task} ({evaluation.kind}) on {evaluation.num_rows} test rows in "
            f"{evaluation.num_groups} groups, 95 % intervals over groups ({evaluation.resamples} resamples)")
    blocks = [head, table(_metric_rows(evaluation))]
    by_source = _source_rows(evaluation)
    if by_source:
        blocks.append(f"{METRICS[evaluation.headline].title} by source\n{table(by_source)}")
    if evaluation.floors:
        blocks.append(f"simple models on the same split\n{table(_floor_rows(evaluation))}")
    blocks.append("\n".join(verdict(evaluation, arm) for arm in evaluation.paired))
    blocks.append(cost_sentence(evaluation.cost))
    blocks.append("\n".join(f"note: {note}" for note in notes_of(evaluation)))
    return "\n\n".join(block for block in blocks if block)


def notes_of(evaluation: Evaluation) -> list[str]:
    """The run's notes, and why the headline and calibration estimates are as they are, once each. What is to be known
    of differences stands in the verdict."""
    metric = evaluation.headline
    of_estimates = [(f"{METRICS[name].title} of {arm}", result.metrics[name].note)
                    for name in dict.fromkeys((metric, "ece")) for arm, result in evaluation.arms.items()
                    if name in result.metrics]
    # Which outputs are left out stands by name in the run's notes.
    said = [f"{what}: {part}" for what, note in of_estimates for part in note.split("; ")
            if part and not part.startswith(LEFT_OUT)]
    return list(dict.fromkeys([*evaluation.notes, *said]))


def _metric_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    names = next(iter(evaluation.arms.values())).metrics
    rows = []
    for metric in names:
        row: dict[str, Any] = {"metric": METRICS[metric].title}
        row |= {arm: result.metrics[metric].text() for arm, result in evaluation.arms.items()}
        row |= {f"{arm} - {evaluation.baseline}": estimates[metric].text(signed=True)
                for arm, estimates in evaluation.paired.items()}
        rows.append(row)
    return rows


def _source_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    metric = evaluation.headline
    sources = dict.fromkeys(source for result in evaluation.arms.values() for source in result.per_source)
    return [{"source": source,
             "groups": next(iter(evaluation.arms.values())).per_source[source][metric].num_groups,
             **{arm: result.per_source[source][metric].text() for arm, result in evaluation.arms.items()},
             **{f"{arm} - {evaluation.baseline}": per_source[source].text(signed=True)
                for arm, per_source in evaluation.paired_per_source.items()}} for source in sources]


def _floor_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    metric = evaluation.headline
    return [{"sees": name, "model": one.model, METRICS[metric].title: one.metrics[metric].text(),
             **{f"{arm} - floor": difference.text(signed=True) for arm, difference in one.beaten_by.items()}}
            for name, one in evaluation.floors.items()]
