"""`lacuna embed`: features of native files, as Parquet. One row per piece: a file that is cut into tiles has several.

Legend: n pieces, E width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm  # type: ignore[import-untyped]

from domains.publish import sync_file, sync_folder
from domains.quarantine import Limits
from pipelines.intake.refusals import check_share
from pipelines.prediction.native import UNEDITED, Edits, Native, Read, open_checkpoint, rows_of
from pipelines.prediction.refused import code_of

Numbered = tuple[int, Read]
"""A file that was refused, with its number among the files, from 1."""


def embed(checkpoint: str | Path, inputs: Sequence[str | Path], *, source: str = "", limits: Limits | None = None,
          device: str = "auto", edits: Edits = UNEDITED) -> tuple[list[str], np.ndarray]:
    """Features of native files.

    Args:
        checkpoint: a pretrained checkpoint folder (mean of the encoder's patches), or a tuned one (what its head sees).
        inputs: files, folders, or CSV manifests with a column `path`.
        source: the hospital or sensor, for readers that treat sources differently.
        edits: merge tokens, which is faster, or cut patches of another size; neither by default.

    Returns:
        Keys (the path, and for tiles the piece) and features n E float32, in the inputs' order. Refused files are left
        out and said on stderr, by their number among the files.
    """
    _, done, refused = _read(checkpoint, inputs, source, limits, device, edits)
    for sentence in _said(refused):
        print(f"embed: {sentence}", file=sys.stderr)
    keys = [read.row.key + suffix for read in done for suffix in read.suffixes]
    return keys, np.concatenate([read.values for read in done]) if done else np.empty((0, 0), np.float32)


def embed_to_parquet(checkpoint: str | Path, inputs: Sequence[str | Path], out: Path, *, source: str = "",
                     limits: Limits | None = None, device: str = "auto", edits: Edits = UNEDITED,
                     bad_files: float = 0.0) -> int:
    """Write columns key, path, sha256 and features (a list of E numbers). Returns 0, or 3 when more than the share
    `bad_files` of the files were refused, or all of them; then nothing is written."""
    check_share("--bad-files", bad_files)
    native, done, refused = _read(checkpoint, inputs, source, limits, device, edits)
    print(f"embed: {len(done)} files done, {len(refused)} refused")
    for sentence in _said(refused):
        print(f"  {sentence}")
    if not done:
        return code_of(len(refused), len(refused), bad_files)
    features = np.concatenate([read.values for read in done]).astype(np.float32)
    pieces = [(read, suffix) for read in done for suffix in read.suffixes]
    table = pa.table({
        "key": [read.row.key + suffix for read, suffix in pieces],
        "path": [read.row.key for read, _ in pieces],
        "sha256": [read.sha256 for read, _ in pieces],
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1]),
    }).replace_schema_metadata({"checkpoint": native.identity, "kind": native.contract.kind})
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        sync_file(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.parent)
    print(f"  {len(pieces)} rows of {features.shape[1]} numbers: {out}")
    return code_of(len(refused), len(done) + len(refused), bad_files)


def _said(refused: Sequence[Numbered]) -> list[str]:
    """Files by number: a screen is often logged, and a name may be a patient's."""
    return [f"refused file {number}: {read.reason}" for number, read in refused]


def _read(checkpoint: str | Path, inputs: Sequence[str | Path], source: str, limits: Limits | None,
          device: str, edits: Edits) -> tuple[Native, list[Read], list[Numbered]]:
    native = open_checkpoint(checkpoint, device, need_head=False, edits=edits)
    rows = rows_of(inputs, native, source)
    bar = tqdm(native.read(rows, native.features, limits), total=len(rows), desc="embed", leave=False,
               mininterval=0.5 if sys.stderr.isatty() else 30)
    reads = list(bar)
    return native, [read for read in reads if not read.reason], [
        (number, read) for number, read in enumerate(reads, start=1) if read.reason]
