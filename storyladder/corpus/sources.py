"""Downloads a corpus of corpora.py into its folder, and keeps track of which files there are verified.

Knows neither the network (download.py) nor how files are read; of stories only the end marker, so that a partial
download ends after a story. In the folder of a corpus:

    NAME                complete and verified; only verified files get their final name
    NAME.part           a download in progress; the next run resumes it
    NAME.verified       size, SHA-256 and modification time of NAME when it was verified, to avoid hashing it every time
    NAME.rejected       a truncated or foreign file that was called NAME: renamed, never used
    STEM.first-N-bytes.txt  the beginning of STEM.txt (or .jsonl), up to the last story that ends within N bytes

Files are stored here and not in the hub's cache, so that the user sees them and deletes them with the project, and
7.4 GB are not stored twice. Files in that cache at the pinned revision are checked and linked, also without a network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from storyladder.corpus.corpora import RemoteFile, Source
from storyladder.corpus.download import BLOCK_BYTES, Hub, disk_errors, sha256_of, size_of
from storyladder.runtime.errors import DownloadError

HUGGING_FACE = "https://huggingface.co"
SPARE_DISK_BYTES = 256 * 10**6
STORY_ENDS = {".txt": b"<|endoftext|>", ".jsonl": b"\n"}  # file types that can be cut, and what ends a story


def hub_endpoint(environment: Mapping[str, str] = os.environ) -> str:
    """The address of the hub, or of the mirror in HF_ENDPOINT."""
    return environment.get("HF_ENDPOINT", "").strip() or HUGGING_FACE


def download_source(
    source: Source,
    folder: Path,
    *,
    stage: str,
    endpoint: str,
    limit_bytes: int | None = None,
    log: Callable[[str], None] = tqdm.write,
) -> list[Path]:
    """Download a corpus into `folder` and return its files, training files first. Complete files are not fetched again.

    With `limit_bytes`, training files are taken in order until they hold that many bytes; a .txt or .jsonl file is cut
    to what is left of them, .json, .parquet and validation files stay whole. `stage` is for the command in messages.
    Raises DownloadError for everything the user can fix. An interrupted download keeps its partial files.
    """
    assert limit_bytes is None or limit_bytes > 0, limit_bytes
    advice = (
        f"set HF_ENDPOINT to a mirror, or download the files of {source.repo} by hand into {folder} "
        f"and run: python prepare_data.py --stage {stage} --from {folder}"
    )
    hub = Hub(_checked(endpoint), source.repo, source.revision, advice=advice, log=log)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        items = _choose(source, limit_bytes, functools.partial(_item, hub, folder))
        here = [_find_complete(item) for item in items]
        missing = [item for item, path in zip(items, here, strict=True) if path is None]
        for item in missing:
            _set_aside(item, log)
        _check_disk(missing, folder)
        return [path or _bring(item, hub) for item, path in zip(items, here, strict=True)]


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A file, or the beginning of one, to download."""

    path: Path
    also_at: tuple[Path, ...]
    remote: str  # its path in the repository
    origin: str  # repository, revision and path; its record must match
    length: int  # bytes
    sha256: str
    whole: _Item | None = None  # the whole file, if this is the beginning of one

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    def beginning(self, length: int) -> _Item:
        path = self.path.with_name(f"{self.path.stem}.first-{length}-bytes{self.path.suffix}")
        return replace(self, path=path, also_at=(), length=length, whole=self)


def _item(hub: Hub, folder: Path, file: RemoteFile) -> _Item:
    """Size and SHA-256 are from the table, else from an earlier download, the hub's cache, or its listing."""
    path, origin = folder / file.name, f"{hub.repo}@{hub.revision}/{file.path}"
    size, sha256 = file.bytes, file.sha256
    if size is None or sha256 is None:
        record, cached = _read_record(path, origin), None
        if record is None and (cached := hub.cached(file.path)) and _is_sha256(cached.name):
            record = {"bytes": cached.stat().st_size, "sha256": cached.name}
        found = (record["bytes"], record["sha256"]) if record else _published(hub, file.path)
        size, sha256 = size or found[0], sha256 or found[1]
    also_at = tuple(folder / name for name in file.also_named)
    return _Item(path=path, also_at=also_at, remote=file.path, origin=origin, length=size, sha256=sha256)


