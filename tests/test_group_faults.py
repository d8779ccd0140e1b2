"""A fault that one of two processes meets: both take the same decision, nobody waits for ever, one tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import running
import torch.distributed
from conftest import TOY_CHILDREN, TOY_MODEL, TOY_SIMPLE, TOY_TINY
from running import ENVIRONMENT, PROJECT
from stages import assert_same_curve, elsewhere, files_of, run_of

from model import GPT
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder, Paths
from storyladder.stage.loop import train_stage

pytestmark = pytest.mark.slow
_PATIENCE = 300  # seconds that a busy machine with one core may need
STAGES: dict[str, dict[str, Any]] = {
    "memory": {"batch_size": 128, "micro_batch_size": 32, "max_steps": 4},
    "numbers": {"max_steps": 26, "eval_interval": 30},
    "minutes": {"max_steps": 1000, "eval_interval": 1000},
    "nothing": {"save_interval": 100},
    "death": {"max_steps": 10, "eval_interval": 5, "save_interval": 100},
}


def as_torchrun_does(rank: int) -> dict[str, str]:
    """The environment of one of two processes."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_USE_AGENT_STORE": True,
        "OMP_NUM_THREADS": 1,
    }
    return {**ENVIRONMENT, **{name: str(value) for name, value in values.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_toy_tokens: Callable[..., Path]) -> Path:
    """Where two processes have played all cases of tests/group_stages.py, each under a root of its name."""
    folder = tmp_path_factory.mktemp("stages")
    for case in STAGES:
        ladder = ladder_of(folder, case)
        write_toy_tokens(ladder.folder("data") / "train.bin", n_tokens=5000)
        write_toy_tokens(ladder.folder("data") / "val.bin", seed=10)
        text = f"from storyladder.settings import *\nPRESETS = ({ladder!r},)\n"
        (folder / f"{case}.py").write_text(text, encoding="utf-8")
    stores = {  # which torchrun holds
        case: torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        for case in STAGES
    }
    arguments = [f"{case}={store.port}" for case, store in stores.items()]
    program = [sys.executable, str(PROJECT / "tests/group_stages.py"), str(folder), running.PRECISION, *arguments]
    processes = [subprocess.Popen(program, cwd=PROJECT, env=as_torchrun_does(rank)) for rank in (0, 1)]
    try:
        for process in processes:
            process.wait(_PATIENCE)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


def ladder_of(folder: Path, case: str) -> Ladder:
    """Without dropout, whose draws follow the micro-batches."""
    return Ladder(
        model=replace(TOY_MODEL, dropout=0.0),
        stages=(replace(TOY_TINY, **STAGES[case]), TOY_CHILDREN, TOY_SIMPLE),
        paths=Paths(root=str(folder / case)),
    )


def found_by_both(folder: Path, case: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{case}.{rank}.json").read_text()) for rank in (0, 1)]


def records_of(ladder: Ladder, event: str) -> list[dict[str, Any]]:
    return [record for record in read_records(files_of(ladder).record) if record["event"] == event]


def test_memory_that_runs_out_in_one_process_halves_the_micro_batch_of_all(folder: Path, tmp_path: Path) -> None:
    """In an evaluation of the first; in the second for a batch, a sum of gradients, AdamW's state, and in a forward."""
    ladder = ladder_of(folder, "memory")
    alone = elsewhere(ladder, tmp_path, "alone")
    train_stage(run_of(alone), GPT)
    first, second = found_by_both(folder, "memory")
    assert first["error"] == "NoneType: None" and first == second
    events = [(record["step"], record["micro_batch_size"]) for record in records_of(ladder, "out of memory")]
    assert events == [(0, 16), (0, 2), (3, 1)]
    assert_same_curve(alone, ladder)


def test_numbers_that_go_bad_in_one_process_lead_all_back_to_the_same_state(folder: Path) -> None:
    ladder = ladder_of(folder, "numbers")
    first, second = found_by_both(folder, "numbers")
    assert first == second and first["error"] == "NoneType: None"
    rollbacks = [(record["step"], record["from_step"], record["why"]) for record in records_of(ladder, "rollback")]
    assert rollbacks == [(4, 25, "20 steps in a row were not finite"), (4, 8, "weights were not finite")]
    assert files_of(ladder).result.exists()


def test_where_clocks_differ_that_of_the_first_ends_the_stage(folder: Path) -> None:
    first, second = found_by_both(folder, "minutes")
    assert first == second and first["error"] == "NoneType: None"
    assert len(records_of(ladder_of(folder, "minutes"), "finished")) == 1


def test_memory_that_is_out_for_good_in_one_process_ends_all_is_told_once_and_saved(folder: Path) -> None:
    found = found_by_both(folder, "nothing")
    assert all(one["error"].startswith("OutOfMemory: out of memory even with one sequence at a time") for one in found)
    assert [one["told"] for one in found] == [True, False]
    assert read_checkpoint(files_of(ladder_of(folder, "nothing")).resume)["progress"]["step"] == 3


def test_a_process_that_dies_in_an_evaluation_costs_no_step(folder: Path) -> None:
    found = json.loads((folder / "death.0.json").read_text())
    assert found["error"].startswith("PeerLost: another process of this run is gone") and found["told"] is True
    assert read_checkpoint(files_of(ladder_of(folder, "death")).resume)["progress"]["step"] == 5
    assert not (folder / "death.1.json").exists()
