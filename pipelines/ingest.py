"""Stage `ingest`: raw files and a manifest -> data/prepared/<name>, once. Everything after works from there."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm  # type: ignore[import-untyped]

from domains import contract as contracts
from domains import duplicates, joining, labels, pseudonyms, seal, statistics
from domains.contract import Contract
from domains.duplicates import Signed
from domains.joining import Joined
from domains.manifest import Files, Manifest, read_manifest
from domains.outcome import Outcome
from domains.publish import DiskFull, folder_in_the_making, write_text
from domains.quarantine import Limits, Reader, read_all
from domains.rows import column_of
from domains.sample import ManifestRow, Piece, Task
from domains.splits import Splits, assert_no_group_is_cut, assign
from domains.store import LEAKS, Prepared, Writer, open_prepared, replace_columns
from pipelines.intake import contact_sheet, data_summary, mask_counts, refusals
from pipelines.intake.engine import Engine, reading, reading_here
from pipelines.intake.nameless import nameless
from pipelines.intake.remote import Read, Remote, Source, is_url
from pipelines.settings import build, plain
from pipelines.tracking import lineage, tracking
from pipelines.training.resources import disk_free, memory, size_text, time_text

Item = TypeVar("Item")
SITE_CACHE = "core.site_cache_dir, /var/tmp/dvc where that is not set"
QUARANTINE = "quarantine.csv"
"""Every refused file: what it is called, its hash, and why."""
PROBES_PER_SOURCE, MAX_PROBES, PROBE_BYTES = 8, 64, 256 * 2**20
"""Files read ahead of the rest, for the plausibility check and the estimate: enough to see a source's units."""


@dataclass(frozen=True)
class DataRun:
    """One paragraph of `ingest` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose readers."""
    files: Files
    """Where the files are and what the manifest's columns are called."""
    read: dict[str, Any]
    """The domain's reader settings; `kind` says which reader."""
    tasks: dict[str, Task] = field(default_factory=dict)
    """What is to be predicted, by name. None: the data serves self-supervision only."""
    splits: Splits = field(default_factory=Splits)
    """How rows that come without a split are divided."""
    bad_files: float = 0.01
    """Share of refused files above which the stage fails at its end. One bad file never stops it."""
    limits: Limits = field(default_factory=Limits)
    """What one file may take before it is quarantined."""
    near_duplicates: float | None = None
    """Correlation of thumbnails from which on two samples in different splits are reported. null: what was measured to
    suit the kind of data (domains/duplicates.py). Above 1: near duplicates are not looked for."""
    remote: Remote = field(default_factory=Remote)
    """Where files.folder is a URL: what is kept, checked and allowed."""
    engine: Engine = field(default_factory=Engine)
    """Who reads the files: this machine, or a cluster."""
    leaks: Literal["join", "report", "refuse"] = "join"
    """What to do about samples that repeat each other. join: groups that do end in one split, where the split is ours
    to choose; what the manifest's own splits keep apart is reported, and stays out of the self-supervised pool. refuse:
    the same, and fail when any pair is left across splits. report: divide by groups alone, and report."""

    def __post_init__(self) -> None:
        refusals.check_share("bad_files", self.bad_files)

    @property
    def pseudonymous(self) -> bool:
        """Whether keyed hashes stand for paths and groups."""
        wanted = self.files.pseudonymise
        return self.domain == "medical" if wanted is None else wanted

    @property
    def told(self) -> Files:
        """`files` with `pseudonymise` as it is for this domain."""
        return dataclasses.replace(self.files, pseudonymise=self.pseudonymous)


class DomainReader(NamedTuple):
    """The modules of one domain that this stage needs, and its reader settings."""

    ingest: ModuleType
    """read, contract, suffixes, implausible"""
    picture: ModuleType
    """picture"""
    settings: Any
    """The type of the reader settings, or the union of them."""


