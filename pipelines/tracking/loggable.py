"""What may leave this machine's disk for a tracking server: settings, numbers, and text from short lists.

Headers of medical files, file names and manifest columns can name a patient. Nothing is filtered out by pattern here;
things are let in: a new field of a file cannot leak, because no list knows it.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.tracking import lineage

MAX_PARAM = 5999
"""Characters of a parameter's value; MLflow takes 6000."""
MAX_TEXT = 500
"""Characters of a tag's value."""
TAG_SPACES = ("git.", "dvc.", "lacuna.", "data.", "model.", "hardware.", "training.", "resume.")
"""First part of the tags that may be set."""
TEXT_COLUMNS = frozenset({
    "arm", "band", "baseline", "better", "budget", "channel", "class", "dataset", "finding", "floor", "head",
    "interval", "kind", "level", "method", "metric", "note", "objective", "phase", "plane", "protocol", "reason",
    "run", "score", "source", "split", "stage", "statistic", "status", "task", "track", "unit", "verdict",
})
"""Columns of a table that may hold text. Every other column must be numbers: a table of predictions by file name, or
one with a patient's group in it, stays on the disk."""


class NotLoggable(ValueError):
    """Something that may name a patient was handed to tracking. The text says what and how to log the rest."""


def parameters(settings: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Nested settings as flat text: {"model": {"width": 96}} -> {"model.width": "96"}. Lists stay one value."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{below}": text for below, text in parameters(value, root).items()}
        else:
            flat[str(key)] = _cut(_text(value, root), MAX_PARAM)
    return flat


def _text(value: Any, root: Path) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item, root)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(item, root) for item in value) + "]"
    return path_or_text(str(value), root)


def path_or_text(text: str, root: Path) -> str:
    """Text as it is; an absolute path relative to the project, and one outside of it by a keyed hash, since folders of
    a hospital are named after people."""
    path = Path(text)
    if path.is_absolute() and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    if not path.is_absolute() and ".." not in path.parts:
        return text
    # Imported here, so that a run whose paths all lie inside never needs a key.
    from domains import pseudonyms
    return f"outside:{pseudonyms.read_key(lineage.store_root(root)).of_place(os.path.normpath(root / path))}"


def _cut(text: str, limit: int) -> str:
    """A long text keeps its beginning and gets its hash, so that two long texts that differ stay different."""
    if len(text) <= limit:
        return text
    mark = f"... sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text[: limit - len(mark)] + mark


def tag(key: str, value: object) -> tuple[str, str]:
    """A tag that may be set. Raises NotLoggable."""
    if not key.startswith(TAG_SPACES):
        raise NotLoggable(f"tag {key!r}: found an unknown beginning, expected one of {', '.join(TAG_SPACES)}.")
    return re.sub(r"[^\w./ :-]", "_", key)[:250], _cut(str(value), MAX_TEXT)


def description(sentences: Sequence[str], page: str) -> dict[str, str]:
    """The tag that MLflow's page shows above a run, as Markdown: sentences, and a page of text as it stands."""
    told = "".join(f"**{sentence}**\n\n" for sentence in sentences)
    return {"mlflow.note.content": f"{told}```\n{_cut(page.strip(), MAX_PARAM - len(told) - 8)}\n```"}


def metric(key: str, value: Any) -> tuple[str, float]:
    """A metric's name in the letters that every store takes, and its value as a float. Raises TypeError, ValueError."""
    return re.sub(r"[^\w./ -]", "_", key)[:250], float(value)


def check_table(path: Path) -> None:
    """Raises NotLoggable unless every column of this CSV is numbers or may hold text."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        checked = [i for i, name in enumerate(header) if name not in TEXT_COLUMNS]
        for row in rows:
            for i in checked:
                if i < len(row) and not _is_number(row[i]):
                    raise NotLoggable(
                        f"table {path.name}, column {header[i]!r}: found text, expected numbers, since text may name a "
                        f"patient. Remedy: leave the column out, or call it one of {', '.join(sorted(TEXT_COLUMNS))}.")


def _is_number(text: str) -> bool:
    if text.strip().lower() in ("", "true", "false", "not estimable"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
