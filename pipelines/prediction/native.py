"""Native files through a checkpoint: what predict, embed and the registered model share.

Files are read in limited child processes by the reader that the checkpoint's data was read with, brought to the size
and scale that its contract says, and run in batches. A file that cannot be used gives a reason instead of numbers.

Legend: B batch, O outputs or features, p pieces of one file.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains import contract as contracts
from domains.contract import Contract
from domains.outcome import Outcome
from domains.quarantine import Limits, Reader, fault, read_all
from domains.sample import ManifestRow
from domains.seal import hash_file
from models.adapters.token_merging import merge_tokens
from models.encoder.flexible_patches import check_sizes, cut_at
from models.encoder.patches import Features
from models.encoder.transformer import mean_of_valid
from models.heads.tuned import Tuned
from pipelines.prediction.test_time import TestTime, adapted, batches_of
from pipelines.settings import build
from pipelines.training.batches import DomainCode, domain_code
from pipelines.weights import checkpoints
from pipelines.weights.tuned_checkpoints import load_tuned, probabilities

BATCH_SIZE = 32
"""Pieces that a model sees at once."""
SLICES = (".dcm", ".dicom", "")
"""Endings of the files of a DICOM series; many have none."""


@dataclass(frozen=True)
class Edits:
    """What is done to an encoder after it was loaded, to use it in another way; the checkpoint stays as it is, and so
    does the temperature, which was fitted without this."""

    merge_tokens: int = 0
    """Tokens fewer after every block (models/adapters/token_merging); 0: none, the same answers to the bit."""
    patch: tuple[int, ...] = ()
    """Cut patches of this size (models/encoder/flexible_patches); empty: the checkpoint's own."""

    def apply(self, encoder: Any, size: Sequence[int]) -> None:
        """Edit an encoder for samples of `size`. Raises ValueError where it cannot be."""
        if self.patch:
            check_sizes((self.patch,), encoder.settings, size)
            cut_at(encoder, self.patch)
        merge_tokens(encoder, self.merge_tokens)


UNEDITED = Edits()


@dataclass(frozen=True)
class Read:
    """What a checkpoint's model said of one file."""

    row: ManifestRow
    values: np.ndarray
    """p O; empty when refused."""
    suffixes: tuple[str, ...]
    """What tells the pieces apart, one per row of `values`."""
    sha256: str
    """Of the file; empty where there is none."""
    reason: str = ""
    """Why the file was refused; empty when it was not."""


