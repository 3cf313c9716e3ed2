"""A domain's own reader, and whether its process has imported torch; runs in the children that the tests start."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from typing import Any

from domains.sample import ManifestRow, Piece


@dataclass(frozen=True)
class Witness:
    """Which reader."""

    module: str
    settings: Any


def read(row: ManifestRow, settings: Witness) -> list[Piece]:
    """The reader's pieces, with the fact `torch`."""
    pieces: list[Piece] = importlib.import_module(settings.module).read(row, settings.settings)
    return [dataclasses.replace(piece, facts={**piece.facts, "torch": int("torch" in sys.modules)}) for piece in pieces]
