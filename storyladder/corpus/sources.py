"""Where the three corpora live, and which of their files lie here verified.

Knows repositories, pinned revisions, sizes and hashes. Does not know HTTP (download.py), how a file is read, or what a
story is: only the line that ends one, so that a part ends cleanly. In the folder of a corpus:

    NAME                complete and verified; nothing else ever gets this name from here
    NAME.part           what has come so far; the next run goes on from its end
    NAME.verified       size, SHA-256 and time of change when NAME was verified, so that it is not hashed every time
    NAME.rejected       a truncated or foreign file that lay under NAME: set aside, never used
    STEM.first-N-bytes.txt  the beginning of STEM.txt, up to the last story that ends within its first N bytes
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from storyladder.corpus.download import BLOCK_BYTES, Link, Wanted, disk_errors, fetch, sha256_of
from storyladder.runtime.errors import DownloadError

HUB = "https://huggingface.co"
SPARE_DISK_BYTES = 256 * 10**6
STORY_END = b"<|endoftext|>"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset repository; a size or SHA-256 of None is asked from the hub's listing of the revision."""

    path: str
    bytes: int | None
    sha256: str | None = None
    also_named: tuple[str, ...] = ()  # local names under which the same file is accepted

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, kw_only=True)
class Source:
    """One corpus: its pinned revision, its files, and the field that holds the story (None: plain text)."""

    stage: str
    repo: str
    revision: str
    files: tuple[RemoteFile, ...]
    val_files: tuple[RemoteFile, ...]  # empty: the corpus has none, so hold some stories back
    field: str | None
    licence: str

    def is_validation(self, path: Path) -> bool:
        """Whether a path that download_source returned is a validation file."""
        return any(path.name in (file.name, *file.also_named) for file in self.val_files)


SIMPLE_TRAIN_BYTES = (238_015_938, 238_000_197, 237_741_821, 237_658_974, 238_085_905, 237_848_790, 237_678_067)
SOURCES: Mapping[str, Source] = {
    "tiny": Source(
        stage="tiny",
        repo="roneneldan/TinyStories",
        revision="f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
        files=(
            RemoteFile(
                "TinyStoriesV2-GPT4-train.txt",
                2_227_753_162,
                "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
            ),
        ),
        val_files=(
            RemoteFile(
                "TinyStoriesV2-GPT4-valid.txt",
                22_502_601,
                "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
                also_named=("TinyStoriesV2-GPT4-val.txt",),
            ),
        ),
        field=None,
        licence="CDLA-Sharing-1.0",
    ),
    "children": Source(
        stage="children",
        repo="ajibawa-2023/Children-Stories-Collection",
        revision="50682ae3fe62733f929fe091691fe639855ffecf",
        files=tuple(RemoteFile(f"Children-Stories-{i}-Final.json", None) for i in range(10)),  # 343 to 346 MB each
        val_files=(),
        field="text",
        licence="Apache-2.0",
    ),
    "simple": Source(
        stage="simple",
        repo="SimpleStories/SimpleStories",
        revision="e63b8adc3b1a1bdc7cac5b500d150b71346b0628",
        files=tuple(RemoteFile(f"data/train-0000{i}-of-00007.parquet", n) for i, n in enumerate(SIMPLE_TRAIN_BYTES)),
        val_files=(RemoteFile("data/test-00000-of-00001.parquet", 16_838_557),),
        field="story",
        licence="MIT",
    ),
}


def hub_endpoint(environment: Mapping[str, str] = os.environ) -> str:
    """The hub, or the mirror that HF_ENDPOINT names."""
    return environment.get("HF_ENDPOINT", "").strip() or HUB


def free_disk_bytes(folder: Path) -> int:
    """Bytes that may still be written into a folder."""
    return shutil.disk_usage(folder).free