class IngestFailed(ValueError):
    """The stage cannot publish what it made. The text says found, expected and remedy."""


def domain_reader(domain: str) -> DomainReader:
    """Import one domain and no other: reading films needs no satellite libraries, and depends on none of their code."""
    match domain:
        case "medical":
            from domains.medical import ingest, picture
            return DomainReader(ingest, picture, ingest.Settings)
        case "satellite":
            from domains.satellite import ingest as satellite
            from domains.satellite import picture as satellite_picture
            return DomainReader(satellite, satellite_picture, satellite.Multispectral)
        case "pointcloud":
            from domains.pointcloud import ingest as pointcloud
            from domains.pointcloud import picture as pointcloud_picture
            return DomainReader(pointcloud, pointcloud_picture, pointcloud.Settings)
    raise ValueError(f"domain: found {domain!r}, expected medical, satellite or pointcloud.")


def run(name: str, settings: DataRun, root: Path) -> dict[str, Any]:
    """Ingest and publish data/prepared/<name> and reports/ingest/<name>. Returns the metrics.

    Raises:
        ManifestError, LabelError, GroupCut, SettingsError, KeyProblem, IngestFailed, DiskFull, Fault: each a sentence
            for the user.
    """
    if not settings.pseudonymous:
        return _run(name, settings, root)
    with nameless(f"ingest {name}", [root / "data/prepared", root / "reports"]):
        return _run(name, settings, root)


