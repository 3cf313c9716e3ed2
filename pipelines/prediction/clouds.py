"""Clouds with a class for every point: what a model says of the points that it sees of a file, written back for all.

The file is read twice by limited processes: for the model, and to make the new file out of the old one. This process
sees samples, and bytes that it writes where they belong; it parses neither.

Legend: n points seen, K classes without the background.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domains.outcome import Outcome
from domains.publish import write_bytes
from domains.quarantine import Limits, Reader, fault, read_all, spare_children
from domains.reading_process import Child
from domains.sample import ManifestRow, Task
from pipelines.prediction import masks
from pipelines.prediction.masks import Segment
from pipelines.prediction.native import Native

WRITING = 10
"""Times the limit in seconds of reading a file that writing one may take: neighbours are looked for of every point."""


def written(native: Native, rows: Sequence[ManifestRow], segment: Segment, limits: Limits | None, out: Path,
            names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Clouds below `out`, and what to say of each: one dictionary per file, as `lacuna predict` tells it.

    Args:
        segment: stored points n F -> probabilities K+1 n.
        names: what the cloud of each row is to be called, by the row's key, without an ending (`masks.names_for`).
    """
    limits = limits or Limits()
    task: Task = native.record["task"]
    export = masks.export_of(native)
    meaning = masks.meaning_of(task)
    labelling = export.Labelling(native.reader.settings, tuple(meaning), tuple(meaning.values()))
    patient = dataclasses.replace(limits, workers=1, seconds=WRITING * limits.seconds)
    with spare_children() as spare:
        for outcome in read_all(rows, native.reader, limits):
            reason, said = _said(outcome, native, segment)
            content = Outcome(outcome.row)
            if not reason:
                content = _made(outcome, said, Reader(export.__name__, labelling), patient, spare)
                reason = content.reason
            result = masks.answer_of(outcome.row, outcome.sha256, reason, native)
            if not reason:
                name = f"{masks.FOLDER}/{names[outcome.row.key]}{export.ending(outcome.row.path)}"
                write_bytes(out / name, content.pieces[0].values.tobytes())
                facts: dict[str, Any] = content.pieces[0].facts
                result |= {"mask": name, **masks.counted(facts["counts"], meaning, facts["not_looked_at"])}
            yield result


def _said(outcome: Outcome, native: Native, segment: Segment) -> tuple[str, np.ndarray]:
    """A reason against a file, or what the model says of its stored points, n K+1, piece by piece."""
    contract = native.contract
    said = [np.empty((0, 0), np.float32)]
    for piece in outcome.pieces:
        unlike = fault(piece, contract.dtype, len(contract.channels), 2, contract.unknown)
        if unlike:
            return unlike, said[0]
        said.append(segment(piece.values).T)
        if not np.isfinite(said[-1]).all():
            return "the model's answer is not finite", said[0]
    return outcome.reason, np.concatenate(said[1:]) if len(said) > 1 else said[0]


def _made(outcome: Outcome, said: np.ndarray, reader: Reader, limits: Limits, spare: list[Child]) -> Outcome:
    """The new file's bytes as the one piece of an outcome, or a reason."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "said.npy"
        np.save(answers, said.astype(np.float32))
        row = dataclasses.replace(outcome.row, mask_path=answers)
        (made,) = read_all([row], reader, limits, spare)
    if not made.reason and made.sha256 != outcome.sha256:
        return dataclasses.replace(made, reason="the file changed while it was read")
    return made
