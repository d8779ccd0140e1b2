"""Token files: whole or refused; batches and validation windows as pure functions of the file."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from storyladder.corpus.token_file import TokenFile, TokenWriter, TrainBatches, ValidationWindows, open_token_file
from storyladder.corpus.tokenizer import EOT
from storyladder.runtime.errors import DataError

TOKENIZER = "toy:1"
IDS = np.array([5, 6, 7, EOT, 8, 300, EOT], dtype=np.uint16)


def write(path: Path, ids: np.ndarray = IDS) -> Path:
    with TokenWriter(path, TOKENIZER) as writer:
        writer.add(ids, stories=2, text_bytes=11)
        writer.finish(sources=["a.txt"], cleaning={"dropped empty": 1})
    return path


def opened(path: Path, *, vocab_size: int = 50257, at_least: int = 2) -> TokenFile:
    return open_token_file(path, tokenizer=TOKENIZER, vocab_size=vocab_size, at_least=at_least)


def refusal(path: Path, *, vocab_size: int = 50257, at_least: int = 2) -> str:
    with pytest.raises(DataError) as error:
        opened(path, vocab_size=vocab_size, at_least=at_least)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def change_sidecar(path: Path, **values: object) -> None:
    sidecar = path.with_name(path.name + ".json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **values}))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full for files beyond this many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.bin"


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_token_file_is_raw_little_endian_uint16_and_the_sidecar_says_all_of_it(path: Path) -> None:
    write(path)
    raw = bytes.fromhex("0500 0600 0700 50c4 0800 2c01 50c4")
    assert path.read_bytes() == raw
    assert json.loads(path.with_name("train.bin.json").read_text()) == {
        "format_version": 1,
        "dtype": "uint16",
        "tokens": 7,
        "stories": 2,
        "text_bytes": 11,
        "largest_id": 50256,
        "tokenizer": "toy:1",
        "sha256": hashlib.sha256(raw).hexdigest(),
        "sources": ["a.txt"],
        "cleaning": {"dropped empty": 1},
    }
    assert names(path.parent) == {"train.bin", "train.bin.json"}


def test_what_is_added_in_parts_adds_up(path: Path) -> None:
    ids = IDS[::-1].copy()  # the largest first
    with TokenWriter(path, TOKENIZER) as writer:
        writer.add(ids[:4], stories=1, text_bytes=5)
        writer.add(ids[:0], stories=0, text_bytes=0)
        writer.add(ids[4:], stories=1, text_bytes=6)
        writer.finish(sources=["a.txt"], cleaning={"dropped empty": 1})
    other = write(path.with_name("other.bin"), ids)
    assert path.read_bytes() == other.read_bytes()
    assert path.with_name("train.bin.json").read_text() == path.with_name("other.bin.json").read_text()


def test_without_finish_or_after_an_exception_there_is_no_file_and_the_old_one_stays(path: Path) -> None:
    for old in ({}, {"train.bin", "train.bin.json"}):
        with TokenWriter(path, TOKENIZER) as writer:
            writer.add(IDS[:4], stories=1, text_bytes=5)
            assert names(path.parent) == {*old, "train.bin.partial"}
        with pytest.raises(ZeroDivisionError), TokenWriter(path, TOKENIZER) as writer:
            writer.add(IDS[:4], stories=1, text_bytes=5)
            raise ZeroDivisionError
        assert names(path.parent) == set(old)
        write(path)
    assert opened(path).ids.tolist() == IDS.tolist()


def test_the_sidecar_gets_its_name_last_when_everything_is_on_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"replace {Path(b).name}"), replace(a, b)))
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    write(path)
    assert done == ["fsync", "fsync", "replace train.bin", "replace train.bin.json"]


def test_a_new_bin_beside_an_old_sidecar_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    replace = os.replace

    def replace_once(source: Path, target: Path) -> None:
        if Path(target).suffix == ".json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(KeyboardInterrupt):
        write(path, IDS[::-1].copy())
    assert names(path.parent) == {"train.bin", "train.bin.json"}
    assert "(sha256 differs from its sidecar)" in refusal(path)


@pytest.mark.parametrize(("n_tokens", "limit"), [(100_000, 50_000), (10, 100)])
def test_a_full_disk_leaves_no_new_file_and_the_old_pair_as_it_was(path: Path, n_tokens: int, limit: int) -> None:
    for old in (set(), {"train.bin", "train.bin.json"}):
        with (
            pytest.raises(DataError, match=r"^File too large while writing .*train\.bin; nothing was replaced\. Free "),
            largest_file(limit),
        ):  # in the .bin, and in its sidecar
            write(path, np.ones(n_tokens, dtype=np.uint16))
        assert names(path.parent) == old
        write(path)
    assert opened(path).ids.tolist() == IDS.tolist()


def test_a_folder_that_cannot_be_made_is_told(path: Path) -> None:
    path.write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"^cannot write .*: File exists; check the folder and its permissions"):
        write(path / "train.bin")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(path: Path) -> None:
    file = opened(write(path))
    assert file.ids.dtype == np.uint16 and file.ids.tolist() == IDS.tolist()
    assert (file.sidecar.tokens, file.sidecar.stories, file.sidecar.largest_id) == (7, 2, EOT)
    assert file.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(file.ids, np.memmap)
    seen = file.seen(50257)
    assert seen.shape == (50257,) and np.flatnonzero(seen).tolist() == [5, 6, 7, 8, 300, EOT]


def test_a_file_that_is_not_there_is_refused_with_the_command_that_makes_it(path: Path) -> None:
    assert refusal(path) == f"token file {path} does not exist; create it with python prepare_data.py"


def test_a_bin_without_its_sidecar_is_refused(path: Path) -> None:
    path.write_bytes(IDS.tobytes())
    assert refusal(path) == (
        f"{path} has no sidecar train.bin.json, so it may be incomplete; rebuild it with python prepare_data.py"
    )


@pytest.mark.parametrize(("size", "words"), [(12, "12 bytes"), (13, "13 bytes"), (16, "16 bytes"), (0, "0 bytes")])
def test_a_truncated_odd_or_enlarged_file_is_refused(path: Path, size: int, words: str) -> None:
    write(path)
    path.write_bytes((path.read_bytes() + bytes(10))[:size])
    assert refusal(path) == (
        f"{path} has {words}, but its sidecar lists 7 tokens (14 bytes): it was cut or changed; "
        "rebuild it with python prepare_data.py"
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "[]", "3", "null", "{}", '{"tokens": 7}', '"format_version"', b"\xff\xfe"],
)
def test_a_foreign_or_broken_sidecar_is_refused(path: Path, text: str | bytes) -> None:
    write(path)
    path.with_name("train.bin.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "train.bin.json" in refusal(path) and "rebuild it with" in refusal(path)


@pytest.mark.parametrize(
    "values", [{"tokens": "7"}, {"tokens": -7}, {"extra": 1}, {"largest_id": None}, {"tokens": 7.0}]
)
def test_a_sidecar_with_foreign_values_is_refused(path: Path, values: dict[str, object]) -> None:
    write(path)
    change_sidecar(path, **values)
    assert "is not a sidecar of Storyladder" in refusal(path)


def test_another_format_or_type_of_number_is_refused(path: Path) -> None:
    write(path)
    change_sidecar(path, format_version=2, a_field_of_the_future=3)
    assert refusal(path) == f"{path} has format 2, expected 1; rebuild it with python prepare_data.py"
    write(path)
    change_sidecar(path, dtype="uint32")
    assert "holds uint32, expected uint16" in refusal(path)


def test_a_file_of_another_tokenizer_is_refused(path: Path) -> None:
    write(path)
    change_sidecar(path, tokenizer="other:9")
    assert "was made with tokenizer other:9, expected toy:1" in refusal(path)


def test_a_token_beyond_the_vocabulary_is_refused(path: Path) -> None:
    write(path)
    assert "holds token 50256, but the vocabulary has only 50,256 (0 to 50255)" in refusal(path, vocab_size=50256)
    assert opened(path, vocab_size=50257)


def test_a_sidecar_that_lies_about_the_largest_token_is_refused_also_after_a_verified_opening(path: Path) -> None:
    write(path)
    for _ in range(2):
        change_sidecar(path, largest_id=300)
        assert "was changed (largest_id differs from its sidecar)" in refusal(path, vocab_size=400)
        change_sidecar(path, largest_id=EOT)
        opened(path)


def test_too_few_tokens_for_a_window_are_refused(path: Path) -> None:
    write(path)
    assert opened(path, at_least=7)
    assert refusal(path, at_least=8) == (
        f"{path} has 7 tokens, too few for one window of 8; prepare more text or lower context_length in config.py"
    )


def test_an_empty_file_is_refused(path: Path) -> None:
    with TokenWriter(path, TOKENIZER) as writer:
        writer.finish(sources=[], cleaning={})
    assert "has 0 tokens, too few" in refusal(path)


def flip(path: Path, byte: int = 4) -> None:
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1
    path.write_bytes(raw)


def test_a_flipped_bit_is_refused_also_after_a_verified_opening(path: Path) -> None:
    for byte in (0, 8):
        write(path)
        flip(path, byte)
        assert "was changed (sha256 differs from its sidecar)" in refusal(path)
        write(path)
        opened(path)
        time = path.stat().st_mtime_ns
        flip(path, byte)
        os.utime(path, ns=(time + 1_000_000, time + 1_000_000))
        assert "(sha256 differs from its sidecar)" in refusal(path)


def test_a_verified_file_that_was_cut_is_refused(path: Path) -> None:
    time = write(path).stat().st_mtime_ns
    opened(path)
    path.write_bytes(path.read_bytes()[:-2])
    os.utime(path, ns=(time, time))
    assert "was cut or changed" in refusal(path)


def test_the_second_opening_does_not_read_the_file_again(path: Path) -> None:
    opened(write(path))
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened(path).ids.tolist() != IDS.tolist(), "same size and time: taken without hashing"
    change_sidecar(path, sha256=hashlib.sha256(b"").hexdigest())
    assert "(sha256 differs" in refusal(path), "another promise: hashed"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"null"])
def test_a_damaged_memory_of_the_verdict_only_costs_another_reading(path: Path, text: bytes) -> None:
    write(path)
    memory = path.with_name(".train.bin.verified")
    memory.write_bytes(text)
    opened(path)
    assert json.loads(memory.read_text())["size"] == 14


def test_a_folder_that_cannot_be_written_only_costs_another_reading(path: Path) -> None:
    write(path)
    path.with_name(".train.bin.verified").mkdir()
    assert opened(path).sidecar.tokens == 7


# --- training batches -------------------------------------------------------------------------------------------------

COUNT = np.arange(95, dtype=np.uint16)  # 9 windows of 10 tokens and 4 tokens more


def batches(
    *, batch_size: int = 4, seed: int = 1337, ids: np.ndarray = COUNT, context_length: int = 10
) -> TrainBatches:
    return TrainBatches(ids, context_length=context_length, batch_size=batch_size, seed=seed)


def starts_of_epoch(epoch: int, *, seed: int = 1337) -> list[int]:
    read = batches(batch_size=1, seed=seed)
    return [int(read.starts(k)[0]) for k in range(9 * epoch, 9 * epoch + 9)]


def test_the_order_of_the_windows_is_this_one_for_ever() -> None:
    """Another order here means that no run can be resumed exactly. Then raise the version of resume states."""
    read = batches()
    assert [read.starts(k).tolist() for k in range(6)] == [
        [70, 20, 0, 10],
        [40, 80, 60, 50],
        [30, 74, 34, 14],
        [84, 64, 54, 44],
        [4, 24, 20, 80],
        [60, 30, 10, 70],
    ]
    assert read.starts(1_000_000).tolist() == [72, 42, 52, 82]


def test_every_window_is_read_exactly_once_an_epoch() -> None:
    for epoch in range(20):
        starts = sorted(starts_of_epoch(epoch))
        offset = starts[0]
        assert 0 <= offset <= 4
        assert starts == [offset + 10 * i for i in range(9)]


def test_epochs_and_seeds_differ_in_their_order() -> None:
    orders = {
        tuple(start // 10 for start in starts_of_epoch(epoch, seed=seed)) for epoch in range(5) for seed in (1, 2)
    }
    assert len(orders) == 10
    assert all(list(order) != sorted(order) for order in orders)


def test_the_tokens_behind_the_last_whole_window_are_read_in_other_epochs() -> None:
    last = [max(starts_of_epoch(epoch)) + 10 for epoch in range(20)]
    assert set(last) == {90, 91, 92, 93, 94}, "as targets; 94 is the last token"


def test_targets_are_the_inputs_one_token_later() -> None:
    read = batches()
    for k in range(10):
        x, y = read.batch(k)
        assert x.shape == y.shape == (4, 10) and x.dtype == y.dtype == np.int64
        assert (x[:, 0] == read.starts(k)).all()
        assert (x == x[:, :1] + np.arange(10)).all() and (y == x + 1).all()


def test_batch_k_does_not_depend_on_what_was_read_before() -> None:
    forwards = [batches().starts(k).tolist() for k in range(30)]
    read = batches()
    assert [read.starts(k).tolist() for k in reversed(range(30))] == forwards[::-1]
    assert [read.starts(k).tolist() for k in range(30)] == forwards


def test_rows_follow_each_other_whatever_the_batch_size_and_across_the_end_of_an_epoch() -> None:
    one_by_one = [int(batches(batch_size=1).starts(k)[0]) for k in range(60)]
    for batch_size in (4, 9, 20):
        read = batches(batch_size=batch_size)
        together = np.concatenate([read.starts(k) for k in range(60 // batch_size)])
        assert together.tolist() == one_by_one[: len(together)]


def test_a_file_of_exactly_one_window_is_read_over_and_over() -> None:
    x, y = batches(ids=COUNT[:11], batch_size=3).batch(5)
    assert x.tolist() == [list(range(10))] * 3 and y[0, -1] == 10


EARLIER = np.arange(200, 263, dtype=np.uint16)  # 6 windows of 10 tokens and 2 tokens more
OLDEST = np.arange(300, 345, dtype=np.uint16)  # 4 windows and 4 tokens more
SHARES = [(EARLIER, 0.1), (OLDEST, 0.25)]


def replaying(batch_size: int = 4, replay: Sequence[tuple[np.ndarray, float]] = SHARES) -> TrainBatches:
    return TrainBatches(COUNT, context_length=10, batch_size=batch_size, seed=1337, replay=replay)


def origins(read: TrainBatches, n_batches: int) -> list[int]:
    """Which file each sequence comes from, told from its tokens."""
    first = np.concatenate([read.batch(k)[0][:, 0] for k in range(n_batches)])
    return np.searchsorted([200, 300], first, side="right").tolist()


@pytest.mark.parametrize("n", [1, 4, 10, 37, 400])
def test_replay_has_its_exact_share_of_the_sequences(n: int) -> None:
    of = origins(replaying(batch_size=1), n)
    assert abs(of.count(1) - 0.1 * n) < 1 and abs(of.count(2) - 0.25 * n) <= 2


def test_replayed_sequences_are_those_whose_share_reaches_a_whole_number() -> None:
    of = origins(replaying(batch_size=1, replay=[(EARLIER, 0.3)]), 20)
    assert of == [int((n + 1) * 3 // 10 > n * 3 // 10) for n in range(20)]


def test_each_file_is_read_in_its_own_order_as_if_it_were_alone() -> None:
    read = replaying()
    starts = np.concatenate([read.starts(k) for k in range(50)])
    own = starts[starts < len(COUNT)].tolist()
    assert own == [int(batches(batch_size=1).starts(k)[0]) for k in range(len(own))]
    for begin, n_windows in ((len(COUNT), 6), (len(COUNT) + len(EARLIER), 4)):
        size = {6: len(EARLIER), 4: len(OLDEST)}[n_windows]
        mine = starts[(begin <= starts) & (starts < begin + size)]
        assert len(mine) >= 2 * n_windows, "two epochs"
        for epoch in range(2):
            within = sorted(mine[epoch * n_windows : (epoch + 1) * n_windows])
            assert [start - within[0] for start in within] == [10 * i for i in range(n_windows)]


def test_replay_does_not_depend_on_what_was_read_before_nor_on_the_batch_size() -> None:
    forwards = [replaying().starts(k).tolist() for k in range(30)]
    read = replaying()
    assert [read.starts(k).tolist() for k in reversed(range(30))] == forwards[::-1]
    one_by_one = [int(replaying(batch_size=1).starts(k)[0]) for k in range(120)]
    assert [start for batch in forwards for start in batch] == one_by_one


def test_windows_of_every_file_hold_consecutive_tokens_of_that_file() -> None:
    for k in range(40):
        x, y = replaying().batch(k)
        assert (x == x[:, :1] + np.arange(10)).all() and (y == x + 1).all()
        assert ((y[:, -1] < 95) | (x[:, 0] >= 200)).all() and ((y[:, -1] < 263) | (x[:, 0] >= 300)).all()
        assert (replaying().batch(k, slice(1, 3))[0] == x[1:3]).all()


def test_an_epoch_counts_the_stages_own_text_only() -> None:
    assert batches().epoch(9) == 4.0, "36 windows of 9"
    read = replaying()
    own = [origins(replaying(), k).count(0) if k else 0 for k in range(30)]
    assert [read.epoch(k) for k in range(30)] == [count / 9 for count in own]


# --- validation windows -----------------------------------------------------------------------------------------------

TOKEN_BYTES = np.arange(100) % 7


def windows(n_tokens: int = 95, limit: int | None = None, context_length: int = 10) -> ValidationWindows:
    return ValidationWindows(COUNT[:n_tokens], context_length=context_length, limit=limit, token_bytes_V=TOKEN_BYTES)


def targets(read: ValidationWindows, batch_size: int = 4) -> list[int]:
    found = []
    for x, y in read.batches(batch_size):
        assert x.shape == y.shape and len(x) <= batch_size and (y == x + 1).all()
        found += y.flatten().tolist()
    return found


@pytest.mark.parametrize("n_tokens", [95, 91, 92, 90, 11, 5])
def test_validation_reads_the_whole_file_once_with_its_rest(n_tokens: int) -> None:
    read = windows(n_tokens)
    assert targets(read) == list(range(1, n_tokens))
    assert read.tokens == n_tokens - 1
    assert len(read) == -(-(n_tokens - 1) // 10)
    assert read.text_bytes == TOKEN_BYTES[1:n_tokens].sum()


def test_validation_is_the_same_every_time_and_for_every_batch_size() -> None:
    read = windows()
    assert targets(read, 4) == targets(read, 4) == targets(read, 1) == targets(read, 100)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_a_limit_spreads_windows_evenly_over_the_file(limit: int) -> None:
    read = windows(limit=limit)
    starts = [int(row[0]) for x, _ in read.batches(3) for row in x]
    assert len(starts) == len(set(starts)) == limit == len(read)
    assert starts[0] == 0 and (limit == 1 or starts[-1] == 80)
    gaps = np.diff(starts)
    assert limit == 1 or gaps.max() - gaps.min() <= 10
    assert read.tokens == 10 * limit == len(targets(read))
    assert read.text_bytes == TOKEN_BYTES[targets(read)].sum()


@pytest.mark.parametrize("limit", [9, 10, 1000])
def test_a_limit_of_all_windows_or_more_is_the_whole_file(limit: int) -> None:
    assert targets(windows(limit=limit)) == list(range(1, 95))


def test_the_toy_files_of_the_other_tests_are_sound(tmp_path: Path, write_toy_tokens: Callable[..., Path]) -> None:
    from storyladder.corpus.tokenizer import gpt2_tokenizer

    path = write_toy_tokens(tmp_path / "toy.bin")
    assert open_token_file(path, tokenizer=gpt2_tokenizer().fingerprint, vocab_size=50257).sidecar.tokens == 700
