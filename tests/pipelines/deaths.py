"""A machine that goes down in the middle of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MEASURED = 3
"""Steps that are done for the estimate, before the first of the training."""


@contextmanager
def dies_at(call: int, owner: Any, name: str) -> Iterator[None]:
    """What is run inside dies when `owner.name` is called for the so-many-th time (from 1); afterwards it is as it
    was. Fails where what is run lives on."""
    real, calls = getattr(owner, name), []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("the machine went down")
        return real(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="the machine went down"):
        patch.setattr(owner, name, dies)
        yield
