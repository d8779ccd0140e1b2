"""Several processes train as one: the same curve and decisions, files by the first alone, one clear word at an end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from group_program import gradients_of_a_step, weights_moved_by_muon, weights_of_steps_ahead
from running import ENVIRONMENT, PROJECT, precision_flags
from stages import assert_same_curve, elsewhere, files_of, interrupt_in_step, run_of, with_stage

from model import GPT
from storyladder.corpus.token_file import TrainBatches, ValidationWindows
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.distributed import ALONE, Group, device_of_rank
from storyladder.runtime.errors import DataError, PeerLost, UserError
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage

_PATIENCE = 300  # seconds that a busy machine with one core may need


def torchrun(script: str, *flags: object, processes: int = 2) -> list[str]:
    """What to type, with a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return [*start, str(PROJECT / script), *map(str, flags)]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command, running; whatever happens, it is over afterwards."""
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # which torchrun hands on to its processes
            process.communicate(timeout=_PATIENCE)


def finished(command: list[str]) -> tuple[int, str, str]:
    """Its exit status, stdout and stderr."""
    with started(command) as process:
        out, err = process.communicate(timeout=_PATIENCE)
    return process.returncode, out, err


def train(ladder: Ladder, *flags: object) -> list[str]:
    """The command that trains stage 1 of this ladder in two processes."""
    config = Path(ladder.paths.root) / "toy_config.py"
    config.write_text(f"from storyladder.settings import *\nPRESETS = ({ladder!r},)\n", encoding="utf-8")
    return torchrun("train_tiny.py", "--config", config, "--device", "cpu", *flags, *precision_flags("train_tiny.py"))


# --- whole stages -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_the_curve_and_weights_of_one_and_talk_like_one(toy_data: Ladder, tmp_path: Path) -> None:
    alone, both = elsewhere(toy_data, tmp_path, "alone"), elsewhere(toy_data, tmp_path, "both")
    train_stage(run_of(alone), GPT)
    status, out, err = finished(train(both))
    assert status == 0, err
    assert_same_curve(alone, both)
    weights = [read_checkpoint(files_of(ladder).result)["model"] for ladder in (alone, both)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-4)
    assert out.count("stage tiny finished") == 1 and out.count("device cpu") == 1
    assert "2 processes share each batch of 4 sequences" in out
    assert err.count("step 3: val_loss") == 1
    records = read_records(files_of(both).record)
    assert [record["processes"] for record in records if record["event"] == "start"] == [2]
    assert [record["event"] for record in records].count("finished") == 1


@pytest.mark.slow
def test_any_number_of_processes_goes_on_where_another_number_was_stopped(toy_data: Ladder, tmp_path: Path) -> None:
    """One process until a signal in step 5, two until torchrun gets SIGTERM, one to the end."""
    ladder = with_stage(toy_data, max_steps=150, eval_interval=50, save_interval=1000)
    whole, parts = elsewhere(ladder, tmp_path, "whole"), elsewhere(ladder, tmp_path, "parts")
    train_stage(run_of(whole), GPT)
    interrupt_in_step(parts, 5)
    with started(train(parts)) as process:
        wait_for_steps(parts, 15)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=_PATIENCE)
    assert process.returncode == 1 and "SignalException" in err.splitlines()[-1], "torchrun has changed its manners"
    state = read_checkpoint(files_of(parts).resume)["progress"]
    assert 15 <= state["step"] < 150 and err.count(f"saved at step {state['step']}") == 1
    train_stage(run_of(parts), GPT)
    assert_same_curve(whole, parts)


def wait_for_steps(ladder: Ladder, steps: int) -> None:
    """Until the record tells of so many."""
    record, end = files_of(ladder).record, time.monotonic() + _PATIENCE
    while not (record.exists() and max((r.get("step", 0) for r in read_records(record)), default=0) >= steps):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_dies_it_is_told_in_a_line_the_first_saves_and_nobody_hangs(toy_data: Ladder, rank: int) -> None:
    ladder = with_stage(toy_data, max_steps=5000, eval_interval=5000, save_interval=5000)
    with started(train(ladder)) as process:
        wait_for_steps(ladder, 10)
        os.kill(sorted(children_of(process.pid))[rank], signal.SIGKILL)
        tick = time.monotonic()
        _, err = process.communicate(timeout=_PATIENCE)
    assert time.monotonic() - tick < 30
    assert process.returncode == 1
    ours = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1 and "another process of this run is gone" in ours[0], err
    assert err.count("Traceback") == 1, "torchrun's own"
    assert rank == 0 or read_checkpoint(files_of(ladder).resume)["progress"]["step"] >= 10


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    return [int(word) for word in children.read_text().split()]


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused_once_with_numbers_that_fit(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, batch_size=5, micro_batch_size=None)
    status, out, err = finished(train(ladder))
    assert (status, out) == (1, "")
    ours = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1 and "batch_size of stage tiny is 5" in ours[0] and "to 6" in ours[0]
    assert "exitcode  : 2" in err and err.count("Traceback") == 1, "torchrun's own"


# --- one group, looked at closely -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group_of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the two processes of tests/group_program.py found, and what they printed."""
    folder = tmp_path_factory.mktemp("group")
    _, out, err = finished(torchrun("tests/group_program.py", folder))
    assert (folder / "agreements1.json").exists(), err
    return folder, out


