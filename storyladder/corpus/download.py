"""How one file comes over plain HTTPS whole: resumed, retried, and checked by size and SHA-256.

Knows HTTP and what can go wrong on the way. Does not know which files there are, what for, or what they end up as.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from storyladder.runtime.errors import DownloadError

BLOCK_BYTES = 1 << 20
ATTEMPTS = 6  # in a row without a byte more than ever before; the waits between them are 1, 2, 4, 8 and 16 s
LONGEST_WAIT_S = 120.0
JSON_MAX_BYTES = 4 << 20  # the hub's listings of our corpora are below 10 kB
T = TypeVar("T")


class Hiccup(Exception):
    """A failure that may pass; `wait_s` is what the server asked for in Retry-After."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RangeRefused(Hiccup):
    """The server cannot go on from where the part ends: begin again at zero."""


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects (they keep the Range header) to http and https only, and never from https down to http."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know 308

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise urllib.error.HTTPError(req.full_url, code, f"redirect to {newurl} refused", headers, fp)
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)


@dataclass(frozen=True, kw_only=True)
class Link:
    """The connection to a server: how patient it is, whom it tells, what it advises, and when it leaves."""

    advice: str  # ends every message about the server: what to type next
    timeout_s: float  # without a byte
    stop_requested: Callable[[], bool]
    progress: bool
    say: Callable[[str], None]
    sleep: Callable[[float], None]
    # proxies come from the environment, as everywhere in urllib
    opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(SafeRedirects))

    def check_stop(self) -> None:
        if self.stop_requested():
            raise KeyboardInterrupt

    def open(self, address: str, byte_range: str | None = None) -> http.client.HTTPResponse:
        """The answer to one GET; a Hiccup for what may pass, a DownloadError for what will not."""
        headers = {"User-Agent": "storyladder"} | ({"Range": f"bytes={byte_range}"} if byte_range else {})
        try:
            request = urllib.request.Request(address, headers=headers)
            response: http.client.HTTPResponse = self.opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                if error.code == 416:
                    raise RangeRefused(f"{address} has no bytes {byte_range} (HTTP 416)") from None
                if error.code in (408, 425, 429) or error.code >= 500:
                    raise Hiccup(f"{address} answered HTTP {error.code}", _retry_after_s(error)) from None
                raise DownloadError(f"{address} answered HTTP {error.code} ({_reason(error)}); {self.advice}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Hiccup(f"{address} could not be reached ({_reason(error)})") from None
        return response

    def read_json(self, address: str) -> Any:
        """The JSON document at an address, asked for patiently; a DownloadError when none comes."""

        def attempt() -> Any:
            with self.open(address) as response:
                text = _read(response.read, JSON_MAX_BYTES + 1)
            if len(text) > JSON_MAX_BYTES:
                raise Hiccup(f"{address} answered with more than {JSON_MAX_BYTES:,} bytes, expected a short listing")
            try:
                return json.loads(text)
            except (ValueError, RecursionError) as error:
                raise Hiccup(f"{address} answered with something that is not JSON ({error})") from None

        return self.patiently(attempt, lambda: 0)

    def patiently(self, attempt: Callable[[], T], reached_bytes: Callable[[], int]) -> T:
        """Repeat an attempt, with growing waits, until it succeeds or has stopped making progress."""
        failures, furthest = 0, reached_bytes()
        while True:
            try:
                return attempt()
            except Hiccup as hiccup:
                failures = 1 if reached_bytes() > furthest else failures + 1
                furthest = max(furthest, reached_bytes())
                if failures >= ATTEMPTS:
                    raise DownloadError(f"{hiccup}, {ATTEMPTS} times in a row; {self.advice}") from None
                wait_s = min(max(2.0 ** (failures - 1), hiccup.wait_s), LONGEST_WAIT_S)
                self.say(f"{hiccup}; trying again in {wait_s:.0f} s")
                self.pause(wait_s)

    def pause(self, wait_s: float) -> None:
        """Wait, but notice within a quarter of a second that the user wants to leave."""
        while wait_s > 0:
            self.check_stop()
            self.sleep(min(wait_s, 0.25))
            wait_s -= 0.25


def _retry_after_s(error: urllib.error.HTTPError) -> float:
    """Seconds from Retry-After; its rare date form is left to the growing waits."""
    value = error.headers.get("Retry-After", "").strip()
    return float(value) if re.fullmatch("[0-9]{1,9}", value) else 0.0


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(inner).split()) or type(inner).__name__


