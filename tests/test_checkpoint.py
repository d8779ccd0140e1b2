"""Checkpoints: whole or not there, verified, and harmless no matter who wrote them."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import resource
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from storyladder.runtime.checkpoint import (
    digest_of,
    load_checkpoint,
    previous_of,
    read_checkpoint,
    save_checkpoint,
)
from storyladder.runtime.errors import CheckpointError


def payload(step: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"a": torch.randn(50, 40, generator=generator), "b": torch.arange(7)},
        "progress": {"step": step, "loss": 0.5, "best": float("inf"), "ok": True, "none": None, "list": [1, 2.5, "x"]},
    }


def save(path: Path, step: int = 1, *, keep_previous: bool = True) -> None:
    save_checkpoint(path, payload(step), keep_previous=keep_previous)


def test_what_was_saved_is_read_back_with_every_type_and_digit(tmp_path: Path) -> None:
    save(tmp_path / "x.pt")
    read = read_checkpoint(tmp_path / "x.pt")
    assert read["progress"] == payload()["progress"]
    assert all(torch.equal(read["model"][name], tensor) for name, tensor in payload()["model"].items())
    assert list(tmp_path.iterdir()) == [tmp_path / "x.pt"]


def test_the_generation_before_is_kept_until_the_next_save(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for step in (1, 2, 3):
        save(path, step)
    assert read_checkpoint(path)["progress"]["step"] == 3
    assert read_checkpoint(previous_of(path))["progress"]["step"] == 2


def test_anything_but_tensors_and_plain_values_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        save_checkpoint(tmp_path / "x.pt", {"path": tmp_path}, keep_previous=True)
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path)
    whole = path.read_bytes()
    draw = random.Random(1)
    for length in {0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(40))}:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_every_flipped_bit_is_detected_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path)
    whole = path.read_bytes()
    good = digest_of(read_checkpoint(path))
    tensor_at = whole.index(payload()["model"]["a"].numpy().tobytes())
    draw = random.Random(2)
    places = [(tensor_at + draw.randrange(8000), True) for _ in range(60)]
    places += [(draw.randrange(len(whole)), False) for _ in range(100)]
    for place, in_tensor in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert digest_of(read_checkpoint(path)) == good
            assert not in_tensor
        except CheckpointError:
            pass


def test_a_damaged_newest_file_is_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path, 1)
    save(path, 2)
    path.write_bytes(path.read_bytes()[:-500])
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded.payload["progress"]["step"] == 1
    assert loaded.path == previous_of(path)
    assert len(loaded.notes) == 1 and "damaged" in loaded.notes[0] and "x.pt.corrupt" in loaded.notes[0]
    assert (tmp_path / "x.pt.corrupt").exists() and not path.exists()


def test_files_set_aside_never_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for _ in range(2):
        path.write_bytes(b"junk")
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    assert {file.name for file in tmp_path.iterdir()} == {"x.pt.corrupt", "x.pt.corrupt-2"}


def test_a_kill_between_the_two_renames_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path, 1)
    path.rename(previous_of(path))
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded.payload["progress"]["step"] == 1 and not loaded.notes


def test_nothing_there_is_not_an_error_but_all_damaged_is(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    assert load_checkpoint(path) is None
    path.write_bytes(b"")
    previous_of(path).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged.*x\.prev\.pt is damaged"):
        load_checkpoint(path)


@pytest.mark.slow
def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """In a process of its own: the limit on file sizes cannot be raised again."""
    path = tmp_path / "x.pt"
    save(path)
    code = (
        "import resource, signal, sys, pathlib, torch\n"
        "from storyladder.runtime.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    save_checkpoint(pathlib.Path(sys.argv[1]), {'a': torch.zeros(9000)}, keep_previous=True)\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(errno.EFBIG)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert resource.RLIMIT_FSIZE and signal.SIGXFSZ  # this test is for systems that have them


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Evil()))
    zipped = tmp_path / "zipped.pt"
    torch.save({"format": "storyladder checkpoint", "model": Evil()}, zipped)
    for path in (plain, zipped):
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    assert not canary.exists()


def test_foreign_and_absurd_archives_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pt"
    torch.save({"model": torch.zeros(2)}, foreign)
    with pytest.raises(CheckpointError, match="not a Storyladder checkpoint"):
        read_checkpoint(foreign)
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(CheckpointError, match="add up to more than the file"):
        read_checkpoint(bomb)
    save(tmp_path / "newer.pt")
    newer = torch.load(tmp_path / "newer.pt", weights_only=True)
    torch.save({**newer, "format_version": 99}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match="format version 99"):
        read_checkpoint(tmp_path / "newer.pt")


def test_a_sound_file_of_a_later_version_is_refused_and_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format_version": 99}, path)
    with pytest.raises(CheckpointError, match="format version 99"):
        load_checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_depends_on_every_value_type_shape_and_name() -> None:
    base = {"t": torch.zeros(4), "n": 1, "d": {"x": None}}
    digest = digest_of(base)
    assert digest_of({"d": {"x": None}, "n": 1, "t": torch.zeros(4), "digest": "ignored"}) == digest
    others = [
        {**base, "t": torch.zeros(2, 2)},
        {**base, "t": torch.zeros(4, dtype=torch.float64)},
        {**base, "t": -torch.zeros(4)},
        {**base, "n": 1.0},
        {**base, "n": True},
        {**base, "d": {"y": None}},
        {**base, "e": None},
    ]
    assert len({digest, *map(digest_of, others)}) == len(others) + 1


def test_a_folder_in_the_place_of_a_checkpoint_is_set_aside_like_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(path, 1)
    save(path, 2)
    path.unlink()
    path.mkdir()
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded.payload["progress"]["step"] == 1
    assert (tmp_path / "x.pt.corrupt").is_dir()


def test_a_refused_renaming_leaves_the_old_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    save(path, 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        save(path, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]
    assert read_checkpoint(path)["progress"]["step"] == 1


@pytest.mark.parametrize(("number", "told"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_disk_that_refuses_to_sync_the_folder_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    """EINVAL is what file systems say that know no such call."""
    real = os.fsync

    def faulty(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", faulty)
    with pytest.raises(OSError, match=os.strerror(number)) if told else contextlib.nullcontext():
        save(tmp_path / "x.pt")


def test_a_small_file_that_promises_large_tensors_is_refused_before_they_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    header = {"format": "storyladder checkpoint", "format_version": 1, "digest": "0" * 64}
    torch.save({**header, "w": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(CheckpointError, match="tensors are larger than the file"):
        read_checkpoint(path)


def test_content_that_holds_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    content: dict[str, Any] = {"format": "storyladder checkpoint", "format_version": 1, "digest": "0" * 64}
    content["again"] = content
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged"):
        read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*x\.pt"):
        read_checkpoint(tmp_path / "x.pt")