def found_by(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"agreements{rank}.json").read_text())
    return found


@pytest.mark.slow
def test_gradients_loss_and_norm_are_those_of_one_process(group_of_two: tuple[Path, str]) -> None:
    expected = gradients_of_a_step(ALONE)
    for rank in (0, 1):
        found = torch.load(group_of_two[0] / f"gradients{rank}of2.pt")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5 if tensor.dim() == 0 else 0, atol=1e-12)


@pytest.mark.slow
def test_muon_moves_all_processes_as_it_moves_one(group_of_two: tuple[Path, str]) -> None:
    expected = weights_moved_by_muon(ALONE)
    found = [torch.load(group_of_two[0] / f"muon{rank}.pt") for rank in (0, 1)]
    for name, tensor in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_steps_ahead_of_a_group_are_those_of_one_process(group_of_two: tuple[Path, str]) -> None:
    expected = weights_of_steps_ahead(ALONE)
    found = [torch.load(group_of_two[0] / f"ahead{rank}.pt") for rank in (0, 1)]
    assert [expected.pop("sequences"), *(each["sequences"] for each in found)] == [12, 6, 6]
    for name, tensor in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        # AdamW makes a full step of rounding where a gradient is nearly zero; losses and norms have no such place.
        numbers = name == "loss and norm"
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-5 if numbers else 0, atol=0 if numbers else 1e-4)


@pytest.mark.slow
def test_a_group_agrees(group_of_two: tuple[Path, str]) -> None:
    for rank in (0, 1):
        found = found_by(group_of_two[0], rank)
        assert found["highest"] == [1, 0] and found["sum"] == 2.0
        assert found["received"] == [[1, None, float("inf")], [0, 1, 2], "torch.int64"]
        assert found["own"] == 10 + rank
        assert found["share"] == [[0, 1, 2], [3, 4, 5]][rank]


@pytest.mark.slow
def test_what_fails_in_one_process_ends_all_and_is_told_by_one(group_of_two: tuple[Path, str]) -> None:
    first, second = (found_by(group_of_two[0], rank) for rank in (0, 1))
    assert (first["user"], second["user"]) == ("OthersFailed: ", "DataError: cut")
    assert (first["first"], second["first"]) == ("DataError: locked", "OthersFailed: ")
    for kind in ("memory", "fail"):
        assert first[kind] == "OutOfMemoryError: full" and second[kind].startswith("MemoryError: another process")


@pytest.mark.slow
def test_a_signal_to_any_process_counts_for_all_once_they_have_agreed(group_of_two: tuple[Path, str]) -> None:
    for rank in (0, 1):
        found = found_by(group_of_two[0], rank)
        assert found["stop"] == [False, False, True, True, False]
        assert found["interrupted"] == "Interrupted: stopped by SIGTERM"


@pytest.mark.slow
def test_only_the_first_is_heard_and_it_notices_at_once_that_the_other_is_dead(group_of_two: tuple[Path, str]) -> None:
    heard, lost = group_of_two[1].splitlines()
    assert heard == "only the first is heard"
    assert json.loads(lost)["lost"].startswith("PeerLost: another process of this run is gone")
    assert json.loads(lost)["seconds"] < 20


# --- agreements, with a stand-in for the other process ----------------------------------------------------------------

OUT_OF_MEMORY, INTERRUPTED, USER_ERROR = 1, 2, 3


