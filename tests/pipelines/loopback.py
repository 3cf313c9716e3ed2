"""A web server on this machine that does to files what servers do: parts, versions, redirects, faults, lies."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Site:
    """What the server has, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path without the leading slash."""
    redirects: dict[str, str] = field(default_factory=dict)
    """Path -> address."""
    break_after: dict[str, int] = field(default_factory=dict)
    """Path -> bytes after which the connection ends; once."""
    busy: dict[str, int] = field(default_factory=dict)
    """Path -> how often 503 is answered first."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """(path, headers) of every request."""
    queries: dict[str, bytes] = field(default_factory=dict)
    """Answers by path and query, where both count."""
    url: str = ""

    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [path for path, _ in self.asked]


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve a site on a free port; its address is in `site.url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, site)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, site: Site) -> None:
    """One GET."""
    path, _, query = request.path[1:].partition("?")
    site.asked.append((path, dict(request.headers)))
    if path in site.redirects:
        request.send_response(302)
        request.send_header("Location", site.redirects[path])
        request.end_headers()
        return
    if site.busy.get(path, 0) > 0:
        site.busy[path] -= 1
        request.send_response(503)
        request.end_headers()
        return
    content = site.queries.get(f"{path}?{query}", site.files.get(path))
    if content is None:
        request.send_error(404)
        return
    tag = f'"{hashlib.md5(content).hexdigest()}"'
    if request.headers.get("If-None-Match") == tag:
        request.send_response(304)
        request.end_headers()
        return
    begin = 0
    asked = request.headers.get("Range")
    if asked and request.headers.get("If-Range", tag) == tag:
        begin = int(asked.removeprefix("bytes=").rstrip("-"))
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
    else:
        request.send_response(200)
    request.send_header("ETag", tag)
    request.send_header("Content-Length", str(len(content) - begin))
    request.end_headers()
    rest = content[begin:]
    request.wfile.write(rest[:site.break_after.pop(path)] if path in site.break_after else rest)
