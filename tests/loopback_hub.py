"""A hub on loopback that speaks what huggingface_hub asks of one, and can be told to drop, truncate, lie or refuse."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO, REVISION = "some/stories", "ab" * 20


@dataclass
class Answer:
    """One answer out of the ordinary; what is None or empty is as a sound hub would have it."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stops_after: int | None = None  # bytes of the body
    resets: bool = False
    stalls: bool = False
    interrupts: bool = False  # after its last byte the program that asked gets a signal; stalls
    ignores_range: bool = False
    without_length: bool = False


LOGIN_PAGE = Answer(
    status=200, headers={"Content-Type": "text/html"}, body=b"<html>Please log in.</html>", ignores_range=True
)


@functools.cache
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    """One dataset at one revision: `files` by path. The lists hold the answers to the next requests of a kind."""

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.repo, self.revision, self.prefix = REPO, REVISION, ""
        self.files: dict[str, bytes] = {}
        self.listed: dict[str, dict[str, Any]] = {}  # what the listing says otherwise of a file
        self.token: str | None = None  # that every request must carry
        self.gated = False
        self.has_xet = False
        self.script: list[Answer] = []  # to GETs of files
        self.heads: list[Answer] = []
        self.listings: list[Answer] = []
        self.requests: list[str] = []  # all of them: METHOD path
        self.asked: list[tuple[str, str | None]] = []  # GETs of files: path in the dataset, Range
        self.user_agents: set[str] = set()
        self.tokens: set[str | None] = set()
        self.bytes_sent = 0  # of files
        self.may_interrupt: Callable[[], bool] = lambda: True  # whether what was sent has arrived
        self.interrupt: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGINT)
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path, body in self.files.items():
            lfs = {"sha256": sha256(body), "size": len(body), "pointerSize": 134}
            lfs |= self.listed.get(path, {})
            siblings.append({"rfilename": path, "size": lfs["size"], "blobId": "0" * 40, "lfs": lfs})
        return {"id": self.repo, "sha": self.revision, "siblings": siblings, "tags": [], "private": False}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may leave early: that is no error of the test."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    disable_nagle_algorithm = True  # else each small answer waits 40 ms for an acknowledgement

    def do_HEAD(self) -> None:
        self._serve(self.server.heads)

    def do_GET(self) -> None:
        self._serve(self.server.listings if "/api/datasets/" in self.path else self.server.script)

    def _serve(self, script: list[Answer]) -> None:
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        hub.user_agents.add(self.headers.get("User-Agent", ""))
        hub.tokens.add(self.headers.get("Authorization"))
        is_file = self.command == "GET" and "/api/datasets/" not in self.path
        if is_file:
            hub.asked.append((self.path.rpartition(f"/{hub.revision}/")[2], self.headers.get("Range")))
        answer = script.pop(0) if script else Answer()
        status, headers, body = self._sound()
        if answer.body is not None:
            status, headers, body = 200, {}, answer.body
        span = self.headers.get("Range")
        if span and status == 200 and not answer.ignores_range:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", span).groups()
            end = min(int(last) + 1 if last else len(body), len(body))
            if int(first) >= len(body):
                status, body = 416, b""
            else:
                status, headers["Content-Range"] = 206, f"bytes {first}-{end - 1}/{len(body)}"
                body = body[int(first) : end]
        if not answer.without_length:
            headers["Content-Length"] = str(len(body))
        self.send_response(answer.status or status)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body[: answer.stops_after]
        self.wfile.write(sent)
        hub.bytes_sent += len(sent) if is_file else 0
        self._leave(answer)

    def _leave(self, answer: Answer) -> None:
        if answer.interrupts:
            while not self.server.may_interrupt() and not self.server.closing.wait(0.01):
                pass
            self.server.interrupt()
        if answer.stalls or answer.interrupts:
            self.server.closing.wait(5)
        if answer.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)

    def _sound(self) -> tuple[int, dict[str, str], bytes]:
        """What a sound hub answers: status, headers and body."""
        hub = self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).removeprefix(f"{hub.prefix}/")
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._refused(401, "GatedRepo" if hub.gated else "RepoNotFound")
        if path.startswith("cdn/"):
            return 200, {}, hub.files[path.removeprefix("cdn/")]
        match = re.fullmatch(r"(api/)?datasets/([\w-]+/[\w-]+)/(revision|resolve)/(\w+)(?:/(.*))?", path)
        if match is None or match[2] != hub.repo or match[4] != hub.revision:
            return self._refused(404, "RevisionNotFound" if match and match[2] == hub.repo else "RepoNotFound")
        if match[3] == "revision":
            return 200, {"Content-Type": "application/json"}, json.dumps(hub.listing()).encode()
        if match[5] not in hub.files:
            return self._refused(404, "EntryNotFound")
        body = hub.files[match[5]]
        headers = {"X-Repo-Commit": hub.revision, "ETag": f'"{sha256(body)}"'}
        headers |= {"X-Linked-Size": str(len(body)), "X-Linked-Etag": headers["ETag"], "Accept-Ranges": "bytes"}
        if hub.has_xet:
            headers |= {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": "/xet-token"}
            headers["Link"] = f'<{hub.address}/xet-token>; rel="xet-auth"'
        return 200, headers, body

    def _refused(self, status: int, code: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"X-Error-Code": code, "X-Error-Message": "no"}, b'{"error": "no"}'

    def log_message(self, format: str, *args: Any) -> None:
        pass


def self_signed(path: Path) -> Path:
    """Write a certificate that only 127.0.0.1 vouches for, and its key, into one file; needs openssl."""
    what = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    who = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", *what, *who, "-keyout", str(path) + ".key", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.key").read_text())
    return path


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, answering until the `with` ends."""
    with hub:
        thread = threading.Thread(target=lambda: hub.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            hub.shutdown()
            thread.join()