def download_source(
    source: Source,
    folder: Path,
    *,
    endpoint: str,
    stop_requested: Callable[[], bool] = lambda: False,
    limit_bytes: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = tqdm.write,
    sleep: Callable[[float], None] = time.sleep,
    free_bytes: Callable[[Path], int] = free_disk_bytes,
    timeout_s: float = 30.0,
) -> list[Path]:
    """Bring a corpus into `folder`; its local files, training files first. What is complete is not fetched again.

    `limit_bytes` takes training files in order until they hold that many bytes; a .txt longer than what is left of them
    is cut (see the top of this page), .json and .parquet stay whole, and so do validation files. Raises DownloadError
    for all that the user can mend, and KeyboardInterrupt, keeping what has come, once `stop_requested()` is true.
    """
    assert limit_bytes is None or limit_bytes > 0, limit_bytes
    endpoint = _checked(endpoint)
    link = Link(
        advice=f"set HF_ENDPOINT to a mirror, or download the files of {source.repo} by hand into {folder} "
        f"and run: python prepare_data.py --stage {source.stage} --from {folder}",
        timeout_s=timeout_s,
        stop_requested=stop_requested,
        progress=progress,
        say=say,
        sleep=sleep,
    )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        items = _choose(source, limit_bytes, _Catalogue(link, endpoint, source, folder))
        here = [_find_complete(item, link) for item in items]
        missing = [item for item, path in zip(items, here, strict=True) if path is None]
        for item in missing:
            _set_aside(item, link)
        _check_disk(missing, folder, free_bytes(folder))
        return [path or _bring(item, link) for item, path in zip(items, here, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A file, or the beginning of one, as it shall lie here."""

    path: Path
    also_at: tuple[Path, ...]
    origin: str  # repository, revision and path: what a record must be about
    wanted: Wanted
    whole: _Item | None = None  # of a beginning: the file that it is the beginning of

    @property
    def part_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    def beginning(self, first_bytes: int) -> _Item:
        path = self.path.with_name(f"{self.path.stem}.first-{first_bytes}-bytes{self.path.suffix}")
        return replace(self, path=path, also_at=(), wanted=replace(self.wanted, first_bytes=first_bytes), whole=self)


class _Catalogue:
    """Sizes and hashes: from the table, else the record of an earlier download, else the hub's listing (asked once)."""

    def __init__(self, link: Link, endpoint: str, source: Source, folder: Path) -> None:
        self.endpoint, self.source, self.folder = endpoint, source, folder
        self.listing = functools.cache(lambda: _read_listing(link, endpoint, source))

    def item(self, file: RemoteFile) -> _Item:
        source, path = self.source, self.folder / file.name
        origin = f"{source.repo}@{source.revision}/{file.path}"
        size, sha256 = file.bytes, file.sha256
        if size is None or sha256 is None:
            record = _read_record(path, origin)
            size, sha256 = (record["bytes"], record["sha256"]) if record else self.listing()[file.path]
        if file.bytes not in (None, size):
            raise DownloadError(
                f"{file.path} of {source.repo} has {size:,} bytes in the listing of {self.endpoint}, expected "
                f"{file.bytes:,}: that server holds something else; set HF_ENDPOINT to another one"
            )
        address = f"{self.endpoint}/datasets/{source.repo}/resolve/{source.revision}/{urllib.parse.quote(file.path)}"
        wanted = Wanted(address=address, total_bytes=size, sha256=sha256)
        also_at = tuple(self.folder / name for name in file.also_named)
        return _Item(path=path, also_at=also_at, origin=origin, wanted=wanted)


def _choose(source: Source, limit_bytes: int | None, catalogue: _Catalogue) -> list[_Item]:
    """The training files, in order, that hold `limit_bytes` together, then all validation files."""
    items: list[_Item] = []
    left = limit_bytes
    for file in source.files:
        if left is not None and left <= 0:
            break
        item = catalogue.item(file)
        if left is not None:
            if left < item.wanted.total_bytes and item.path.suffix == ".txt":
                item = item.beginning(left)
            left -= item.wanted.length
        items.append(item)
    return items + [catalogue.item(file) for file in source.val_files]


def _checked(endpoint: str) -> str:
    """The endpoint without a slash at its end; a DownloadError when it is no address."""
    try:
        parts = urllib.parse.urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query + parts.fragment
    except ValueError:
        sound = False
    if not sound:
        raise DownloadError(f"the hub's address is {endpoint!r}, expected one like {HUB}; set HF_ENDPOINT to that")
    return endpoint.rstrip("/")


def _read_listing(link: Link, endpoint: str, source: Source) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by path, of our files only. They are as good as the server that tells them."""
    address = f"{endpoint}/api/datasets/{source.repo}/tree/{source.revision}?recursive=true"
    answer = link.read_json(address)
    entries = [entry for entry in answer if isinstance(entry, dict)] if isinstance(answer, list) else []
    found: dict[str, tuple[int, str]] = {}
    for file in source.files + source.val_files:
        lfs = next((entry.get("lfs") for entry in entries if entry.get("path") == file.path), None)
        size, sha256 = (lfs.get("size"), lfs.get("oid")) if isinstance(lfs, dict) else (None, None)
        if type(size) is not int or size <= 0 or not re.fullmatch("[0-9a-f]{64}", str(sha256)):
            raise DownloadError(f"{address} gives no size and SHA-256 for {file.path}, expected both; {link.advice}")
        found[file.path] = (size, str(sha256))
    return found


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _read_record(path: Path, origin: str) -> dict[str, Any] | None:
    """What was noted when `path` was verified; None when nothing was, or about a file of another origin."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
        known = {"bytes": int(record["bytes"]), "sha256": str(record["sha256"]), "changed_ns": record["changed_ns"]}
        return known if record["origin"] == origin else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_record(item: _Item, path: Path, contents: Path, sha256: str) -> None:
    """Note that `contents`, which lies at `path` or is about to, is the item, verified."""
    status = contents.stat()
    record = {"origin": item.origin, "bytes": status.st_size, "sha256": sha256, "changed_ns": status.st_mtime_ns}
    _record_path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _is_complete(item: _Item, path: Path, check_stop: Callable[[], None]) -> bool:
    """Whether `path` is the item: by its record when it did not change since, else by its size and SHA-256."""
    record = _read_record(path, item.origin)
    size, sha256 = item.wanted.total_bytes, item.wanted.sha256
    if item.whole is not None:
        if record is None:  # only its record knows where the last story of a beginning ended
            return False
        size, sha256 = record["bytes"], record["sha256"]
    if not path.is_file() or path.stat().st_size != size:
        return False
    if record == {"bytes": size, "sha256": sha256, "changed_ns": path.stat().st_mtime_ns}:
        return True
    if sha256_of(path, check_stop) != sha256:
        return False
    with contextlib.suppress(OSError):  # a complete file in a folder that cannot be written is a complete file
        _write_record(item, path, path, sha256)
    return True


def _find_complete(item: _Item, link: Link) -> Path | None:
    return next((path for path in (item.path, *item.also_at) if _is_complete(item, path, link.check_stop)), None)


def _set_aside(item: _Item, link: Link) -> None:
    """Take the final name from a file that is not the item; it may be the user's own, so it is not deleted."""
    if item.path.exists():
        aside = item.path.with_name(f"{item.path.name}.rejected")
        link.say(
            f"{item.path} is truncated or foreign ({item.path.stat().st_size:,} bytes, expected "
            f"{item.wanted.length:,} of the published file): set aside as {aside.name}, fetching it again"
        )
        os.replace(item.path, aside)


def _check_disk(missing: list[_Item], folder: Path, free: int) -> None:
    """Refuse before the first byte what the disk cannot take."""
    here = sum(item.part_path.stat().st_size for item in missing if item.part_path.exists())
    needed = sum(item.wanted.length for item in missing) - here + SPARE_DISK_BYTES
    if missing and free < needed:
        raise DownloadError(
            f"the disk of {folder} has {free:,} bytes free, expected at least {needed:,}, {SPARE_DISK_BYTES:,} of them "
            "to spare; free some space, or take a part with --limit-mb, and run the same command again"
        )


def _bring(item: _Item, link: Link) -> Path:
    """Fetch an item and give it its final name once it is verified."""
    sha256 = item.wanted.sha256
    if item.whole is not None:
        whole = _find_complete(item.whole, link)
        if whole is not None:
            _copy_beginning(whole, item.part_path, item.wanted.length)
    fetch(link, item.wanted, item.part_path)
    if item.whole is not None:
        _end_with_a_story(item)
        sha256 = sha256_of(item.part_path, link.check_stop)
        link.say(f"{item.path}: only the beginning of {item.whole.path.name}, which cannot be checked by SHA-256")
    _write_record(item, item.path, item.part_path, sha256)
    os.replace(item.part_path, item.path)
    return item.path


def _copy_beginning(whole: Path, part_path: Path, length: int) -> None:
    with whole.open("rb") as source, part_path.open("wb") as part:
        while length > 0:
            length -= part.write(source.read(min(BLOCK_BYTES, length)))


def _end_with_a_story(item: _Item) -> None:
    """Cut a beginning after the last line that ends a story, so that it stops neither in a story nor in a character."""
    with item.part_path.open("r+b") as part:
        tail = part.seek(max(0, item.wanted.length - BLOCK_BYTES))
        end = part.read().rfind(STORY_END)
        if end >= 0:
            part.truncate(tail + end + len(STORY_END))
            os.fsync(part.fileno())
            return
    item.part_path.unlink()
    raise DownloadError(
        f"the first {item.wanted.length:,} bytes at {item.wanted.address} hold no {STORY_END.decode()}, expected one "
        "after each story; give a larger --limit-mb, or none: the whole file is checked by SHA-256"
    )
