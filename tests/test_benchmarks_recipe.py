"""The recipe benchmark: interpolation checked by hand, and a whole comparison on toy presets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MUON
from running import refusal, run_script
from stages import with_stage

from benchmarks.recipe import Point, arm_of, losses_table, plain_lines, table, when
from storyladder.command_line import load_ladder
from storyladder.settings import Ladder

SLOW = [Point(0, 0, 0.0, 10.0, 4.0), Point(10, 80, 1.0, 6.0, 2.5), Point(20, 160, 2.0, 4.0, 2.0)]
QUICK = [Point(0, 0, 0.0, 10.0, 4.0), Point(10, 80, 1.5, 5.0, 2.25), Point(20, 160, 3.0, 3.0, 1.5)]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(5.0, (10, 80, 1.5)), (4.0, (15, 120, 2.25)), (7.5, (5, 40, 0.75)), (3.0, (20, 160, 3.0)), (11.0, (0, 0, 0.0))],
)
def test_a_loss_is_interpolated_between_two_evaluations(loss: float, expected: tuple[float, float, float]) -> None:
    assert when(QUICK, loss) == dict(zip(("step", "tokens", "minutes"), expected, strict=True))


def test_the_first_time_a_loss_is_reached_counts_and_a_loss_never_reached_is_none() -> None:
    wavy = [*QUICK, Point(30, 240, 4.0, 5.5, 2.3), Point(40, 320, 5.0, 2.0, 1.2)]
    assert when(wavy, 5.0) == {"step": 10, "tokens": 80, "minutes": 1.5}
    assert when(QUICK, 2.9) is None
    assert when([Point(0, 0, 0.0, float("nan"), 1.0), *QUICK], 5.0) == when(QUICK, 5.0)


def test_the_table_shows_when_each_recipe_reaches_the_final_loss_of_the_first() -> None:
    lines = table({"slow": SLOW, "quick": QUICK})
    assert "steps to 4.000 (slow)" in lines[0]
    assert lines[2] == "| slow | 160 | 2.0 | 4.0000 | 2.000 | 20 | 160 | 2.00 | 100% | 1.0 |"
    assert lines[3] == "| quick | 160 | 3.0 | 3.0000 | 1.500 | 15 | 120 | 2.25 | 75% | 0.9 |"
    never = table({"quick": QUICK, "slow": SLOW})[3]
    assert never.startswith("| slow | 160 | 2.0 | 4.0000 | 2.000 | never |")


def test_losses_of_a_step_share_a_row() -> None:
    assert losses_table({"slow": SLOW, "quick": QUICK[:2]})[2:] == [
        "| 0 | 10.000 | 10.000 |",
        "| 10 | 6.000 | 5.000 |",
        "| 20 | 4.000 |  |",
    ]


def test_a_plain_loop_is_extrapolated_to_the_steps_of_the_first_recipe() -> None:
    first, second = plain_lines({"slow": SLOW, "quick": QUICK}, 27.0)
    assert "27 s per step (measured), which is 9.0 minutes for 20 steps to a loss of 4.000 (extrapolated)" in first
    assert second == "Storyladder with quick reaches it 4.0 times sooner."  # 9 minutes over 2.25


def test_an_arm_is_the_preset_with_another_length_and_its_own_folder(tmp_path: Path) -> None:
    asked = {"steps": 300, "seed": 5, "windows": 7, "evaluations": 30, "data": tmp_path / "text", "folder": tmp_path}
    default, swift = (arm_of(load_ladder(None, name), **asked) for name in ("default", "swift"))  # type: ignore[arg-type]
    assert default.folder("data") == swift.folder("data") == tmp_path / "text"
    assert (default.folder("checkpoints"), swift.folder("runs")) == (
        tmp_path / "default" / "checkpoints",
        tmp_path / "swift" / "runs",
    )
    for arm, warmup in ((default, 30), (swift, 20)):
        stage = arm.stages[0]
        assert (stage.max_steps, stage.warmup_steps, stage.eval_interval, stage.val_windows) == (300, warmup, 10, 7)
        assert stage.seed == 5
    assert swift.stages[0].optimizer == "muon" and swift.model.dropout == 0


@pytest.mark.slow
def test_toy_recipes_are_trained_compared_and_not_trained_again(toy_data: Ladder, tmp_path: Path) -> None:
    config, out, data = tmp_path / "toy_config.py", tmp_path / "out", toy_data.folder("data")
    presets = (toy_data, replace(with_stage(toy_data, **MUON), name="swift"))
    config.write_text(f"from storyladder.settings import *\nPRESETS = {presets!r}\n", encoding="utf-8")
    flags = ("--config", config, "--device", "cpu", "--steps", 20, "--evaluations", 4, "--data", data, "--out", out)
    flags = (*flags, "--no-results", "--json", "--no-picture")
    done = run_script("benchmarks/recipe.py", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [point["step"] for point in found["curves"]["swift"]] == [0, 5, 10, 15, 20]
    first, last = (found["curves"]["default"][place] for place in (0, -1))
    assert last["tokens"] == 20 * 4 * 16 and last["val_loss"] < first["val_loss"] and last["minutes"] > 0
    assert found["curves"]["swift"][0]["val_loss"] == first["val_loss"]  # the same seed, text and windows
    assert found["reached"]["default"]["step"] <= 20
    assert "| swift | 1,280 |" in done.stdout
    again = run_script("benchmarks/recipe.py", *flags)
    assert again.returncode == 0 and "stage tiny is finished" in again.stdout
    assert json.loads(again.stdout.splitlines()[-1]) == found


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.recipe import draw

    draw({"slow": SLOW, "quick": QUICK}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_reported_in_one_line() -> None:
    assert refusal("benchmarks/recipe.py", "--steps", 3).startswith("error: --steps is 3; expected 10 or more")
    assert "no preset 'swfit'" in refusal("benchmarks/recipe.py", "--no-picture", "--recipes", "default", "swfit")
    assert "name each preset once" in refusal("benchmarks/recipe.py", "--recipes", "swift", "swift")


@pytest.mark.slow
def test_the_plain_loop_is_timed(toy_data: Ladder) -> None:
    pytest.importorskip("transformers")
    from benchmarks.recipe import seconds_of_plain_loop

    torch.manual_seed(0)
    assert 0 < seconds_of_plain_loop(toy_data, "cpu", 2) < 60
