"""`lacuna fetch`: a name or an address to a folder here."""

from __future__ import annotations

from pathlib import Path

from pipelines.ingest import bar
from pipelines.intake.public_data import fetch_named, listing
from pipelines.intake.remote import fetch_folder, is_url
from pipelines.intake.transfer import Transfer


def fetch_any(what: str, out: Path | None, mirror: str = "", download: bool = True, checksums: str = ""
              ) -> tuple[str, bool]:
    """Returns what to print, and whether all came.

    Raises:
        ValueError, NotFetched, ArchiveRefused: sentences for the user.
    """
    if not what:
        return listing(), True
    if not is_url(what):
        return fetch_named(what, out or Path("data/raw") / what, mirror, download, bar=bar)
    if out is None:
        raise ValueError("fetch: found an address without --out, expected the folder to copy to.")
    number, failures = fetch_folder(what, out, checksums, Transfer(), bar)
    failed = [f"NOT FETCHED: {len(failures)}; the same command tries them again", *failures[:20]] if failures else []
    return "\n".join([*failed, f"{number} files: {out}"]), not failures
