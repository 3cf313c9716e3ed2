"""`lacuna verify`: are prepared data and checkpoints still what was written, and is what was written sound?

Prepared data: every byte against the seal, every sample against its hash, index and shards against each other, groups
against splits, repeats across splits against leaks.csv, statistics against the training rows, the contract against the
reader's settings. Checkpoints: every byte, and that the model can be rebuilt from them.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from domains import contract as contracts
from domains import duplicates, integrity, seal, statistics
from domains.contract import Contract
from domains.seal import DamagedData, Seal, hash_file
from domains.store import LEAKS, Prepared
from pipelines.ingest import bar, by_samples, domain_reader
from pipelines.settings import build
from pipelines.weights.checkpoints import RECORD, WEIGHTS, load_encoder, read_record
from pipelines.weights.tuned_checkpoints import load_tuned

TOLERANCE = 1e-5
"""Difference of a statistic, in standard deviations of its channel, that is let pass: another processor sums in another
order."""
MAX_NAMED = 20
"""Faults of one sort that are listed; the rest is counted."""


@dataclass
class Verdict:
    """What was found in one folder."""

    where: str
    checked: list[str] = field(default_factory=list)
    """What was looked at and found right, in a few words each."""
    notes: list[str] = field(default_factory=list)
    """Worth knowing, no fault."""
    faults: list[str] = field(default_factory=list)
    """found, expected."""
    remedy: str = ""

    def text(self) -> str:
        """The verdict as printed."""
        lines = [f"{self.where}: {self._in_short()}"
                 + (f" ({', '.join(self.checked)})" if self.checked else "")]
        lines += [f"  {fault}" for fault in self.faults[:MAX_NAMED]]
        lines += [f"  and {len(self.faults) - MAX_NAMED} more"] if len(self.faults) > MAX_NAMED else []
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, *([f"  remedy: {self.remedy}"] if self.faults and self.remedy else [])])

    def _in_short(self) -> str:
        return "sound" if not self.faults else "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"


def verify(names: Sequence[str], root: Path, quick: bool = False) -> tuple[str, bool]:
    """Check what `names` stand for: folders, or runs (data/prepared/NAME and artifacts/*/NAME). None: all there is.

    Args:
        quick: bytes, index and splits alone; no search for repeats and no statistics, which compute on every sample.

    Returns:
        The text to print, and whether all is sound.

    Raises:
        FileNotFoundError: a name stands for nothing.
    """
    verdicts = [prepared_verdict(folder, root, quick) if (folder / "index.parquet").exists() or _is_data(folder, root)
                else checkpoint_verdict(folder, root) for folder in _folders(names, root)]
    return "\n".join(verdict.text() for verdict in verdicts), not any(verdict.faults for verdict in verdicts)


def _folders(names: Sequence[str], root: Path) -> list[Path]:
    """Prepared folders and checkpoint folders, in order and once each."""
    found: dict[Path, None] = {}
    for name in names or [""]:
        starts = [Path(name)] if name and (root / name).is_dir() else [
            Path("data/prepared") / name, *(folder.relative_to(root) / name for folder in
                                            sorted((root / "artifacts").glob("*")))]
        here = [folder for start in starts for folder in _below(root / start, root)]
        if not here:
            raise FileNotFoundError(f"verify: found neither prepared data nor a checkpoint for {name or 'this project'}"
                                    ". Expected a folder that `lacuna ingest`, `pretrain`, `finetune` or `import` "
                                    "wrote, or the name of its run.")
        found.update(dict.fromkeys(here))
    return list(found)


def _below(start: Path, root: Path) -> Iterator[Path]:
    if not start.is_dir():
        return
    if start == root / "data/prepared":
        yield from sorted(folder for folder in start.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    elif (start / "index.parquet").exists() or _is_data(start, root):
        yield start
    yield from sorted(path.parent for path in start.rglob(RECORD))


def _is_data(folder: Path, root: Path) -> bool:
    """A prepared folder, even when it has lost its index."""
    return folder.parent == root / "data/prepared"


# ---- prepared data ----

def prepared_verdict(folder: Path, root: Path, quick: bool = False) -> Verdict:
    """What is wrong with a prepared folder; see `verify`."""
    verdict = Verdict(_shown(folder, root))
    sealed = _check_bytes(folder, verdict)
    digest = sealed.digest if sealed else ""
    try:
        prepared = Prepared(folder, check_reads=False, check_seal=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        verdict.faults.append(f"cannot be opened: {error}")
    else:
        digest = digest or prepared.digest  # when only the seal is damaged, the data itself still tells
        _check_content(prepared, verdict, quick)
    verdict.remedy = "copy the folder again from where it is whole, or run `lacuna ingest` again."
    runs = made_from(digest, root) if verdict.faults and digest else []
    if runs:
        verdict.notes.append(f"made from this data: {', '.join(runs)}. What they learnt before it was damaged stands; "
                             "make again what is younger than the damage.")
    return verdict


def _check_bytes(folder: Path, verdict: Verdict) -> Seal | None:
    try:
        sealed = seal.read(folder)
    except DamagedData as error:
        verdict.faults.append(str(error))
        return None
    if sealed is None:
        verdict.faults.append(f"{seal.SEAL}: found none, expected the one that `lacuna ingest` writes; bytes can be "
                              "compared with the index alone")
        return None
    title = f"verify {folder.name}: bytes"
    verdict.faults += seal.damaged(folder, sealed, progress=lambda names, total: bar(names, total, title))
    strange = sorted(set(seal.files(folder)) - set(sealed.hashes))
    verdict.faults += [f"{name}: found a file that was not sealed" for name in strange]
    if not verdict.faults:
        verdict.checked.append(f"{len(sealed.hashes)} files")
    return sealed


def _check_content(prepared: Prepared, verdict: Verdict, quick: bool) -> None:
    title = f"verify {prepared.folder.name}"

    def check(what: str, look: Callable[[], list[str]]) -> bool:
        found = _or_fault(look, what)
        verdict.faults.extend(found)
        verdict.checked.extend([] if found else [what])
        return not found

    whole = check(f"{len(prepared)} samples", lambda: _sample_faults(prepared, f"{title}: samples"))
    check("index", lambda: integrity.index_faults(prepared))
    check("splits", lambda: integrity.cut_group_faults(prepared))
    check("contract", lambda: _contract_faults(prepared))
    if quick or not whole:
        verdict.notes.append("statistics and repeats across splits were not looked at"
                             + ("" if whole else ": there are damaged samples"))
        return
    check("statistics", lambda: _statistics_faults(prepared))
    check("no unlisted repeat", lambda: _repeat_faults(prepared, verdict))


def _sample_faults(prepared: Prepared, title: str) -> list[str]:
    rows = integrity.damaged_samples(prepared, lambda all_rows, total: bar(all_rows, total, title))
    return [f"sample {i} (row {i} of index.parquet, {prepared.place(i)}): found other bytes than were written"
            for i in rows]


def _or_fault(look: Callable[[], list[str]], what: str) -> list[str]:
    """A check that meets what it cannot even read has found a fault, and must not end the others."""
    try:
        return look()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{what}: cannot be checked ({error})"]


def _expected_contract(prepared: Prepared) -> Contract:
    """The contract before its statistics, from the reader's settings."""
    domain = domain_reader(prepared.contract.domain)
    raw = json.loads((prepared.folder / "reader.json").read_text())
    made: Contract = domain.ingest.contract(build(domain.settings, raw, "reader.json"))
    return dataclasses.replace(made, tasks=prepared.contract.tasks, statistics_of=prepared.contract.statistics_of)


def _contract_faults(prepared: Prepared) -> list[str]:
    found, expected = prepared.contract, _expected_contract(prepared)
    faults = [f"contract: {name} found {getattr(found, name)}, expected {getattr(expected, name)} by reader.json"
              for name in (f.name for f in dataclasses.fields(found) if f.name != "channels")
              if repr(getattr(found, name)) != repr(getattr(expected, name))]
    names = [(channel.name, channel.unit, channel.wavelength_nm) for channel in found.channels]
    if names != [(channel.name, channel.unit, channel.wavelength_nm) for channel in expected.channels]:
        faults.append(f"contract: channels found {', '.join(found.names)}, expected {', '.join(expected.names)} with "
                      "their units and wavelengths by reader.json")
    for channel in found.channels:
        numbers = (channel.low, channel.high, channel.mean, channel.std)
        if not all(map(math.isfinite, numbers)) or channel.std <= 0 or channel.low > channel.high:
            faults.append(f"contract: channel {channel.name} found low, high, mean, std {numbers}, expected finite "
                          "numbers, low below high, std above 0")
    return faults


def _statistics_faults(prepared: Prepared) -> list[str]:
    stored, title = prepared.contract, f"verify {prepared.folder.name}: statistics"
    unmeasured = prepared.unchecked()
    unmeasured.contract = _expected_contract(prepared)
    measured, _ = statistics.of_training(unmeasured, lambda stacks, total: by_samples(stacks, total, title))
    faults = [] if measured.statistics_of == stored.statistics_of else [
        "statistics: found those of other samples than the training rows that the index has now"]
    for found, expected in zip(stored.channels, measured.channels, strict=True):
        faults += [f"statistics: {name} of {found.name} found {getattr(found, name):g}, expected "
                   f"{getattr(expected, name):g} from the training rows" for name in ("low", "high", "mean", "std")
                   if not abs(getattr(found, name) - getattr(expected, name)) <= TOLERANCE * expected.std]
    return faults


def _repeat_faults(prepared: Prepared, verdict: Verdict) -> list[str]:
    title = f"verify {prepared.folder.name}: repeats"
    summary: dict[str, Any] = json.loads((prepared.folder / "summary.json").read_text())
    near = summary.get("repeats", {}).get("near")
    found = duplicates.find(prepared, near, lambda stacks, total: by_samples(stacks, total, title))
    with (prepared.folder / LEAKS).open(newline="", encoding="utf-8") as file:
        listed = {(line["key_a"], line["key_b"], line["what"]) for line in csv.DictReader(file)}
    keys = prepared.texts("key", sorted({row for leak in found for row in (leak.a, leak.b)}))
    unlisted = [leak for leak in found if (keys[leak.a], keys[leak.b], leak.what) not in listed]
    if len(found) > len(unlisted):
        verdict.notes.append(f"{len(found) - len(unlisted)} pairs of samples repeat each other across splits; they are "
                             f"listed in {LEAKS}")
    return [f"repeats: rows {leak.a} and {leak.b} of index.parquet hold the same ({leak.what}, {leak.score:.4f}) in "
            f"different splits, and {LEAKS} does not list them" for leak in unlisted]


def made_from(digest: str, root: Path) -> list[str]:
    """Checkpoints under artifacts/ that were trained on data of this digest, or started from one that was."""
    records = {}
    for path in sorted((root / "artifacts").rglob(RECORD)):
        try:
            records[_shown(path.parent, root)] = json.loads(path.read_text())
        except ValueError:
            continue  # a damaged record: checking that folder itself says so
    tainted = {name for name, record in records.items() if record.get("provenance", {}).get("data_digest") == digest}
    while True:
        weights = {records[name].get("weights_sha256") for name in tainted}
        more = {name for name, record in records.items()
                if record.get("provenance", {}).get("start_weights") in weights - {None}} - tainted
        if not more:
            return sorted(tainted)
        tainted |= more


# ---- checkpoints ----

def checkpoint_verdict(folder: Path, root: Path) -> Verdict:
    """What is wrong with a checkpoint folder: bytes, weights that cannot be read or do not fill the model."""
    verdict = Verdict(_shown(folder, root), remedy="copy the folder again from where it is whole, or make it again.")
    try:
        sealed = seal.read(folder)
        verdict.faults += seal.damaged(folder, sealed) if sealed else []
        record = read_record(folder)
        # What has just been compared with the seal has the seal's hash: weights are large, and read once.
        compared = sealed.hashes.get(WEIGHTS) if sealed and not verdict.faults else None
        if (compared or hash_file(folder / WEIGHTS)) != record.get("weights_sha256"):
            verdict.faults.append(f"{WEIGHTS}: found another hash than {RECORD} has")
        if "encoder" in record and "adapter" not in record:
            (load_tuned if record.get("kind") == "tuned" else load_encoder)(folder)
        contracts.load(folder / "contract.json")
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            bad = [name for name in file.keys() if not file.get_tensor(name).isfinite().all()]  # the file is no mapping
            verdict.checked.append(f"{len(list(file.keys()))} tensors")
        verdict.faults += [f"{WEIGHTS}: found numbers that are not finite in {', '.join(bad[:3])}"] if bad else []
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        verdict.faults.append(f"cannot be loaded: {error}")
    return verdict


def _shown(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