def _choose(source: Source, limit_bytes: int | None, item_of: Callable[[RemoteFile], _Item]) -> list[_Item]:
    """Training files, in order, until they hold `limit_bytes`, then all validation files."""
    items: list[_Item] = []
    left = limit_bytes
    for file in source.files:
        if left is not None and left <= 0:
            break
        item = item_of(file)
        if left is not None:
            if left < item.length and item.path.suffix in STORY_ENDS:
                item = item.beginning(left)
            left -= item.length
        items.append(item)
    return items + [item_of(file) for file in source.val_files]


def _checked(endpoint: str) -> str:
    """The endpoint without a trailing slash; DownloadError if it is not a valid address."""
    try:
        parts = urllib.parse.urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query + parts.fragment
    except ValueError:
        sound = False
    if not sound:
        raise DownloadError(
            f"the hub's address is {endpoint!r}, expected one like {HUGGING_FACE}; correct or unset HF_ENDPOINT"
        )
    return endpoint.rstrip("/")


def _is_sha256(text: object) -> bool:
    return re.fullmatch("[0-9a-f]{64}", str(text)) is not None


def _published(hub: Hub, path: str) -> tuple[int, str]:
    """Size and SHA-256 of a file in the hub's listing."""
    size, sha256 = hub.listing().get(path, (None, None))
    if type(size) is not int or size <= 0 or not _is_sha256(sha256):
        raise DownloadError(
            f"{hub.endpoint} lists no size and SHA-256 for {path} of {hub.repo}, expected both; {hub.advice}"
        )
    return size, str(sha256)


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _read_record(path: Path, origin: str) -> dict[str, Any] | None:
    """The record of when `path` was verified; None if there is no record, or if it has another origin."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
        known = {"bytes": int(record["bytes"]), "sha256": str(record["sha256"]), "changed_ns": record["changed_ns"]}
        return known if record["origin"] == origin else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write_record(item: _Item, contents: Path, sha256: str, *, path: Path | None = None) -> None:
    """Record that the file `contents`, which is or will be at `path`, is the verified item."""
    status = contents.stat()
    record = {"origin": item.origin, "bytes": status.st_size, "sha256": sha256, "changed_ns": status.st_mtime_ns}
    _record_path(path or item.path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _is_complete(item: _Item, path: Path) -> bool:
    """Whether `path` is the item: by its record if the file did not change since, else by its size and SHA-256."""
    record = _read_record(path, item.origin)
    size, sha256 = item.length, item.sha256
    if item.whole is not None:
        if record is None:  # only the record of a beginning knows its length after the cut
            return False
        size, sha256 = record["bytes"], record["sha256"]
    if not path.is_file() or path.stat().st_size != size:
        return False
    if record == {"bytes": size, "sha256": sha256, "changed_ns": path.stat().st_mtime_ns}:
        return True
    if sha256_of(path) != sha256:
        return False
    with contextlib.suppress(OSError):  # a complete file in a read-only folder is still complete
        _write_record(item, path, sha256, path=path)
    return True


def _find_complete(item: _Item) -> Path | None:
    return next((path for path in (item.path, *item.also_at) if _is_complete(item, path)), None)


def _set_aside(item: _Item, log: Callable[[str], None]) -> None:
    """Rename a file that has the final name but is not the item. It may be the user's own, so it is not deleted."""
    if item.path.exists():
        aside = item.path.with_name(f"{item.path.name}.rejected")
        log(
            f"{item.path} is truncated or a different file ({item.path.stat().st_size:,} bytes, the published file "
            f"has {item.length:,}): renamed to {aside.name}, downloading it again"
        )
        os.replace(item.path, aside)


