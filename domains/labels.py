"""From a manifest's texts to numbers that a loss can take. An empty text is unknown, never negative.

Legend: n rows, k outputs of a task.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from domains.rows import cells_of, column_of, masks_of
from domains.sample import ManifestRow, Task

WHOLE = re.compile(r"[+-]?\d+(?:\.0*)?", re.ASCII)
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
UNKNOWN_WORDS = ("na", "n/a", "#n/a", "<na>", "null", "?")
"""What programs write for a value that is not there, in small letters."""


class LabelError(ValueError):
    """A label column holds what its task does not allow."""


def canonical(text: str) -> str:
    """One spelling per meaning: "1", "1.0" and "01" are the same number; an empty cell and "nan" are unknown ("").
    Whole numbers of any length stay what they are: a float would round those of 17 digits, as of studies and slides."""
    text = text.strip()
    if WHOLE.fullmatch(text):
        digits = text.partition(".")[0].lstrip("+-").lstrip("0")
        return f"-{digits}" if digits and text[0] == "-" else digits or "0"
    if text.lower() == "nan":
        return ""
    number = _float(text)
    if number is None or not math.isfinite(number):
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def _float(text: str) -> float | None:
    """A number as tables write it; Python would also take 1_2 for 12, and digits of any script."""
    return float(text) if NUMBER.fullmatch(text) else None


def spelt_alike(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Different texts that are one but for capitals, separators or leading zeros: ("P_007", "p-7"). In order."""
    first: dict[str, str] = {}
    alike: dict[str, dict[str, None]] = {}
    for text in dict.fromkeys(texts):
        plain = re.sub(r"[\s_.-]+", " ", text).strip().casefold()
        plain = re.sub(r"(?<!\d)0+(?=\d)", "", plain)
        if first.setdefault(plain, text) != text:
            alike.setdefault(plain, {first[plain]: None})[text] = None
    return [tuple(spellings) for spellings in alike.values()]


def resolve(task: Task, rows: Sequence[ManifestRow], quote: bool = True) -> Task:
    """The task with its classes: as given, or the sorted values of the training split.

    Values are numbers in order of size where all are numbers, else texts in alphabetical order. Rows with a value that
    is no class count as unknown; `other_values` counts them, so that a report can say so.

    Args:
        quote: whether an error may show what the column holds, which may be names where the wrong one was named.
    """
    _check_columns(task, rows)
    if task.kind == "segmentation":
        _check_masks(task, rows)
    if task.kind != "single_label":
        return task
    texts = _texts(task, rows)[:, 0]
    if task.classes:
        _refuse_absent_classes(task, texts, quote)
        return task
    splits = column_of(rows, "split")
    train = sorted({text for text, split in zip(texts, splits, strict=True) if text and split == "train"},
                   key=_number_or_text)
    _refuse_unknown_as_class(task, train)
    if len(train) < 2:
        raise LabelError(f"column {task.columns[0]}: found {len(train)} classes in the training split, expected at "
                         "least 2. Remedy: check the task's column, sources and where.")
    twice = spelt_alike(sorted({text for text in texts if text}))
    if twice:
        shown = ": " + "; ".join(" and ".join(map(repr, spellings)) for spellings in twice[:3]) if quote else ""
        raise LabelError(f"column {task.columns[0]}: found {len(twice)} classes written in more than one way{shown}. "
                         "Expected one spelling of each. Remedy: correct the column, or list the task's `classes` if "
                         "these differ on purpose.")
    return dataclasses.replace(task, classes=tuple(train))


def other_values(task: Task, rows: Sequence[ManifestRow]) -> dict[str, int]:
    """Texts of a single_label task's column that are none of its classes, with their number of rows."""
    if task.kind != "single_label":
        return {}
    allowed = {"", *(canonical(name) for name in task.classes)}
    return dict(sorted(Counter(text for text in _texts(task, rows)[:, 0] if text not in allowed).items()))


def arrays(task: Task, rows: Sequence[ManifestRow]) -> np.ndarray:
    """float32 n k: the class index (single_label) or one number per column; NaN where unknown.

    Args:
        task: with its classes; see `resolve`.
    """
    if task.kind == "segmentation":
        return _looked_for(task, rows)
    texts = _texts(task, rows)
    if task.kind == "single_label":
        index = {canonical(name): float(i) for i, name in enumerate(task.classes)}
        return _lookup(texts, {text: index.get(text, math.nan) for text in np.unique(texts)})
    numbers = {text: _number(text, task) for text in np.unique(texts)}
    strange = [text for text, number in numbers.items() if number is None]
    if strange:
        expected = "0, 1 or empty" if task.kind == "multi_label" else "a finite number or empty"
        first = int(np.argmax((texts == strange[0]).any(axis=1))) + 1
        raise LabelError(f"columns {', '.join(task.columns)}: found {len(strange)} other values (first: row "
                         f"{first} of those taken), expected {expected} in a {task.kind} task. Remedy: empty the cells "
                         "whose label is unknown, or change the task's kind.")
    return _lookup(texts, {text: number for text, number in numbers.items() if number is not None})


def codes(task: Task, rows: Sequence[ManifestRow]) -> np.ndarray:
    """float32 n k to stratify by, before there is a training split whose classes could be used."""
    if task.kind != "single_label":
        return arrays(task, rows)
    texts = _texts(task, rows)
    return _lookup(texts, {text: float(i) if text else math.nan for i, text in enumerate(sorted(set(texts[:, 0])))})