def _run(name: str, settings: DataRun, root: Path) -> dict[str, Any]:
    began = time.monotonic()
    # Arrow's own allocator keeps what it was given back, by then 50 MB for an index of 20,000 rows.
    pa.set_memory_pool(pa.system_memory_pool())
    domain = domain_reader(settings.domain)
    read_settings = build(domain.settings, settings.read, f"ingest.{name}.read")
    source = Source(settings.told, settings.remote, root) if is_url(settings.files.folder) else None
    files = source.files if source else settings.told
    manifest = read_manifest(files, domain.ingest.suffixes(read_settings), root)
    manifest.refuse_strange_sources(_named_sources(settings))
    _say_filtered(name, manifest)
    rows, tasks, values = divide(manifest.rows, settings)  # before hours of reading, so that wrong labels end here
    if settings.pseudonymous and "DVC_STAGE" in os.environ and (root / settings.files.folder).is_dir():
        print(f"ingest {name}: DVC keeps the path of every raw file in its site cache ({SITE_CACHE}); `lacuna note` "
              "keeps them from it")
    # Splits are a function of the true names, so that another key moves no patient; all that is written has the others.
    named = pseudonyms.hide(rows, pseudonyms.read_key(lineage.store_root(root))) if settings.pseudonymous else rows
    contract = dataclasses.replace(domain.ingest.contract(read_settings), tasks=tasks)
    reader = Reader(domain.ingest.__name__, read_settings)
    target, report = root / "data/prepared" / name, root / "reports/ingest" / name
    with tracking.open_run(stage="ingest", name=name, root=root, settings=plain(settings), domain=settings.domain,
                           inputs=_inputs(files)) as tracked, reading_here() as here:
        probe(name, named, reader, domain, settings, target, _from(source, here))
        with folder_in_the_making(target) as folder:
            write_text(folder / "reader.json", json.dumps(plain(read_settings), indent=2) + "\n")
            read = _from(source, reading(settings.engine, root, here))
            refused, origins = _store(name, named, values, contract, reader, settings, folder, read)
            refusals.write_list(refused, folder / QUARANTINE, report / QUARANTINE)
            refusals.refuse_if_too_many(refused, len(rows), settings.bad_files, report / QUARANTINE)
            rows, joined, signed = _join(name, settings, manifest, rows, origins, folder)
            prepared, summary = _finish(name, settings, manifest, rows, refused, joined, signed, folder)
            contact_sheet.draw(prepared, domain.picture.picture, report / "contact_sheet.png")
            write_text(report / "splits.csv", data_summary.splits_table(prepared))
            seal.write(folder, prepared.digest, lambda files, total: bar(files, total, f"ingest {name}: sealing"))
            del prepared  # its memory maps name files in a folder that is about to be renamed
        metrics = {**data_summary.metrics(summary), "seconds": round(time.monotonic() - began, 1)}
        write_text(report / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        tracked.metrics(metrics)
        tracked.picture(report / "contact_sheet.png")
        tracked.table(report / "splits.csv")
    return metrics


def divide(rows: Sequence[ManifestRow], settings: DataRun, units: Mapping[str, str] | None = None
           ) -> tuple[Sequence[ManifestRow], dict[str, Task], dict[str, np.ndarray]]:
    """Rows with a split each, tasks with their classes, and per task the labels n k.

    Args:
        units: group -> unit, for groups that must end in one split.
    """
    to_stratify = {name: labels.codes(task, rows) for name, task in settings.tasks.items()}
    divided = assign(rows, settings.splits, settings.tasks, to_stratify, units)
    tasks = {name: labels.resolve(task, divided, quote=not settings.pseudonymous)
             for name, task in settings.tasks.items()}
    return divided, tasks, {name: labels.arrays(task, divided) for name, task in tasks.items()}


def _say_filtered(name: str, manifest: Manifest) -> None:
    for what, counts in manifest.filtered.items():
        shown = ", ".join(f"{which or '(empty)'} {count}" for which, count in list(counts.items())[:8])
        print(f"ingest {name}: left out by {what}: {shown}")
    for sentence in manifest.said():
        print(f"ingest {name}: {sentence}")


def _named_sources(settings: DataRun) -> dict[str, Sequence[str]]:
    return {**{f"read.{name}": tuple(settings.read.get(name, ())) for name in ("by_source", "y_up_sources")},
            **{f"tasks.{name}.sources": task.sources for name, task in settings.tasks.items()}}


def _inputs(files: Files) -> dict[str, str | None]:
    """What the run reads, for lineage: the manifest where there is one, else the folder."""
    return {files.manifest or files.folder: None}


def _from(source: Source | None, read: Read) -> Read:
    """`read`, of files that come from elsewhere meanwhile."""
    return partial(source.read, read=read) if source else read


# ---- before ----

def probe(name: str, rows: Sequence[ManifestRow], reader: Reader, domain: DomainReader, settings: DataRun,
          target: Path, read: Read = read_all) -> None:
    """Read a few files of every source: stop when they contradict the settings, and say what the rest will take."""
    chosen = _probe_rows(rows)
    began = time.monotonic()
    first = began
    by_source: dict[str, list[Piece]] = {}
    kept, peak = 0, 0
    sizes: dict[str, dict[int, int]] = {}
    reasons: list[str] = []
    for n, outcome in enumerate(read(chosen, reader, settings.limits)):
        first = time.monotonic() if n == 0 else first
        peak = max(peak, outcome.peak_bytes)
        sizes.setdefault(outcome.row.source, {}).setdefault(outcome.index, 0)
        sizes[outcome.row.source][outcome.index] += outcome.num_bytes
        if outcome.reason:
            reasons.append(outcome.reason)
        elif kept < PROBE_BYTES:
            kept += outcome.num_bytes
            by_source.setdefault(outcome.row.source, []).extend(outcome.pieces)
    if len(reasons) == len(chosen):
        common = Counter(reasons).most_common(1)[0][0]
        raise refusals.TooManyRefused(
            f"files: found none readable among {len(chosen)} tried ({common}). Expected files that "
            f"`read.kind: {settings.read.get('kind', '')}` takes. Remedy: check files.folder and read.")
    for source, pieces in sorted(by_source.items()):
        sentence = domain.ingest.implausible(pieces, reader.settings)
        if sentence:
            raise IngestFailed(f"{f'source {source}: ' if source else ''}{sentence}")
    per_file = (time.monotonic() - first) / max(1, len(chosen) - 1)
    of_source = Counter(column_of(rows, "source"))
    disk = sum(of_source[source] * float(np.mean(list(seen.values()))) for source, seen in sizes.items())
    _estimate(name, len(rows), per_file * len(rows), int(disk), peak * settings.limits.num_workers, target)


def _probe_rows(rows: Sequence[ManifestRow]) -> list[ManifestRow]:
    by_source: dict[str, list[int]] = {}
    for i, source in enumerate(column_of(rows, "source")):
        by_source.setdefault(source, []).append(i)
    chosen: list[ManifestRow] = []
    for source in sorted(by_source):
        of_source = by_source[source]
        picks = np.unique(np.linspace(0, len(of_source) - 1, min(PROBES_PER_SOURCE, len(of_source))).astype(int))
        chosen += [rows[of_source[i]] for i in picks]
    return chosen[:MAX_PROBES]


def _estimate(name: str, num_files: int, seconds: float, needed: int, peak: int, target: Path) -> None:
    free = disk_free(target)
    print(f"ingest {name}: {num_files} files, about {time_text(seconds)}, {size_text(needed)} of "
          f"disk ({size_text(free)} free), {size_text(peak)} of memory for reading ({size_text(memory()[0])} free)")
    if needed > free:
        raise DiskFull(f"disk: found {size_text(free)} free, expected {size_text(needed)}. Remedy: free some, or "
                       "ingest fewer sources or a smaller size.")


def bar(items: Iterable[Item], total: int, what: str) -> tqdm[Item]:
    """A progress bar on stderr; in a log it writes a line now and then."""
    return tqdm(items, total=total, desc=what, mininterval=0.5 if sys.stderr.isatty() else 30, leave=False)


# ---- reading ----

def _store(name: str, rows: Sequence[ManifestRow], values: dict[str, np.ndarray], contract: Contract, reader: Reader,
           settings: DataRun, folder: Path, read: Read = read_all) -> tuple[list[Outcome], np.ndarray]:
    """Read every file into the shards; returns the refused ones, and per sample the row that it came from."""
    writer = Writer(folder, contract.dtype, contract.tasks)
    refused, origins = [], array("q")
    outcomes = read(rows, reader, settings.limits)
    for outcome in bar(outcomes, len(rows), f"ingest {name}: reading"):
        i = outcome.index
        reason = outcome.reason or refusals.of_contract(outcome.pieces, contract)
        if reason:
            refused.append(dataclasses.replace(outcome, pieces=[], reason=reason))
            continue
        of_row = {task: array[i] for task, array in values.items()}
        for piece in outcome.pieces:
            writer.add(piece, outcome.row, of_row, outcome.sha256)
            origins.append(i)
    writer.close()
    contracts.save(contract, folder / "contract.json")
    return refused, np.array(origins, np.int64)


# ---- after ----

def _join(name: str, settings: DataRun, manifest: Manifest, rows: Sequence[ManifestRow], origins: np.ndarray,
          folder: Path) -> tuple[Sequence[ManifestRow], Joined, Signed | None]:
    """Divide again where groups repeat each other: only what was read can tell. Returns the rows with their splits, and
    the signatures of all samples if it took them."""
    ours = np.array([not split for split in column_of(manifest.rows, "split")], bool)[origins]
    if settings.leaks == "report" or not ours.any():
        return rows, Joined(), None
    prepared = open_prepared(folder, check_reads=False)
    near = _near(settings, prepared.contract)
    signed = _signed(name, prepared) if near <= 1 else None
    groups = column_of(rows, "group")
    joined = joining.join(prepared, [groups[i] for i in origins], ours, near, signed)
    for sentence in joined.said():
        print(f"ingest {name}: {sentence}")
    if not joined.units:
        return rows, joined, signed
    rows, tasks, values = divide(manifest.rows, settings, joined.units)
    contracts.save(dataclasses.replace(prepared.contract, tasks=tasks), folder / "contract.json")
    del prepared  # it has read the index that is replaced now
    splits = column_of(rows, "split")
    replace_columns(folder, {"split": [splits[i] for i in origins],
                             **{f"y.{task}": list(of_task[origins]) for task, of_task in values.items()}})
    return rows, joined, signed


def _signed(name: str, prepared: Prepared) -> Signed:
    title = f"ingest {name}: duplicates"
    return duplicates.signatures(prepared, lambda stacks, total: by_samples(stacks, total, title))


def _near(settings: DataRun, contract: Contract) -> float:
    return duplicates.NEAR[contract.kind] if settings.near_duplicates is None else settings.near_duplicates


def _finish(name: str, settings: DataRun, manifest: Manifest, rows: Sequence[ManifestRow], refused: Sequence[Outcome],
            joined: Joined, signed: Signed | None, folder: Path) -> tuple[Prepared, dict[str, Any]]:
    """Statistics, leaks and summary, from the shards themselves."""
    prepared = open_prepared(folder, check_reads=False)  # what was written a moment ago
    assert_no_group_is_cut(prepared.column("group"), prepared.column("split"))
    near = _near(settings, prepared.contract)
    leaks = duplicates.find(prepared, near, signed=signed or (_signed(name, prepared) if near <= 1 else None))
    write_text(folder / LEAKS, duplicates.table(prepared, [*leaks, *joined.links]))
    if leaks and settings.leaks == "refuse":
        write_text(folder.parent.parent.parent / "reports/ingest" / name / LEAKS, duplicates.table(prepared, leaks))
        raise IngestFailed(f"leaks: found {len(leaks)} pairs of samples that repeat each other across splits "
                           f"({data_summary.leak_counts(prepared, leaks)}), expected none. They are listed in {LEAKS} "
                           "of the report. Remedy: give both the same group, or set leaks: report.")
    contract, said = statistics.of_training(
        prepared, lambda stacks, total: by_samples(stacks, total, f"ingest {name}: statistics"))
    contracts.save(contract, folder / "contract.json")
    prepared = open_prepared(folder, check_reads=False)
    masks = mask_counts.mask_counts(prepared)
    for sentence in mask_counts.sentences(masks):
        print(f"ingest {name}: {sentence}")
    summary = {
        **data_summary.summarise(prepared, leaks,
                                 [*manifest.said(), *said, *joined.said(), *mask_counts.sentences(masks)]),
        "mask_pixels": masks,
        "files": len(rows), "quarantined": len(refused),
        "reasons": dict(Counter(outcome.reason for outcome in refused).most_common(20)), "filtered": manifest.filtered,
        "filtered_rows": sum(sum(counts.values()) for counts in manifest.filtered.values()),
        "group_by": settings.files.group_by,
        "repeats": {"near": near, **joined.record()},
        "other_values": {task: _countable(labels.other_values(prepared.contract.tasks[task], rows), settings)
                         for task in settings.tasks},
    }
    if summary["text_lines"]:
        print(f"ingest {name}: {summary['text_lines']} samples look as if text were burned into them, which may name "
              "the patient; read.burned_in: refuse keeps such out, and pictures of samples go to the tracking server")
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return prepared, summary


def _countable(counts: dict[str, int], settings: DataRun) -> dict[str, int]:
    """Values that are none of the classes: added up where names must not show, since a column may hold anything."""
    return {"(other)": sum(counts.values())} if counts and settings.pseudonymous else counts


def by_samples(stacks: Iterable[statistics.Stack], total: int, what: str) -> Iterable[statistics.Stack]:
    """A bar that counts samples while whole stacks go by."""
    with bar((), total, what) as progress:
        for rows, values in stacks:
            yield rows, values
            progress.update(len(rows))