def _read(read: Callable[[int], bytes], most_bytes: int) -> bytes:
    """Read from the network, so that an OSError that leaves this module is always the disk's."""
    try:
        return read(most_bytes)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Hiccup(f"the connection broke ({_reason(error)})") from None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The first `first_bytes` of a file of `total_bytes`; with `first_bytes` None, all of it, with this SHA-256."""

    address: str
    total_bytes: int
    sha256: str
    first_bytes: int | None = None

    @property
    def length(self) -> int:
        return self.total_bytes if self.first_bytes is None else self.first_bytes


@dataclass
class _Part:
    """The bytes of a file that have come so far, and their SHA-256."""

    file: IO[bytes]
    length: int
    digest: Any

    def append(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)
        self.length += len(block)

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.length, self.digest = 0, hashlib.sha256()


@contextlib.contextmanager
def _open_part(path: Path, wanted: Wanted, link: Link) -> Iterator[_Part]:
    """The part as an earlier run left it, hashed up to its end; fsynced when it has become whole."""
    with path.open("a+b") as file:
        part = _Part(file, file.seek(0, os.SEEK_END), hashlib.sha256())
        if part.length > wanted.length:
            part.restart()
        file.seek(0)
        part.digest = _digest(file, part.length, link.check_stop)
        yield part
        file.flush()
        os.fsync(file.fileno())


def _digest(file: IO[bytes], length: int, check_stop: Callable[[], None]) -> Any:
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(BLOCK_BYTES, length))):
        check_stop()
        digest.update(block)
        length -= len(block)
    return digest


def sha256_of(path: Path, check_stop: Callable[[], None]) -> str:
    """The SHA-256 of a local file."""
    with path.open("rb") as file:
        return str(_digest(file, path.stat().st_size, check_stop).hexdigest())


def fetch(link: Link, wanted: Wanted, part_path: Path) -> None:
    """Fill `part_path` with what is wanted; a wrong SHA-256 gets one more chance, from zero, then a DownloadError.

    Only the length of a beginning (`first_bytes`) can be checked. Anything but a wrong SHA-256 keeps what has come.
    """
    for last_chance in (False, True):
        got = _receive_all(link, wanted, part_path)
        if wanted.first_bytes is not None or got == wanted.sha256:
            return
        part_path.unlink()
        message = f"{wanted.address} came with SHA-256 {got}, expected {wanted.sha256}"
        if last_chance:
            raise DownloadError(f"{message}; {link.advice}")
        link.say(f"{message}: once more from zero")


def _receive_all(link: Link, wanted: Wanted, part_path: Path) -> str:
    """Bring the part to its full length, over as many connections as that takes; its SHA-256."""
    looks: dict[str, Any] = {"desc": part_path.stem, "unit": "B", "unit_scale": True}
    hidden = None if link.progress else True  # None: shown on a terminal, hidden in a log file
    with (
        _open_part(part_path, wanted, link) as part,
        tqdm(total=wanted.length, initial=part.length, disable=hidden, **looks) as bar,
    ):
        link.patiently(lambda: _receive(link, wanted, part, bar), lambda: part.length)
        return str(part.digest.hexdigest())


def _receive(link: Link, wanted: Wanted, part: _Part, bar: Any) -> None:
    """One connection: append to the part what it yields, never more than is wanted."""
    if part.length == wanted.length:
        return
    ranged = part.length > 0 or wanted.first_bytes is not None
    try:
        with link.open(wanted.address, f"{part.length}-{wanted.length - 1}" if ranged else None) as response:
            if _first_byte(response, part.length, wanted) < part.length:
                part.restart()
            while part.length < wanted.length:
                link.check_stop()
                block = _read(response.read1, min(BLOCK_BYTES, wanted.length - part.length))
                if not block:
                    raise Hiccup(f"the connection closed after {part.length:,} of {wanted.length:,} bytes")
                part.append(block)
                bar.update(part.length - bar.n)
    except RangeRefused:
        part.restart()
        raise


def _first_byte(response: http.client.HTTPResponse, asked: int, wanted: Wanted) -> int:
    """Where in the file the body begins; refuses a file of another size before the part is touched."""
    if response.status == 206:
        span = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", span)
        if match is None or int(match[1]) != asked:
            raise RangeRefused(f"{wanted.address} answered with Content-Range {span!r}, expected it from byte {asked}")
        first, announced = asked, match[2]
    else:
        first, announced = 0, response.headers.get("Content-Length", "*")
    if announced not in ("*", str(wanted.total_bytes)):
        raise Hiccup(
            f"{wanted.address} is announced with {announced} bytes, expected {wanted.total_bytes} (is there a log-in "
            "page in between?)"
        )
    return first


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Tell a disk's refusal (the only OSError that gets here) as a DownloadError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            wrong = f"the disk of {folder} is full ({error}); what has come is kept: free some space"
        else:
            wrong = f"cannot keep files in {folder} ({error}), expected a folder that can be written: mend that"
        raise DownloadError(f"{wrong} and run the same command again") from error
