"""`lacuna where`: from pseudonyms back to files and groups, for whoever has the manifest and the key.

Nothing is stored for it: the manifest is read again and its names are hashed again, so there is no table of names to
guard beside the manifest itself. This is the one command that prints names, and only because it is asked to.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from domains.manifest import read_manifest
from domains.pseudonyms import Key, read_key
from domains.sample import ManifestRow
from domains.splits import pseudonym
from pipelines import ingest
from pipelines.commands.own_table import MANIFESTS
from pipelines.ingest import QUARANTINE, DataRun
from pipelines.intake.remote import Source, is_url
from pipelines.settings import SettingsError, build, load_run
from pipelines.tracking import lineage


class Unknown(ValueError):
    """A code that stands for nothing in this run."""


def where(name: str, codes: Sequence[str], root: Path) -> str:
    """The file or files of each code: a sample's key, a file's or a group's pseudonym, or the short one of a message.
    Without codes: the files in quarantine, each with its hash and reason.

    Raises:
        Unknown: a code that no file or group of the manifest has under this key.
        FileNotFoundError: no quarantine list. ManifestError, KeyProblem, SettingsError.
    """
    settings = _settings(name, root)
    key = read_key(lineage.store_root(root)) if settings.pseudonymous else None
    reader = ingest.domain_reader(settings.domain)
    endings = reader.ingest.suffixes(build(reader.settings, settings.read, f"ingest.{name}.read"))
    remote = is_url(settings.files.folder)
    files = Source(settings.told, settings.remote, root).files if remote else settings.told
    rows = read_manifest(files, endings, root).rows
    return "\n".join(_quarantined(name, rows, key, root) if not codes else _found(name, rows, key, codes))


def _settings(name: str, root: Path) -> DataRun:
    """Of params.yaml, or of a run that `lacuna finetune DOMAIN` made of somebody's folder."""
    saved = root / MANIFESTS / f"{name}.yaml"
    try:
        return load_run("ingest", name, DataRun, root)
    except SettingsError:
        if not saved.is_file():
            raise
        return build(DataRun, yaml.safe_load(saved.read_text())["ingest"][name], f"{saved}: ingest.{name}")


def _names(row: ManifestRow, key: Key | None) -> Iterator[str]:
    """What a file or its group is called in what was made of it."""
    file, group = (key.of_file(row.key), key.of_group(row.group)) if key else (row.key, row.group)
    yield from dict.fromkeys((file, group, pseudonym(group), pseudonym(file)))


def _found(name: str, rows: Sequence[ManifestRow], key: Key | None, codes: Sequence[str]) -> list[str]:
    by_name: dict[str, list[ManifestRow]] = {}
    for row in rows:
        for called in _names(row, key):
            by_name.setdefault(called, []).append(row)
    lines = []
    for code in codes:
        # The pieces of one file have a suffix behind an @.
        found = by_name.get(code) or by_name.get(code.rpartition("@")[0])
        if not found:
            raise Unknown(f"{code}: found no file or group of ingest.{name} that it stands for"
                          f"{f' under key {key.id}' if key else ''}, expected a key, group or pseudonym of that run. "
                          "Remedy: name the run that it comes from, and use the key and the manifest that it was "
                          "ingested with.")
        lines += [f"{code}\t{row.path}\tgroup {row.group}" for row in found]
    return lines


def _quarantined(name: str, rows: Sequence[ManifestRow], key: Key | None, root: Path) -> list[str]:
    lists = [folder / name / QUARANTINE for folder in (root / "data/prepared", root / "reports/ingest")]
    path = next((path for path in lists if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"ingest.{name}: found no {QUARANTINE}, expected the one that `lacuna ingest {name}` "
                                "writes. Run it first, or name the pseudonyms to look up.")
    of_key = {(key.of_file(row.key) if key else row.key): row for row in rows}
    with path.open(newline="", encoding="utf-8") as file:
        lines = [f"{of_key[line['path']].path if line['path'] in of_key else line['path']}\t{line['sha256']}\t"
                 f"{line['reason']}" for line in csv.DictReader(file)]
    return lines or [f"ingest {name}: no file is in quarantine"]
