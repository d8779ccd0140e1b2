"""Token files: raw little-endian uint16 ids in NAME.bin, and the sidecar NAME.bin.json, written last.

NAME.bin.stories, if there is one, holds the SHA-256 of the ids and hashes of the stories, for repeats.py.

Writing, verifying, and cutting into windows. Batch k is a pure function of (file, seed, k), so resuming needs no reader
state. Knows no model and no tokenizer; callers pass the tokenizer's fingerprint and the bytes of its tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from storyladder.runtime.errors import DataError

FORMAT_VERSION = 1
_DTYPE = np.dtype("<u2")
_REBUILD = "rebuild it with python prepare_data.py"

Ids = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The content of NAME.bin.json, which describes NAME.bin."""

    format_version: int
    dtype: str
    tokens: int
    stories: int
    text_bytes: int  # UTF-8, of the stories as they were encoded
    largest_id: int
    tokenizer: str  # fingerprint
    sha256: str
    sources: list[str]
    cleaning: dict[str, int]


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """A verified token file, mapped into memory."""

    path: Path
    ids: Ids
    sidecar: Sidecar

    @property
    def fingerprint(self) -> str:
        """Equal for equal content: the SHA-256 of the ids."""
        return self.sidecar.sha256

    def check_size(self) -> None:
        """DataError if the file was cut since it was mapped: reading past its end would kill the process."""
        mapped = self.ids.base
        assert isinstance(mapped, mmap.mmap)
        size = mapped.size()  # of the file that is mapped, whatever has its name now
        if size < self.ids.nbytes:
            raise DataError(f"{self.path} was cut from {self.ids.nbytes:,} to {size:,} bytes while in use; {_REBUILD}")

    def seen(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Which token types the file uses, (V,)."""
        present = np.zeros(vocab_size, dtype=bool)
        for start in range(0, len(self.ids), 1 << 24):
            present[np.unique(self.ids[start : start + (1 << 24)])] = True
        return present


class TokenWriter:
    """Writes one token file. Used with `with`; without a call of `finish` nothing gets the final name."""

    def __init__(self, path: Path, tokenizer: str) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._sidecar_partial = path.with_name(path.name + ".json.partial")
        self._stories_partial = path.with_name(path.name + ".stories.partial")
        self._tokenizer = tokenizer
        self._digest = hashlib.sha256()
        self.tokens = self.stories = self.text_bytes = self.largest_id = 0

    def __enter__(self) -> TokenWriter:
        with _disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported by the write that failed
            self._file.close()
        for partial in (self._partial, self._sidecar_partial, self._stories_partial):
            partial.unlink(missing_ok=True)

    def add(self, ids: Ids, *, stories: int, text_bytes: int) -> None:
        """Append the ids of some whole stories."""
        if not len(ids):
            return
        raw = ids.astype(_DTYPE, copy=False).tobytes()
        with _disk_errors(self.path):
            self._file.write(raw)
        self._digest.update(raw)
        self.tokens += len(ids)
        self.stories += stories
        self.text_bytes += text_bytes
        self.largest_id = max(self.largest_id, int(ids.max()))

    def finish(self, *, sources: Sequence[str], cleaning: Mapping[str, int]) -> Sidecar:
        """Write everything out and give the file its final name."""
        sidecar = self.seal(sources=sources, cleaning=cleaning)
        self.publish()
        return sidecar

    def seal(
        self, *, sources: Sequence[str], cleaning: Mapping[str, int], hashes: Sequence[npt.NDArray[np.uint64]] = ()
    ) -> Sidecar:
        """Bring all files to the disk under their partial names: all room is taken, nothing is replaced yet."""
        sidecar = Sidecar(
            format_version=FORMAT_VERSION,
            dtype="uint16",
            tokens=self.tokens,
            stories=self.stories,
            text_bytes=self.text_bytes,
            largest_id=self.largest_id,
            tokenizer=self._tokenizer,
            sha256=self._digest.hexdigest(),
            sources=list(sources),
            cleaning=dict(cleaning),
        )
        with _disk_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            with self._sidecar_partial.open("w", encoding="utf-8") as file:
                json.dump(dataclasses.asdict(sidecar), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            if hashes:
                with self._stories_partial.open("wb") as raw:
                    raw.write(self._digest.digest())
                    for column in hashes:
                        raw.write(column.astype("<u8", copy=False).data)
                    raw.flush()
                    os.fsync(raw.fileno())
        return sidecar

    def publish(self) -> None:
        """Give a sealed file its final name; the sidecar comes last and makes it complete."""
        with _disk_errors(self.path):
            if self._stories_partial.exists():  # bound to its ids by their SHA-256, so it may come before them
                os.replace(self._stories_partial, stories_path(self.path))
            os.replace(self._partial, self.path)
            os.replace(self._sidecar_partial, _sidecar_path(self.path))


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Raise disk errors as DataError with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"{os.strerror(error.errno)} while writing {path}; nothing was replaced. "
                "Free some space (or prepare less with --limit-mb N) and run the same command again"
            ) from None
        raise DataError(f"cannot write {path}: {error.strerror}; check the folder and its permissions") from None


def _sidecar_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def stories_path(path: Path) -> Path:
    """The file with the hashes of a token file's stories."""
    return path.with_name(path.name + ".stories")


def open_token_file(path: Path, *, tokenizer: str, vocab_size: int, at_least: int = 2) -> TokenFile:
    """Map a token file into memory. DataError if size, ids, tokenizer or SHA-256 do not match its sidecar."""
    sidecar = _read_sidecar(path)
    size = path.stat().st_size
    if size != sidecar.tokens * _DTYPE.itemsize:
        raise DataError(
            f"{path} has {size:,} bytes, but its sidecar lists {sidecar.tokens:,} tokens "
            f"({sidecar.tokens * _DTYPE.itemsize:,} bytes): it was cut or changed; {_REBUILD}"
        )
    if sidecar.tokenizer != tokenizer:
        raise DataError(f"{path} was made with tokenizer {sidecar.tokenizer}, expected {tokenizer}; {_REBUILD}")
    if sidecar.largest_id >= vocab_size:
        raise DataError(
            f"{path} holds token {sidecar.largest_id}, but the vocabulary has only {vocab_size:,} "
            f"(0 to {vocab_size - 1}); set vocab_size in config.py or {_REBUILD}"
        )
    if sidecar.tokens < at_least:
        raise DataError(
            f"{path} has {sidecar.tokens:,} tokens, too few for one window of {at_least:,}; prepare more text "
            "or lower context_length in config.py"
        )
    ids = np.memmap(path, dtype=_DTYPE, mode="r")
    _verify_content(path, ids, sidecar)
    return TokenFile(path, ids, sidecar)


def recorded_fingerprint(path: Path) -> str | None:
    """The SHA-256 in the sidecar of a token file, unverified; None without a valid sidecar."""
    sidecar = recorded_sidecar(path)
    return sidecar.sha256 if sidecar else None


def recorded_sidecar(path: Path) -> Sidecar | None:
    """The sidecar of a token file, unverified; None without a valid one."""
    try:
        return _read_sidecar(path)
    except DataError:
        return None


def _read_sidecar(path: Path) -> Sidecar:
    """The sidecar of a token file, checked field by field."""
    if not path.is_file():
        raise DataError(f"token file {path} does not exist; create it with python prepare_data.py")
    try:
        values = json.loads(_sidecar_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} has no sidecar {path.name}.json, so it may be incomplete; {_REBUILD}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{_sidecar_path(path)} cannot be read ({error}); {_REBUILD}") from None
    if isinstance(values, dict) and values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise DataError(f"{path} has format {values['format_version']}, expected {FORMAT_VERSION}; {_REBUILD}")
    names = {field.name for field in dataclasses.fields(Sidecar)}
    whole = ("format_version", "tokens", "stories", "text_bytes", "largest_id")
    if (
        not isinstance(values, dict)
        or values.keys() != names
        or not all(isinstance(values[name], int) and values[name] >= 0 for name in whole)
    ):
        raise DataError(f"{_sidecar_path(path)} is not a sidecar of Storyladder; {_REBUILD}")
    if values["dtype"] != "uint16":
        raise DataError(f"{path} holds {values['dtype']}, expected uint16; {_REBUILD}")
    return Sidecar(**values)


def _verify_content(path: Path, ids: Ids, sidecar: Sidecar) -> None:
    """Compare SHA-256 and largest id, once: the result is stored next to the file, with its size and time."""
    stat = path.stat()
    promised = {"sha256": sidecar.sha256, "largest_id": sidecar.largest_id}
    verdict = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, **promised}
    memory = path.with_name(f".{path.name}.verified")
    with contextlib.suppress(OSError, ValueError):
        if json.loads(memory.read_text(encoding="utf-8")) == verdict:
            return
    digest = hashlib.sha256()
    largest = 0
    for start in range(0, len(ids), 1 << 23):
        block = ids[start : start + (1 << 23)]
        digest.update(block.tobytes())
        largest = max(largest, int(block.max()))
    found = {"sha256": digest.hexdigest(), "largest_id": largest}
    if found != promised:
        wrong = " and ".join(name for name in found if found[name] != promised[name])
        raise DataError(f"{path} was changed ({wrong} differs from its sidecar); {_REBUILD}")
    with contextlib.suppress(OSError):  # in a read-only folder, the next start checks again
        memory.write_text(json.dumps(verdict), encoding="utf-8")