def _check_disk(missing: list[_Item], folder: Path) -> None:
    """Refuse a download that does not fit on the disk before it starts."""
    needed = sum(item.length - size_of(item.part) for item in missing) + SPARE_DISK_BYTES
    if missing and (free := shutil.disk_usage(folder).free) < needed:
        raise DownloadError(
            f"the disk of {folder} has {free:,} bytes free, expected at least {needed:,}, including a reserve of "
            f"{SPARE_DISK_BYTES:,}; free some space, or use --limit-mb, and run the same command again"
        )


def _bring(item: _Item, hub: Hub) -> Path:
    """Download an item, and give it its final name once it is verified."""
    if item.whole is not None:
        return _bring_beginning(item, item.whole, hub)
    cached = hub.cached(item.remote)
    if cached is not None and sha256_of(cached) == item.sha256:
        item.part.unlink(missing_ok=True)
        try:
            os.link(cached, item.part)
        except OSError:  # another disk, or one without links
            shutil.copyfile(cached, item.part)
        return _publish(item, item.sha256)
    _check_published(item, hub)
    for last_chance in (False, True):
        hub.fetch(item.remote, item.length, item.part)
        if (got := sha256_of(item.part)) == item.sha256:
            return _publish(item, got)
        item.part.unlink()
        message = f"{item.remote} from {hub.endpoint} has SHA-256 {got}, expected {item.sha256}"
        if not last_chance:
            hub.log(f"{message}; downloading it again from the start")
    raise DownloadError(f"{message}; {hub.advice}")


def _check_published(item: _Item, hub: Hub) -> None:
    """Refuse a hub that lists a different file. The first request to the hub, so that problems with it show early."""
    size, sha256 = _published(hub, item.remote)
    expected = item.whole or item
    if (size, sha256) != (expected.length, expected.sha256):
        raise DownloadError(
            f"{item.remote} of {hub.repo} has {size:,} bytes and SHA-256 {sha256} in the listing of {hub.endpoint}, "
            f"expected {expected.length:,} and {expected.sha256}: that server has another file; {hub.advice}"
        )


def _publish(item: _Item, sha256: str) -> Path:
    """Give the complete part, which has this SHA-256, its final name."""
    with item.part.open("r+b") as part:
        os.fsync(part.fileno())
    _write_record(item, item.part, sha256)
    os.replace(item.part, item.path)
    return item.path


def _bring_beginning(item: _Item, whole: _Item, hub: Hub) -> Path:
    """Get the beginning of a file: cut from the whole file if that is here, else by range requests."""
    here = _find_complete(whole) or hub.cached(item.remote)
    if here is not None:
        with here.open("rb") as source, item.part.open("wb") as part:
            while block := source.read(min(BLOCK_BYTES, item.length - part.tell())):
                part.write(block)
    else:
        _check_published(item, hub)
        hub.fetch_beginning(item.remote, whole.length, item.length, item.part)
    _end_with_a_story(item, hub.endpoint)
    hub.log(f"{item.path} is only the beginning of {whole.path.name}, so it cannot be verified by SHA-256")
    return _publish(item, sha256_of(item.part))


def _end_with_a_story(item: _Item, origin: str) -> None:
    """Cut a beginning after the last complete story, so that it ends neither in a story nor in a character."""
    story_end = STORY_ENDS[item.path.suffix]
    with item.part.open("r+b") as part:
        tail = part.seek(max(0, item.length - BLOCK_BYTES))
        end = part.read().rfind(story_end)
        if end >= 0:
            part.truncate(tail + end + len(story_end))
            return
    item.part.unlink()
    raise DownloadError(
        f"the first {item.length:,} bytes of {item.remote} from {origin} hold no {story_end.decode()!r}, expected one "
        "after each story; use a larger --limit-mb, or none, to verify the whole file by SHA-256"
    )