@dataclass(frozen=True)
class Native:
    """A checkpoint, ready for files."""

    folder: Path
    identity: str
    """Changes with anything that could change an answer: weights, temperature, reader, contract, edits."""
    record: dict[str, Any]
    """checkpoint.json; `task` is a domains.sample.Task where there is one."""
    contract: Contract
    reader: Reader
    ingest: ModuleType
    code: DomainCode
    device: torch.device
    answer: Callable[[Tensor, Tensor | None], Tensor] = field(repr=False)
    """(x, known) -> B O: probabilities or numbers of a tuned checkpoint."""
    features: Callable[[Tensor, Tensor | None], Tensor] = field(repr=False)
    """(x, known) -> B E: what a head would see."""
    model: Tuned | None = field(default=None, repr=False)
    """The tuned model itself; None of a pretrained encoder."""

    def read(self, rows: Sequence[ManifestRow], call: Callable[[Tensor, Tensor | None], Tensor],
             limits: Limits | None = None, batch_size: int = BATCH_SIZE) -> Iterator[Read]:
        """One result per row, in the rows' order."""
        parts: list[Read] = []
        for read, more in self._parts(rows, call, limits or Limits(), batch_size):
            parts.append(read)
            if not more:
                yield _together(parts)
                parts = []

    def read_together(self, rows: Sequence[ManifestRow], way: TestTime,
                      limits: Limits | None = None) -> tuple[list[Read], str]:
        """One result per row, in the rows' order, and what was adapted: the model is adapted to all files that can be
        read, then answers them. Every answer depends on the other files. All pieces are held in memory.

        Raises:
            ValueError: fewer than two pieces, or a way that means nothing here.
        """
        if self.model is None:
            raise ValueError(f"{self.folder}: found a pretrained encoder, expected a tuned checkpoint (with a head). "
                             "Run `lacuna finetune` from it first.")
        waiting = [(outcome, *self._fetch(outcome)) for outcome in read_all(rows, self.reader, limits or Limits())]
        pieces = [piece for _, of_file, _ in waiting for piece in of_file]
        if len(pieces) < 2:
            raise ValueError(f"{way.kind}: found {'one' if pieces else 'no'} sample, expected at least two: an answer "
                             "is adapted to what else is asked about. Give more files, or leave --test-time out.")
        found = adapted(self.model, float(self.record.get("temperature", 1.0)),
                        lambda size: (self._batch(pieces[first:last]) for first, last in batches_of(len(pieces), size)),
                        way)
        reads, parts = [], []
        for read, more in _per_file(waiting, found.answers):
            parts.append(read)
            if not more:
                reads.append(_together(parts))
                parts = []
        return reads, found.said

    def _batch(self, pieces: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """Fetched pieces on the device, normalised."""
        return self.normalise(torch.from_numpy(np.stack(pieces)).to(self.device))

    def normalise(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw values on the device -> (x, known)."""
        pair: tuple[Tensor, Tensor | None] = self.code.dataset.normalise(raw, self.contract)
        return pair

    def _parts(self, rows: Sequence[ManifestRow], call: Callable[[Tensor, Tensor | None], Tensor], limits: Limits,
               batch_size: int) -> Iterator[tuple[Read, bool]]:
        """What was said of each part of a file, and whether another part follows."""
        waiting: list[tuple[Outcome, list[np.ndarray], str]] = []
        for outcome in read_all(rows, self.reader, limits):
            waiting.append((outcome, *self._fetch(outcome)))
            if sum(len(pieces) for _, pieces, _ in waiting) >= batch_size:
                yield from self._run(waiting, call, batch_size)
                waiting = []
        yield from self._run(waiting, call, batch_size)

    def _fetch(self, outcome: Outcome) -> tuple[list[np.ndarray], str]:
        """The pieces at the model's size, or a reason."""
        if outcome.reason:
            return [], outcome.reason
        unlike = next(filter(None, (fault(piece, self.contract.dtype, len(self.contract.channels),
                                          2 if self.contract.kind == "points" else len(self.contract.size) + 1,
                                          self.contract.unknown) for piece in outcome.pieces)), "")
        if unlike:
            return [], unlike
        try:
            return [self.code.dataset.fetch(piece.values, self.contract, None) for piece in outcome.pieces], ""
        except ValueError as error:  # a shape that this model's size does not go with
            return [], str(error)

    @torch.no_grad()
    def _run(self, waiting: Sequence[tuple[Outcome, list[np.ndarray], str]],
             call: Callable[[Tensor, Tensor | None], Tensor], batch_size: int) -> Iterator[tuple[Read, bool]]:
        pieces = [piece for _, of_file, _ in waiting for piece in of_file]
        answers = [call(*self._batch(pieces[first:first + batch_size])).float().cpu().numpy()
                   for first in range(0, len(pieces), batch_size)]
        yield from _per_file(waiting, np.concatenate(answers) if answers else np.empty((0, 0), np.float32))


def _per_file(waiting: Sequence[tuple[Outcome, list[np.ndarray], str]],
              values: np.ndarray) -> Iterator[tuple[Read, bool]]:
    """The answers to all pieces, dealt out to their files; and whether another part of the file follows."""
    at = 0
    for outcome, of_file, reason in waiting:
        own = values[at:at + len(of_file)]
        at += len(of_file)
        if not reason and not np.isfinite(own).all():
            own, reason = own[:0], "the model's answer is not finite"
        suffixes = tuple(piece.suffix for piece in outcome.pieces) if not reason else ()
        yield Read(outcome.row, own, suffixes, outcome.sha256, reason), outcome.more


def _together(parts: Sequence[Read]) -> Read:
    """One result for a file that came in parts; refused as a whole when any of them is."""
    reason = next((part.reason for part in parts if part.reason), "")
    if reason:
        return Read(parts[0].row, parts[0].values[:0], (), parts[0].sha256, reason)
    if len(parts) == 1:
        return parts[0]
    values = np.concatenate([part.values for part in parts if len(part.values)])
    return Read(parts[0].row, values, tuple(suffix for part in parts for suffix in part.suffixes), parts[0].sha256)


def open_checkpoint(folder: str | Path, device: str = "auto", need_head: bool = True,
                    edits: Edits = UNEDITED) -> Native:
    """Load a checkpoint for use on files.

    Args:
        need_head: False also takes a pretrained encoder, which has features but no answers.

    Raises:
        CheckpointError, ContractMismatch, SettingsError, ImportError, ValueError: each a sentence for the user.
    """
    folder = Path(folder)
    record = checkpoints.read_record(folder)
    found = hash_file(folder / checkpoints.WEIGHTS)
    if found != record["weights_sha256"]:
        raise checkpoints.CheckpointError(
            f"{folder}/{checkpoints.WEIGHTS}: found sha256 {found[:12]}, expected {record['weights_sha256'][:12]}. The "
            "file was changed or cut short after it was written. Copy or make it again.")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    place = torch.device(automatic if device == "auto" else device)
    model: Tuned | None = None
    if need_head or record.get("kind") == "tuned":
        model, answer, contract, record = _tuned(folder, place, edits)
        features = model.features
    else:
        answer, features, contract = _pretrained(folder, place, edits)
    ingest, reader = reader_of(record, folder)
    # The files will be read as these settings say, so what they make must be what the weights know.
    bands = contract.kind == "multispectral"
    contracts.enforce(ingest.contract(reader.settings), contract, subset_of_channels=bands)
    return Native(folder, identity(folder, edits), record, contract, reader, ingest, domain_code(record["domain"]),
                  place, answer, features, model)


def _tuned(folder: Path, device: torch.device, edits: Edits) -> tuple[Tuned, Any, Contract, dict[str, Any]]:
    model, contract, record = load_tuned(folder)
    model.to(device)
    if edits != UNEDITED:
        edits.apply(model.encoder, contract.size)
    kind, temperature = record["task"].kind, float(record.get("temperature", 1.0))
    return model, (lambda x, known: probabilities(kind, model(x, known), temperature)), contract, record


def _pretrained(folder: Path, device: torch.device, edits: Edits) -> tuple[Any, Any, Contract]:
    loaded = checkpoints.load_encoder(folder)
    encoder = loaded.encoder.to(device).eval()
    if edits != UNEDITED:
        edits.apply(encoder, loaded.contract.size)

    def features(x: Tensor, known: Tensor | None) -> Tensor:
        """-> B E"""
        out: Features = encoder(encoder.tokenizer.patchify(x, known))
        return mean_of_valid(out.tokens, out.valid)

    return features, features, loaded.contract


def reader_of(record: dict[str, Any], folder: Path) -> tuple[ModuleType, Reader]:
    """The domain's ingest module and the settings that the checkpoint's data was read with."""
    if record.get("kind") == "imported":
        raise checkpoints.CheckpointError(f"{folder}: found imported weights, which have seen no files here, expected "
                                          "weights that were trained on ingested data. Pretrain or fine-tune from them "
                                          "first.")
    if not record.get("reader"):
        raise checkpoints.CheckpointError(
            f"{folder}/{checkpoints.RECORD}: found no `reader`, expected the settings that its data was read with. "
            "Ingest the data again with this release and train from it, so that files can be read in the same way.")
    code = domain_code(record["domain"])  # refuses a name that is no domain before it is imported
    ingest = importlib.import_module(code.dataset.__name__.replace(".dataset", ".ingest"))
    wanted = typing.get_type_hints(ingest.contract)["settings"]
    settings = build(wanted, record["reader"], f"{folder}/{checkpoints.RECORD}: reader")
    return ingest, Reader(ingest.__name__, settings)


def identity(folder: Path, edits: Edits = UNEDITED) -> str:
    """A hash over checkpoint.json (which holds the hash of the weights, temperature and reader), contract.json and what
    was done to the encoder, if anything."""
    digest = hashlib.sha256()
    for name in (checkpoints.RECORD, checkpoints.CONTRACT):
        digest.update((folder / name).read_bytes() + b"\0")
    if edits != UNEDITED:
        digest.update(repr(edits).encode())
    return digest.hexdigest()


# ---- which files

def rows_of(inputs: Sequence[str | Path], native: Native, source: str = "") -> list[ManifestRow]:
    """Every file that the inputs name: files as they are, folders searched for what the reader takes, and CSV manifests
    with a column `path` (relative to the manifest) and what the reader needs: `source`, `mask_path`, names of bands.

    Raises:
        ValueError: nothing there.
    """
    rows: dict[Path, ManifestRow] = {}
    for text in inputs:
        path = Path(text)
        if path.suffix.lower() == ".csv":
            found = _from_manifest(path, source)
        elif path.is_dir() and not _is_one_sample(path, native):
            found = [row_of(file, source, within=path.absolute()) for file in _below(path, native, path.resolve())]
        else:
            found = [row_of(path, source, within=path.absolute() if path.is_dir() else None)]
        rows.update({row.path: row for row in found})
    if not rows:
        kinds = ", ".join(ending or "(no ending)" for ending in native.ingest.suffixes(native.reader.settings))
        raise ValueError(f"inputs: found no file for {native.contract.kind} in {', '.join(map(str, inputs))}, expected "
                         f"names that end in {kinds}. Name files or the folder that holds them.")
    return list(rows.values())


def row_of(path: Path, source: str, columns: dict[str, str] | None = None, within: Path | None = None) -> ManifestRow:
    """A file as the readers take it; it is called what the user called it. Links beside it may not leave `within`."""
    return ManifestRow(path=path.absolute(), key=path.as_posix(), group="", split="", source=source,
                       columns=columns or {}, within=within)


def _from_manifest(path: Path, source: str) -> list[ManifestRow]:
    if not path.is_file():
        raise ValueError(f"inputs: found no file {path}, expected a CSV with a column `path`.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file)
        if "path" not in (lines.fieldnames or []):
            raise ValueError(f"{path}: found columns {', '.join(lines.fieldnames or []) or 'none'}, expected one "
                             "called path. Name the column of the files so.")
        rows = [row_of(path.parent / line["path"], source or line.get("source") or "",
                       {name: cell or "" for name, cell in line.items() if name}) for line in lines]
    masks = [row.columns.get("mask_path", "") for row in rows]
    return [dataclasses.replace(row, mask_path=(path.parent / mask).absolute()) if mask else row
            for row, mask in zip(rows, masks, strict=True)]


def _below(folder: Path, native: Native, top: Path) -> Iterator[Path]:
    """What lies below a folder, in an order that does not depend on the disk; a folder that is one sample counts as
    one. Links to folders are not gone into: what they lead to lies here anyway, or is refused by the link's name."""
    endings = tuple(ending for ending in native.ingest.suffixes(native.reader.settings) if ending not in ("", "/"))
    bare = "" in native.ingest.suffixes(native.reader.settings) and native.contract.domain == "medical"
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and path.is_symlink():
            yield from [] if path.resolve().is_relative_to(top) else [path]
        elif path.is_dir():
            yield from [path] if _is_one_sample(path, native) else _below(path, native, top)
        elif path.name.lower().endswith(endings) or (bare and _ending(path) == ""):
            yield path


def _is_one_sample(folder: Path, native: Native) -> bool:
    """A folder with the slices of a DICOM series, or with one file per band."""
    match native.contract.kind:
        case "ct":
            return any(file.is_file() and _ending(file) in SLICES and not file.name.startswith(".")
                       for file in folder.iterdir())
        case "multispectral":
            from domains.satellite import bands
            sensor = native.reader.settings.sensor  # type: ignore[attr-defined]
            found = [bands.of_file(file.stem, sensor) for file in folder.iterdir()
                     if file.suffix.lower() in (".tif", ".tiff", ".jp2")]
            return len(found) > 1 and None not in found and len(set(found)) > 1
        case _:
            return False


def _ending(path: Path) -> str:
    """DICOM exports are often named by number alone (1.2.840.113...), which is no ending."""
    ending = path.suffix.lower()
    return "" if ending[1:].isdigit() else ending
