"""A domain in one module, so that the ingest stage is tested without any reading library: .npy files of grey squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from domains.contract import Channel, Contract
from domains.sample import ManifestRow, Piece, Refused


@dataclass(frozen=True)
class Squares:
    """Reader settings."""

    kind: Literal["squares"] = "squares"
    """Tells kinds apart."""
    size: tuple[int, int] = (8, 8)
    """What a model gets."""
    tiles: int = 1
    """Pieces per file."""
    brightest: int = 255
    """Brighter samples contradict the declared unit."""


Settings = Squares


def suffixes(settings: Squares) -> tuple[str, ...]:
    return (".npy",)


def contract(settings: Squares) -> Contract:
    grey = Channel("grey", "grey 0-255", low=0.0, high=float("nan"))
    return Contract("medical", "xray", (grey,), "uint8", settings.size)


def read(row: ManifestRow, settings: Squares) -> list[Piece]:
    try:
        values = np.load(row.path, allow_pickle=False)
    except ValueError as error:
        raise Refused("not a .npy file") from error
    mask = None if row.mask_path is None else np.load(row.mask_path, allow_pickle=False)
    if settings.tiles == 1:
        return [Piece(values, mask, {"shape": list(values.shape)})]
    return [Piece(np.ascontiguousarray(values), suffix=f"@{i}") for i in range(settings.tiles)]


def implausible(pieces: list[Piece], settings: Squares) -> str | None:
    brightest = max(int(piece.values.max()) for piece in pieces)
    if brightest > settings.brightest:
        return f"values: found {brightest}, expected at most {settings.brightest}. Remedy: set `brightest`."
    return None


def picture(values: np.ndarray, contract: Contract, known: np.ndarray | None = None) -> np.ndarray:
    return np.repeat(values[0][..., None], 3, axis=2)
