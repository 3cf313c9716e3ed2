from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from domains import labels
from domains.labels import LabelError
from domains.sample import UNKNOWN_CLASS, ManifestRow, Task


def rows(texts: list[str], splits: list[str] | None = None, **more: list[str]) -> list[ManifestRow]:
    sources = more.pop("source", [""] * len(texts))
    return [ManifestRow(Path(str(i)), str(i), f"g{i}", splits[i] if splits else "train", sources[i],
                        columns={"y": text, **{name: column[i] for name, column in more.items()}})
            for i, text in enumerate(texts)]


def test_an_empty_label_is_unknown_and_never_negative() -> None:
    for kind in ("multi_label", "regression"):
        found = labels.arrays(Task(kind, ("y",)), rows(["1", "", "0", "nan"]))
        assert np.array_equal(found.ravel(), [1, np.nan, 0, np.nan], equal_nan=True)
    found = labels.arrays(Task("single_label", ("y",), ("0", "1")), rows(["1", "", "0"]))
    assert np.array_equal(found.ravel(), [1, np.nan, 0], equal_nan=True)


@pytest.mark.parametrize("text", ["1", "1.0", " 1 ", "01", "1e0"])
def test_spellings_of_one_number_are_one_class(text: str) -> None:
    assert labels.arrays(Task("single_label", ("y",), ("0", "1")), rows([text])).item() == 1


@pytest.mark.parametrize("text", ["1_2", "12a", "0x0c", "\u0661\u0662", "inf", "1 2"])
def test_what_only_python_takes_for_a_number_stays_a_text(text: str) -> None:
    assert labels.canonical(text) == text
    with pytest.raises(LabelError, match="found 1 other values"):
        labels.arrays(Task("regression", ("y",)), rows([text]))


def test_long_numbers_are_not_rounded() -> None:
    assert labels.canonical("9007199254740993.0") == "9007199254740993" == labels.canonical("+09007199254740993")
    assert labels.canonical("-00") == "0" and labels.canonical("-012.") == "-12"


@pytest.mark.parametrize("values", [["a", "b", "NA"], ["a", "b", "n/a"], ["0", "1", "-1.0"], ["x", "?"]])
def test_a_word_for_not_known_does_not_become_a_class_by_itself(values: list[str]) -> None:
    with pytest.raises(LabelError, match="not known.* Remedy: empty these cells, or list `classes`"):
        labels.resolve(Task("single_label", ("y",)), rows(values))
    listed = tuple(values)
    assert labels.resolve(Task("single_label", ("y",), listed), rows(values)).classes == listed


def test_signed_grades_are_classes() -> None:
    assert labels.resolve(Task("single_label", ("y",)), rows(["-1", "0.5", "-2"])).classes == ("-2", "-1", "0.5")


def test_classes_come_from_the_training_split_in_order() -> None:
    task = Task("single_label", ("y",))
    assert labels.resolve(task, rows(["10", "9", "2.0"])).classes == ("2", "9", "10")
    assert labels.resolve(task, rows(["b", "a", "c"], ["train", "train", "test"])).classes == ("a", "b")


def test_a_value_that_is_no_class_is_unknown_and_counted() -> None:
    given = rows(["a", "b", "c", "c"], ["train", "train", "test", "val"])
    task = labels.resolve(Task("single_label", ("y",)), given)
    assert np.array_equal(labels.arrays(task, given).ravel(), [0, 1, np.nan, np.nan], equal_nan=True)
    assert labels.other_values(task, given) == {"c": 2}


def test_a_class_in_two_spellings_is_refused_unless_classes_are_listed() -> None:
    task, texts = Task("single_label", ("y",)), ["yes", "no", "Yes", "no"]
    with pytest.raises(LabelError, match="more than one way: 'Yes' and 'yes'"):
        labels.resolve(task, rows(texts))
    with pytest.raises(LabelError, match=r"more than one way\. Expected"):
        labels.resolve(task, rows(texts), quote=False)
    listed = dataclasses.replace(task, classes=("no", "yes"))
    assert labels.resolve(listed, rows(texts)).classes == ("no", "yes")


def test_a_class_that_no_row_has_is_refused() -> None:
    with pytest.raises(LabelError, match="found no row of class bengin"):
        labels.resolve(Task("single_label", ("y",), ("bengin", "malign")), rows(["benign", "malign"]))


