"""Files over https, by the standard library and not through fsspec: only so can redirects, the address that was really
connected to, and where credentials go be looked at before anything is sent."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import netrc
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.intake.transfer import BLOCK, Again, NotFetched, Opened, Transfer, Wanted


@dataclass
class _Response:
    response: Any
    start: int
    etag: str
    size: int | None

    def blocks(self) -> Iterator[bytes]:
        with self.response:
            try:
                while block := self.response.read(BLOCK):
                    yield block
            except (OSError, http.client.HTTPException) as fault:
                raise Again(f"the connection broke ({type(fault).__name__})") from fault


def open_at(wanted: Wanted, begun: int, tag: str, how: Transfer) -> Opened | None:
    """Ask for a file from byte `begun` of version `tag` on, or for all of it where it is another version by now. None:
    the version of `wanted.etag` is still the current one.

    Raises:
        NotFetched: refused. Again: worth another try.
    """
    request = urllib.request.Request(wanted.url, headers={"Accept-Encoding": "identity", "User-Agent": "lacuna"})
    if begun:
        request.add_header("Range", f"bytes={begun}-")
        if tag:
            request.add_header("If-Range", tag)
    elif wanted.etag:
        request.add_header("If-None-Match", wanted.etag)
    host = urlsplit(wanted.url).hostname or ""
    login = _login(host)
    if login:  # "unredirected": urllib leaves it out of a request that a redirect makes
        request.add_unredirected_header("Authorization", login)
    redirects = _Redirects(hosts={host, *wanted.hosts})
    opener = urllib.request.build_opener(redirects, _Http(), _Https())
    try:
        response = opener.open(request, timeout=how.seconds)
    except urllib.error.HTTPError as fault:
        fault.close()
        if fault.code == 304:
            return None
        raise _answer(fault, begun) from None
    except (OSError, http.client.HTTPException) as fault:
        if isinstance(fault, NotFetched):
            raise
        inner = getattr(fault, "reason", fault)
        if isinstance(inner, NotFetched):
            raise inner from fault
        raise Again(f"no connection ({type(inner).__name__})") from fault
    start = begun if response.status == 206 and _starts_at(response.headers.get("Content-Range", ""), begun) else 0
    if response.status == 206 and not start:
        raise NotFetched("download: the server sent another part than was asked for")
    length = response.headers.get("Content-Length")
    etag = response.headers.get("ETag", "")
    size = start + int(length) if length and length.isdigit() else None
    return _Response(response, start, "" if etag.startswith("W/") else etag, size)


def _answer(fault: urllib.error.HTTPError, begun: int) -> Exception:
    if fault.code == 416 and begun:
        return NotFetched("download: the file is shorter now than what an earlier try has fetched of it")
    if fault.code in (408, 425, 429) or fault.code >= 500:
        wait = fault.headers.get("Retry-After", "") if fault.headers else ""
        return Again(f"the server answered {fault.code}", float(wait) if wait.isdigit() else 0.0)
    return NotFetched(f"download: the server answered {fault.code}")


def _starts_at(content_range: str, begun: int) -> bool:
    return content_range.startswith(f"bytes {begun}-")


def _login(host: str) -> str:
    """What ~/.netrc (or NETRC) says of just this host."""
    path = Path(os.environ.get("NETRC", "") or Path.home() / ".netrc")
    if not path.is_file():
        return ""
    try:
        found = netrc.netrc(str(path)).hosts.get(host)
    except netrc.NetrcParseError as fault:
        raise NotFetched(f"credentials: the netrc file has an error in line {fault.lineno}") from None
    return "Basic " + base64.b64encode(f"{found[0]}:{found[2]}".encode()).decode() if found else ""


@dataclass
class _Redirects(urllib.request.HTTPRedirectHandler):
    hosts: set[str] = field(default_factory=set)

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme != old.scheme or (new.hostname or "") not in self.hosts:
            raise NotFetched("download: the server sends us to another host or scheme, which is not followed")
        if new.hostname == old.hostname and new.port != old.port:
            raise NotFetched("download: the server sends us to another port, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def refuse_address(text: str, encrypted: bool) -> None:
    """Refuse what no data server has: addresses of the link (cloud metadata lies there), of groups, of nothing; and any
    unencrypted connection that leaves this machine.

    Raises:
        NotFetched: such an address.
    """
    address = ipaddress.ip_address(text.split("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_link_local or address.is_multicast or address.is_unspecified or str(address) == "fd00:ec2::254":
        raise NotFetched("download: the host has an address that is no server's (link-local, multicast or empty)")
    if not encrypted and not address.is_loopback:
        raise NotFetched("download: http:// is for this machine alone; expected https://")


def _looked_at(connection: Any, encrypted: bool) -> None:
    """After connecting and before sending: what the name said a moment ago does not count."""
    if connection.sock.family in (socket.AF_INET, socket.AF_INET6):
        try:
            refuse_address(connection.sock.getpeername()[0], encrypted)
        except NotFetched:
            connection.close()
            raise


class _HttpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _looked_at(self, encrypted=False)


class _HttpsConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _looked_at(self, encrypted=True)


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_HttpsConnection, req)