@pytest.fixture
def the_other(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the other of two processes brings into an agreement: how it ended, who speaks, two numbers for signals."""
    brings = [0, 0, 0, 0]

    def all_reduce(tensor: torch.Tensor, **_: Any) -> None:
        assert brings, "the connection is gone"
        tensor.copy_(torch.maximum(tensor, torch.tensor(brings)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return brings


def agreed(rank: int, error: Exception | None = None) -> str:
    """What process `rank` of two sees of an agreement, in words."""
    try:
        with Group(rank, 2).agreement():
            if error is not None:
                raise error
    except Exception as seen:
        return f"{type(seen).__name__}: {seen}"
    return "agreed"


def test_an_agreement_ends_for_all_as_it_ended_for_the_worst(the_other: list[int]) -> None:
    cut, full = DataError("cut"), MemoryError("full")
    assert agreed(0) == "agreed"
    assert agreed(0, cut) == "DataError: cut" and cut.print_here is True
    assert agreed(1, full) == "MemoryError: full"
    the_other[:] = [OUT_OF_MEMORY, 0, 0, 0]
    assert agreed(0) == "MemoryError: another process of this run is out of memory"
    assert agreed(0, full) == "MemoryError: full" and agreed(0, cut) == "DataError: cut"
    the_other[:] = [INTERRUPTED, 0, int(signal.SIGTERM), 0]
    assert agreed(0) == agreed(1, full) == "Interrupted: stopped by SIGTERM"
    the_other[:] = [USER_ERROR, 2, 0, 0]  # of the first process, which speaks before the second
    assert agreed(1) == agreed(1, full) == agreed(1, DataError("cut here too")) == "OthersFailed: "
    the_other[:] = [USER_ERROR, 1, 0, 0]
    assert agreed(0, cut) == "DataError: cut"


def test_what_is_a_mistake_of_ours_is_raised_at_once(the_other: list[int]) -> None:
    the_other.clear()
    assert agreed(0, RuntimeError("shapes do not match")) == "RuntimeError: shapes do not match"
    assert agreed(0, ValueError("no number")) == "ValueError: no number"


def test_a_lost_peer_is_not_asked_whether_it_agrees(the_other: list[int]) -> None:
    the_other.clear()
    assert agreed(0, PeerLost("gone")) == "PeerLost: gone"


def test_a_group_that_is_disbanded_asks_nobody(the_other: list[int]) -> None:
    the_other.clear()
    group = Group(1, 2)
    with pytest.raises(AssertionError, match="the connection is gone"):
        group.any(True)
    group.disband()
    assert group.is_alone and not group.is_first
    assert group.any(True) and group.sum(2.5) == 2.5 and group.from_rank_0("x") == "x"
    assert group.on_first(lambda: 3) == group.together(lambda: 3) == 3


# --- shares, without other processes ----------------------------------------------------------------------------------


def test_shares_of_a_batch_and_of_the_validation_windows_are_all_of_them(toy_data: Ladder) -> None:
    import numpy as np

    ids = np.arange(16 * 9 + 1 + 5, dtype=np.uint16)
    batches = TrainBatches(ids, context_length=16, batch_size=6, seed=1, replay=[(ids + 200, 0.3)])
    parts = [batches.batch(3, Group(rank, 3).share_of(6))[0] for rank in range(3)]
    assert (
        np.array_equal(np.concatenate(parts), batches.batch(3)[0])
        and parts[0].max() >= 200
        and all(len(part) == 2 for part in parts)
    )
    windows = ValidationWindows(ids, context_length=16, limit=None, token_bytes_V=np.ones(200, dtype=np.int64))
    for n in (1, 2, 3, 7):
        targets = [
            int(token)
            for rank in range(n)
            for _, targets_BT in windows.batches(2, (rank, n))
            for token in targets_BT.flatten()
        ]
        assert sorted(targets) == list(range(1, len(ids)))


def test_each_process_takes_its_own_gpu_or_all_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    second = Group(5, 6, local_rank=1, local_size=2)
    assert [device_of_rank(name, second) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert chosen == [1, 1]
    assert device_of_rank("cuda:1", ALONE) == "cuda:1"
    with pytest.raises(UserError, match="--device cuda:1 is one device"):
        device_of_rank("cuda:1", second)
    with pytest.raises(UserError, match="3 processes on a machine with 2 GPUs"):
        device_of_rank("auto", Group(0, 3, local_rank=0, local_size=3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_rank("auto", second) == "cpu"
