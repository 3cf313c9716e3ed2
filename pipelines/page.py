"""One HTML page that needs no other file: text, tables and pictures, for whoever has no more than a browser."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left}img{max-width:100%}
pre{background:#f5f5f5;padding:1rem;overflow:auto}.beware{background:#fff3cd;padding:.5rem 1rem}"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page.

    Args:
        parts: what `heading`, `text`, `strong`, `warning`, `table`, `picture` and `verbatim` give, in order.
    """
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
            f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n" + "\n".join(parts)
            + "\n</body></html>\n")


def heading(said: str) -> str:
    """A heading under the title."""
    return f"<h2>{html.escape(said)}</h2>"


def text(said: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(said)}</p>"


def strong(said: str) -> str:
    """A paragraph that says what was found."""
    return f"<p><strong>{html.escape(said)}</strong></p>"


def warning(said: str) -> str:
    """A paragraph that nobody should overlook."""
    return f'<p class="beware">{html.escape(said)}</p>'


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the names of their columns, in the order in which they first occur; nothing without rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in names) + "</tr>\n"
                   for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>" if rows else ""


def picture(path: Path, meaning: str) -> str:
    """A PNG inside the page; nothing where there is no such file.

    Args:
        meaning: for who cannot see it.
    """
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(meaning)}" src="data:image/png;base64,{content}">'


def verbatim(said: str) -> str:
    """Text as it is, in letters of one width."""
    return f"<pre>{html.escape(said)}</pre>"