class TrainBatches:
    """Batch k of a token file, for any k, without state: a new permutation of all windows per epoch.

    Windows do not overlap and each is read once per epoch; they cross story boundaries, which EOT marks. (Starting each
    row at a story would lower the reported loss and waste tokens on padding.) The offset of the first window changes
    with the epoch, so that tokens after the last whole window are read in other epochs.

    `replay` mixes in windows of other token files, each with its share of all sequences: sequence n of the run comes
    from a file of share p if floor((n + 1) p) > floor(n p). So shares are exact, and batch k needs no state either.
    """

    def __init__(
        self,
        ids: Ids,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        replay: Sequence[tuple[Ids, float]] = (),
        check_size: Callable[[], None] = lambda: None,
    ) -> None:
        self.files = (ids, *(other for other, _ in replay))  # window starts count through all of them
        self.context_length = context_length
        self.check_size = check_size  # DataError if a file was cut since it was opened
        self._batch_size = batch_size
        self._seed = seed
        self._begins = np.cumsum([0, *map(len, self.files)])
        self._n_windows = [(len(file) - 1) // context_length for file in self.files]
        assert min(self._n_windows) >= 1, "open_token_file refuses files of less than one window"
        left = 1 - np.cumsum([0.0, *(share for _, share in replay)])
        self._shares = [share / rest for (_, share), rest in zip(replay, left, strict=False)]  # of what is left

    def starts(self, k: int) -> Indices:
        """Where the windows of batch k start, (batch_size,)."""
        numbers = np.arange(k * self._batch_size, (k + 1) * self._batch_size)
        starts, rows = np.empty_like(numbers), np.arange(self._batch_size)
        for file, share in enumerate(self._shares, start=1):
            before = _replayed(numbers, share)
            replayed = _replayed(numbers + 1, share) > before
            starts[rows[replayed]] = self._windows(file, before[replayed])
            numbers, rows = (numbers - before)[~replayed], rows[~replayed]
        starts[rows] = self._windows(0, numbers)
        return starts

    def epoch(self, k: int) -> float:
        """How often the first k batches have read the file, without those that are replayed."""
        number = k * self._batch_size
        for share in self._shares:
            number -= int(_replayed(np.array(number), share))
        return number / self._n_windows[0]

    def batch(self, k: int, rows: slice = slice(None)) -> tuple[Indices, Indices]:
        """Inputs and targets of batch k, both (batch_size, context_length); targets are the inputs one token later.

        `rows` takes some of its sequences only.
        """
        starts = self.starts(k)[rows]
        windows = np.empty((len(starts), self.context_length + 1), dtype=np.int64)
        file_of = np.searchsorted(self._begins, starts, side="right") - 1
        for file in np.unique(file_of):
            here = file_of == file
            windows[here] = _windows(self.files[file], starts[here] - self._begins[file], self.context_length)
        return windows[:, :-1], windows[:, 1:]

    def _windows(self, file: int, numbers: Indices) -> Indices:
        """Where the windows of these numbers start, in the order in which a file is read."""
        n_windows, spare = self._n_windows[file], (len(self.files[file]) - 1) % self.context_length
        epochs, within = np.divmod(numbers, n_windows)
        starts = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            order, offset = _epoch(self._seed, int(epoch), file, n_windows, spare)
            here = epochs == epoch
            starts[here] = order[within[here]] * self.context_length + offset
        starts += self._begins[file]
        return starts


def _replayed(n: Indices, share: float) -> Indices:
    """How many of the first n sequences are replayed."""
    return np.asarray(np.floor(n * share), dtype=np.int64)


@functools.lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, file: int, n_windows: int, spare: int) -> tuple[Indices, int]:
    """The order of the windows in an epoch of a file, and the offset (0 to `spare` tokens) of the first.

    Built on a bit generator's raw numbers, whose stream numpy promises never to change; `permutation` has no such
    promise, and a resumed run must read what the interrupted one would have read.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, file] if file else [seed, epoch]))
    offset = int(bits.random_raw()) % (spare + 1)
    return np.argsort(bits.random_raw(n_windows), kind="stable"), offset


class ValidationWindows:
    """The same windows every time: the whole file, or `limit` windows spread evenly over it."""

    def __init__(
        self,
        ids: Ids,
        *,
        context_length: int,
        limit: int | None,
        token_bytes_V: npt.NDArray[np.int64],
        check_size: Callable[[], None] = lambda: None,
    ) -> None:
        self.check_size = check_size  # DataError if the file was cut since it was opened
        self._ids = ids
        self._context_length = context_length
        whole = (len(ids) - 1) // context_length
        if limit is None or limit >= whole:
            self._starts = np.arange(whole) * context_length
            self._rest = len(ids) - 1 - whole * context_length
        else:
            self._starts = np.linspace(0, whole - 1, limit).astype(np.int64) * context_length
            self._rest = 0
        self.tokens = len(self._starts) * context_length + self._rest
        self.text_bytes = sum(int(token_bytes_V[targets_BT].sum()) for _, targets_BT in self.batches(256))

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self._starts) + bool(self._rest)

    def batches(self, batch_size: int, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Indices, Indices]]:
        """Inputs and targets, (at most batch_size, context_length); the file's rest comes last, as one shorter row.

        With `share` (i, n) every n-th batch from batch i on, and the rest of the file in the last share.
        """
        for start in range(share[0] * batch_size, len(self._starts), share[1] * batch_size):
            yield _cut(self._ids, self._starts[start : start + batch_size], self._context_length)
        if self._rest and share[0] == share[1] - 1:
            yield _cut(self._ids, np.array([len(self._ids) - 1 - self._rest]), self._rest)


def _cut(ids: Ids, starts: Indices, length: int) -> tuple[Indices, Indices]:
    """Windows of `length` tokens from each start, and the same one token later."""
    windows = _windows(ids, starts, length)
    return windows[:, :-1], windows[:, 1:]


def _windows(ids: Ids, starts: Indices, length: int) -> Indices:
    """Windows of `length` + 1 tokens from each start."""
    return np.asarray(ids[starts[:, None] + np.arange(length + 1)], dtype=np.int64)