def counts(task: Task, labels: np.ndarray) -> dict[str, int]:
    """How many rows have each class or finding, and how many are unknown; of masks, in how many rows each class was
    looked for, and how many rows have no mask."""
    known = np.isfinite(labels)
    if task.kind == "single_label":
        tally = np.bincount(labels[known].astype(np.int64), minlength=len(task.classes))
        named = {name: int(n) for name, n in zip(task.classes, tally, strict=True)}
        return {**named, "unknown": int((~known).sum())}
    if task.kind == "multi_label":
        positive = {name: int((labels[:, j] == 1).sum()) for j, name in enumerate(task.columns)}
        return {**positive, "unknown": int((~known.any(axis=1)).sum())}
    return {**{name: int(known[:, j].sum()) for j, name in enumerate(task.outputs)},
            "unknown": int((~known.any(axis=1)).sum())}


def _taken(task: Task, rows: Sequence[ManifestRow]) -> np.ndarray:
    """n bool: rows whose label the task takes, where they have one."""
    taken = np.ones(len(rows), bool)
    if task.sources:
        taken &= [source in task.sources for source in column_of(rows, "source")]
    for name, value in task.where.items():
        taken &= _canonical(cells_of(rows, name)) == canonical(value)
    return taken


def _looked_for(task: Task, rows: Sequence[ManifestRow]) -> np.ndarray:
    """n k: 1 where a row has a mask and the class was looked for in it, else NaN."""
    found = np.full((len(rows), len(task.outputs)), np.nan, np.float32)
    taken = _taken(task, rows) & np.array(masks_of(rows), bool)
    if not task.columns:
        found[taken] = 1
        return found
    cells = cells_of(rows, task.columns[0])
    listed = {cell: np.isin(task.outputs, _names_in(cell)) for cell in set(cells)}
    found[np.stack([listed[cell] for cell in cells]) & taken[:, None]] = 1
    return found


def _names_in(cell: str) -> list[str]:
    """Names of classes in a cell: separated by commas, semicolons or bars; by spaces where it has none of these."""
    return [name.strip() for name in (re.split(r"[,;|]", cell) if re.search(r"[,;|]", cell) else cell.split())]


def _texts(task: Task, rows: Sequence[ManifestRow]) -> np.ndarray:
    """n k of canonical texts; "" where unknown or where the task does not take the row's label."""
    taken = _taken(task, rows)
    texts = np.full((len(rows), len(task.columns)), "", dtype=object)
    for j, name in enumerate(task.columns):
        texts[taken, j] = _canonical(cells_of(rows, name))[taken]
    return texts


def _canonical(raws: Sequence[str]) -> np.ndarray:
    """n texts, each in its one spelling; those that say the same are one object."""
    known = {raw: canonical(raw) if raw else "" for raw in dict.fromkeys(raws)}
    texts = np.empty(len(raws), object)
    texts[:] = [known[raw] for raw in raws]
    return texts


def _lookup(texts: np.ndarray, table: Mapping[str, float]) -> np.ndarray:
    return np.array([table[text] for text in texts.ravel()], np.float32).reshape(texts.shape)


def _number(text: str, task: Task) -> float | None:
    """NaN for unknown, None for what the task does not allow."""
    if text == "":
        return math.nan
    number = _float(text)
    if number is None or not math.isfinite(number) or (task.kind == "multi_label" and number not in (0.0, 1.0)):
        return None
    return number


def _number_or_text(text: str) -> tuple[int, float, str]:
    number = _float(text)
    return (1, 0.0, text) if number is None else (0, number, "")


def _check_columns(task: Task, rows: Sequence[ManifestRow]) -> None:
    present = rows[0].columns if rows else {}
    missing = [name for name in (*task.columns, *task.where) if name not in present]
    if missing:
        raise LabelError(f"label columns: found {', '.join(present) or 'none'}, expected also {', '.join(missing)}. "
                         "Remedy: correct the task's columns.")


def _check_masks(task: Task, rows: Sequence[ManifestRow]) -> None:
    found = _looked_for(task, rows)
    train = np.array([split == "train" for split in column_of(rows, "split")], bool)
    if not np.isfinite(found[train]).any():
        raise LabelError(f"segmentation: found {sum(masks_of(rows))} rows with a mask, none of them in the training "
                         "split of this task. Expected some. Remedy: name the column with their paths under "
                         "`files: {mask_column: ...}`, and check the task's sources and where.")
    never = [name for name, seen in zip(task.outputs, np.isfinite(found[train]).any(axis=0), strict=True) if not seen]
    if never:
        raise LabelError(f"column {task.columns[0]}: found no training row that lists {', '.join(never)}. Expected "
                         "every class to be looked for in some. Remedy: correct `classes` or the column.")


def _refuse_unknown_as_class(task: Task, classes: Sequence[str]) -> None:
    """Tables say in several ways that a label is not known; as a class of its own it would be learnt."""
    found = [name for name in classes if name.lower() in UNKNOWN_WORDS]
    if "-1" in classes and all(name.isdecimal() for name in classes if name != "-1"):
        found.append("-1")
    if found:
        raise LabelError(f"column {task.columns[0]}: found {', '.join(found)}, which often means that a label is not "
                         "known, and would be a class of its own. Remedy: empty these cells, or list `classes` with or "
                         "without it.")


def _refuse_absent_classes(task: Task, texts: np.ndarray, quote: bool) -> None:
    found = set(texts) - {""}
    absent = [name for name in task.classes if canonical(name) not in found]
    if absent:
        others = ", ".join(sorted(found)[:20]) if quote else f"{len(found)} other values" if found else ""
        raise LabelError(f"column {task.columns[0]}: found no row of class {', '.join(absent)}; it holds "
                         f"{others or 'nothing'}. Expected every one of `classes` to occur. "
                         "Remedy: correct `classes`, or the task's sources and where.")