def test_one_class_is_not_a_task() -> None:
    with pytest.raises(LabelError, match="found 1 classes"):
        labels.resolve(Task("single_label", ("y",)), rows(["a", "b"], ["train", "test"]))


def test_labels_of_other_sources_and_conditions_are_unknown() -> None:
    given = rows(["1", "1", "1", "0"], source=["s", "t", "s", "s"], valid=["1.0", "1.0", "0.0", "1"])
    task = Task("multi_label", ("y",), sources=("s",), where={"valid": "1"})
    assert np.array_equal(labels.arrays(task, given).ravel(), [1, np.nan, np.nan, 0], equal_nan=True)


def test_findings_are_zero_or_one_and_targets_are_finite() -> None:
    with pytest.raises(LabelError, match="expected 0, 1 or empty"):
        labels.arrays(Task("multi_label", ("y",)), rows(["-1"]))
    with pytest.raises(LabelError, match="expected a finite number"):
        labels.arrays(Task("regression", ("y",)), rows(["inf"]))
    with pytest.raises(LabelError, match="found 1 other values .first: row 1 of"):
        labels.arrays(Task("regression", ("y",)), rows(["many"]))


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(LabelError, match="expected also z"):
        labels.resolve(Task("multi_label", ("z",)), rows(["1"]))


def test_counts_tell_unknown_from_negative() -> None:
    task = Task("multi_label", ("y", "z"))
    assert labels.counts(task, np.array([[1, np.nan], [0, 1], [np.nan, np.nan]])) == {"y": 1, "z": 1, "unknown": 1}
    single = Task("single_label", ("y",), ("a", "b"))
    assert labels.counts(single, np.array([[1], [np.nan], [1]])) == {"a": 0, "b": 2, "unknown": 1}


def masked(split: str, listed: str = "", mask: bool = True, source: str = "") -> ManifestRow:
    return ManifestRow(Path("/a"), "a", "g", split, source, Path("/m") if mask else None, {"organs": listed})


ORGANS = Task("segmentation", ("organs",), ("rest", "left kidney", "Liver"))


def test_a_class_of_a_mask_is_known_where_it_was_looked_for_and_unknown_without_a_mask() -> None:
    given = [masked("train", "Liver; left kidney"), masked("train", "Liver"), masked("val", "left kidney,Liver", False)]
    np.testing.assert_array_equal(labels.arrays(ORGANS, given), [[1, 1], [np.nan, 1], [np.nan, np.nan]])
    every = dataclasses.replace(ORGANS, columns=())
    np.testing.assert_array_equal(labels.arrays(every, given), [[1, 1], [1, 1], [np.nan, np.nan]])
    one = dataclasses.replace(every, sources=("here",))
    given = [masked("train", source="here"), masked("train")]
    np.testing.assert_array_equal(labels.arrays(one, given), [[1, 1], [np.nan, np.nan]])


def test_masks_that_no_training_row_has_are_refused() -> None:
    with pytest.raises(LabelError, match="2 rows with a mask, none of them in the training split.*mask_column"):
        labels.resolve(ORGANS, [masked("test", "Liver"), masked("val", "Liver"), masked("train", mask=False)])
    with pytest.raises(LabelError, match="no training row that lists left kidney"):
        labels.resolve(ORGANS, [masked("train", "Liver")])


@pytest.mark.parametrize(("settings", "said"), [
    ({"classes": ("rest",)}, "at least one more"), ({"classes": ("a", "a")}, "different names"),
    ({"classes": ("a", "b"), "values": (0,)}, "a number from 0 to 254 for each"),
    ({"classes": ("a", "b"), "columns": ("x", "y")}, "found 2 for a segmentation task")])
def test_a_segmentation_task_that_means_nothing_is_refused(settings, said) -> None:
    with pytest.raises(ValueError, match=said):
        Task("segmentation", **settings)


def test_numbers_of_masks_become_classes_and_others_are_unknown() -> None:
    table = Task("segmentation", classes=("rest", "water", "built"), values=(7, 80, 0)).class_of()
    assert table[[7, 80, 0]].tolist() == [0, 1, 2]
    assert (np.delete(table, [7, 80, 0]) == UNKNOWN_CLASS).all()
