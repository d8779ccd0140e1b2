"""Downloads from the hub with `huggingface_hub`; errors name their cause and what to do.

Knows that library (0.34 to 1.x) and its errors, but not which files exist or what they are used for. Token, proxies,
certificates, hub cache and offline mode come from the library's environment variables. Xet is not used: it cannot
resume a file, stores its chunks a second time, and contacts servers that a mirror is meant to replace.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from storyladder.runtime.errors import DownloadError

BLOCK_BYTES = 4 << 20
ATTEMPTS = 5  # in a row without progress; the waits between them are 1, 2, 4 and 8 s
LONGEST_WAIT_S = 120.0
# Environment of the library, unless the user set it.
_DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DOWNLOAD_TIMEOUT": "30",  # seconds without a byte
    "HF_HUB_ETAG_TIMEOUT": "30",
    "HF_HUB_VERBOSITY": "error",  # retries are logged here, one line each
}
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_NETWORK = ("requests", "urllib3", "httpx", "httpcore")
# Messages for errors that a retry does not fix, by the name of an exception in the chain.
_NO_HUB = (
    "{endpoint} does not answer like a hub ({reason}). If your network has a log-in page, open {endpoint} in a browser "
    "first; or {advice}"
)
_LASTING = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and files of {repo} are neither here nor in the hub's cache; unset "
    "HF_HUB_OFFLINE, or {advice}",
    "SSLCertVerificationError": "the certificate of {endpoint} is not trusted ({reason}); if a proxy inspects your "
    "traffic, set SSL_CERT_FILE and REQUESTS_CA_BUNDLE to a file with the root certificate of your network",
    "ProxyError": "the proxy blocked {endpoint} ({reason}); correct HTTPS_PROXY or HTTP_PROXY, with user and password "
    "if the proxy needs them (http://USER:PASSWORD@HOST:PORT), or add the host to NO_PROXY",
    "gaierror": "the host of {endpoint} could not be resolved ({reason}); connect to a network, correct HF_ENDPOINT, "
    "or {advice}",
    "TooManyRedirects": _NO_HUB,
    "UnsupportedProtocol": _NO_HUB,
    "InvalidURL": _NO_HUB,
}
T = TypeVar("T")


class Hiccup(Exception):
    """A temporary failure; `wait_s` is from Retry-After, `restart`: discard the part and start over."""

    def __init__(self, reason: str, *, wait_s: float = 0.0, restart: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.restart = wait_s, restart


class _Part(io.FileIO):
    """The file that http_get appends to. Counts how often http_get truncates it to start over, which has no limit."""

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        super().__init__(path, "ab")
        self.check, self.restarts = check, 0

    def truncate(self, size: int | None = None) -> int:
        self.restarts += 1
        if self.restarts >= ATTEMPTS:
            raise Hiccup(f"the connection broke {ATTEMPTS} times and the download started over each time")
        self.check()
        return super().truncate(size)


class Hub:
    """One revision of one dataset on a hub; every method raises DownloadError for what the user can fix."""

    def __init__(self, endpoint: str, repo: str, revision: str, *, advice: str, log: Callable[[str], None]) -> None:
        self.endpoint, self.repo, self.revision = endpoint, repo, revision
        self.advice, self.log = advice, log  # advice ends messages about the server: what to type next
        self.answered = False
        self.listing = functools.cache(self._listing)

    @functools.cached_property
    def hf(self) -> Any:
        """huggingface_hub, imported only if a file is missing; it reads the environment on import."""
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        import huggingface_hub.file_download

        # Only complete chunks are written: a slow connection may break before the default of 10 MB arrives.
        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 18
        return huggingface_hub

    def _listing(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of the large files, by path, as the server reports them."""

        def attempt() -> dict[str, tuple[int, str]]:
            api = self.hf.HfApi(endpoint=self.endpoint)
            timeout_s = self.hf.constants.HF_HUB_ETAG_TIMEOUT
            try:
                info = api.dataset_info(self.repo, revision=self.revision, files_metadata=True, timeout=timeout_s)
                large = [(file.rfilename, file.lfs) for file in info.siblings or () if file.lfs]
                return {path: (lfs.size, lfs.sha256) for path, lfs in large}
            except (TypeError, KeyError, AttributeError, RecursionError) as error:
                raise self._why(_NO_HUB, error) from None

        found = self._patiently(attempt)
        self.answered = True
        return found

    def cached(self, path: str) -> Path | None:
        """A file in the hub's own cache, usually named by its SHA-256, that another program may have downloaded."""
        found = self.hf.try_to_load_from_cache(self.repo, path, revision=self.revision, repo_type="dataset")
        return Path(found).resolve() if isinstance(found, str) else None

    def fetch(self, path: str, total_bytes: int, part_path: Path) -> None:
        """Download a whole file, resuming where `part_path` ends; the caller checks its SHA-256.

        Not with hf_hub_download, whose newer 1.x versions start over after Ctrl-C; http_get underneath resumes.
        """
        where = {"repo_type": "dataset", "revision": self.revision, "endpoint": self.endpoint}
        url = self.hf.hf_hub_url(self.repo, path, **where)

        def check() -> None:
            found = self.hf.get_hf_file_metadata(url, timeout=self.hf.constants.HF_HUB_ETAG_TIMEOUT)
            if found.size != total_bytes:
                raise self._why(_NO_HUB, f"{found.size} bytes for {path}, expected {total_bytes:,}")

        def attempt() -> None:
            with _Part(part_path, check) as part:
                how: dict[str, Any] = {"expected_size": total_bytes, "displayed_filename": part_path.stem}
                how["headers"] = self.hf.utils.build_hf_headers()
                self.hf.file_download.http_get(url, part, resume_size=part.tell(), **how)

        self._patiently(attempt, part_path)

    def fetch_beginning(self, path: str, total_bytes: int, first_bytes: int, part_path: Path) -> None:
        """Download the first bytes of a file with range requests, resuming where `part_path` ends."""

        def attempt() -> None:
            files = self.hf.HfFileSystem(endpoint=self.endpoint, skip_instance_cache=True)
            name = f"datasets/{self.repo}@{self.revision}/{path}"
            with part_path.open("ab") as part, files.open(name, size=total_bytes, cache_type="none") as remote:
                remote.seek(part.tell())
                looks: dict[str, Any] = {"desc": part_path.stem, "unit": "B", "unit_scale": True}
                with tqdm(total=first_bytes, initial=part.tell(), disable=None, **looks) as bar:
                    while asked := min(BLOCK_BYTES, first_bytes - part.tell()):
                        block = remote.read(asked)
                        if len(block) != asked:
                            raise DownloadError(
                                f"{self.endpoint} answered with {len(block):,} bytes of {path}, expected {asked:,}: "
                                f"it ignores range requests; leave out --limit-mb, or {self.advice}"
                            )
                        part.write(block)
                        bar.update(asked)

        if size_of(part_path) > first_bytes:
            part_path.unlink()
        if size_of(part_path) < first_bytes:
            self._patiently(attempt, part_path)

    def _patiently(self, attempt: Callable[[], T], part_path: Path | None = None) -> T:
        """Retry an attempt, with growing waits, until it succeeds or its part stops growing."""
        failures, furthest = 0, size_of(part_path)
        while True:
            try:
                return attempt()
            except DownloadError:
                raise
            except Exception as error:
                hiccup = self._judged(error)
            failures = 1 if size_of(part_path) > furthest else failures + 1
            furthest = max(furthest, size_of(part_path))
            if failures >= ATTEMPTS:
                raise DownloadError(f"{hiccup}, {ATTEMPTS} times in a row; {self.advice}")
            if part_path and hiccup.restart:
                part_path.unlink(missing_ok=True)
            wait_s = min(max(2.0 ** (failures - 1), hiccup.wait_s), LONGEST_WAIT_S)
            self.log(f"{hiccup}; retrying in {wait_s:.0f} s")
            time.sleep(wait_s)

    def _judged(self, error: Exception) -> Hiccup:
        """The Hiccup of a temporary failure. Raises DownloadError for a lasting one, and other errors unchanged."""
        if isinstance(error, Hiccup):
            return error
        chain = _chain(error)
        first, reason = chain[0], " ".join(str(chain[-1]).split()) or type(chain[-1]).__name__
        for response in (getattr(link, "response", None) for link in chain):
            if response is not None and response.status_code >= 400:
                return self._judged_answer(response)
        for name in _CERTIFICATES if isinstance(first, OSError) else ():
            if not Path(os.environ.get(name) or "/").exists():
                raise DownloadError(f"{name} is {os.environ[name]!r}, expected a file; correct or unset it") from None
        why = [_LASTING[name] for link in chain for kind in type(link).__mro__ if (name := kind.__name__) in _LASTING]
        if (why and not (self.answered and why[0] is _LASTING["gaierror"])) or isinstance(first, ValueError):
            raise self._why((*why, _NO_HUB)[0], reason) from None
        from_network = any(type(link).__module__.partition(".")[0] in _NETWORK for link in chain)
        on_disk = isinstance(first, OSError) and first.errno and not isinstance(first, (ConnectionError, TimeoutError))
        if on_disk or not (from_network or isinstance(first, OSError)):
            raise error
        return Hiccup(f"the connection to {self.endpoint} broke ({reason})")

    def _judged_answer(self, response: Any) -> Hiccup:
        """The same for an answer with a status of 400 or more."""
        status, code = response.status_code, response.headers.get("X-Error-Code")
        if status == 511:  # Network Authentication Required
            raise self._why(_NO_HUB, "HTTP 511")
        if status in (408, 416, 425, 429) or status >= 500:
            asked = response.headers.get("Retry-After", "").strip()  # its rare date form is ignored
            wait_s = float(asked) if re.fullmatch("[0-9]{1,9}", asked) else 0.0
            return Hiccup(f"{self.endpoint} answered HTTP {status}", wait_s=wait_s, restart=status == 416)
        if code == "GatedRepo":
            why = f"{self.repo} is gated; accept its terms at {self.endpoint}/datasets/{self.repo} and set HF_TOKEN"
        elif status in (401, 403) and self.hf.get_token():
            why = f"your token gives no access to {self.repo}; correct or unset HF_TOKEN (or: hf auth login)"
        elif status in (401, 403):
            why = f"{self.repo} does not exist or is not public; set HF_TOKEN to a token that may read it"
        elif status == 407:
            why = "the proxy requires a log-in; set HTTPS_PROXY and HTTP_PROXY to http://USER:PASSWORD@HOST:PORT"
        elif code == "RevisionNotFound":
            why = f"{self.repo} has no revision {self.revision} there"
        else:
            why = f"{self.repo} at revision {self.revision} is not available there"
        raise DownloadError(f"{self.endpoint} answered HTTP {status}: {why}; {self.advice}")

    def _why(self, message: str, reason: object) -> DownloadError:
        return DownloadError(message.format(reason=reason, endpoint=self.endpoint, repo=self.repo, advice=self.advice))


def _chain(error: BaseException) -> list[BaseException]:
    """An error and everything that caused it; libraries nest errors as cause, context, reason or argument."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and link not in found:
            found.append(link)
            waiting += [link.__cause__, link.__context__, getattr(link, "reason", None), *link.args]
    return found


def size_of(path: Path | None) -> int:
    """The size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path and path.exists() else 0


def sha256_of(path: Path) -> str:
    """The SHA-256 of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise a disk error (the only OSError that gets here) as DownloadError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            wrong = f"the disk of {folder} is full ({error}); the partial download is kept: free some space"
        else:
            wrong = f"cannot write to {folder} ({error}), expected a writable folder: fix that"
        raise DownloadError(f"{wrong} and run the same command again") from error
