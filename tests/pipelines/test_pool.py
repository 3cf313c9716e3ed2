"""What may be learnt from without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from domains.publish import write_text
from domains.store import LEAKS, open_prepared, replace_columns
from pipelines.training.pool import pool_rows
from tests.fabricate import prepare


def test_nothing_is_learnt_from_whose_group_is_held_out_or_that_repeats_what_is(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "data")
    before = open_prepared(folder)
    split, group, source = ([str(value) for value in before.column(name)] for name in ("split", "group", "source"))
    unlabelled = [i for i, one in enumerate(split) if one == "unlabelled"]
    shared, copied = unlabelled[0], unlabelled[2]
    group[shared] = group[split.index("val")]                                # another film of a patient who is held out
    replace_columns(folder, {"group": group})
    keys = [str(key) for key in before.column("key")]
    write_text(folder / LEAKS, "key_a,split_a,key_b,split_b,what,score\n"
               f"{keys[copied]},unlabelled,{keys[split.index('test')]},test,exact,1.00000\n")
    prepared = open_prepared(folder)
    wanted = [i for i, one in enumerate(split) if one in ("train", "unlabelled") and i not in (shared, copied)]
    assert pool_rows(prepared, ()).tolist() == wanted
    assert pool_rows(prepared, (), ("unlabelled",)).tolist() == [i for i in wanted if split[i] == "unlabelled"]
    assert pool_rows(prepared, ("a",), ("train",)).tolist() == [
        i for i in wanted if split[i] == "train" and source[i] == "a"]
    held = {group[i] for i, one in enumerate(split) if one in ("val", "test")}
    assert not held & {group[i] for i in pool_rows(prepared, ())}
    with pytest.raises(ValueError, match="found no sample of splits unlabelled and sources z"):
        pool_rows(prepared, ("z",), ("unlabelled",))
    assert np.array_equal(pool_rows(prepared, ()), np.sort(pool_rows(prepared, ())))
