"""The flags that all commands share, and what happens when config.py or a flag is wrong."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import PROJECT, SCRIPTS, command, edited_config, refusal, run_script

from storyladder.command_line import Parser, load_ladder, positive_number, stage_run
from storyladder.runtime.errors import SettingsError, UserError

SLOW_TO_IMPORT = {"torch", "numpy", "tiktoken", "pyarrow", "tqdm", "huggingface_hub"}


def message(config: Path, preset: str = "default") -> str:
    with pytest.raises(SettingsError) as error:
        load_ladder(config, preset)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, "config.py"])
def test_help_answers_before_anything_slow_is_imported(script: str) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command(script, "--help")[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {script} [-h] [--preset NAME] [--config FILE]")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "storyladder" in imported
    assert imported & SLOW_TO_IMPORT == set()
    assert time.monotonic() - began < 5, "0.1 s on an idle core"


@pytest.mark.parametrize("script", [*SCRIPTS, "config.py"])
def test_help_shows_the_commands_of_the_docstring_as_they_stand_there(script: str) -> None:
    docstring = ast.get_docstring(ast.parse((PROJECT / script).read_text(encoding="utf-8")), clean=False)
    assert docstring is not None and docstring.strip() in run_script(script, "--help").stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "config.py"])
def test_every_script_refuses_an_unknown_flag_and_names_the_nearest(script: str) -> None:
    assert refusal(script, "--pre-set", "demo") == (
        f"error: unknown argument '--pre-set'; did you mean '--preset'?; see python {script} --help\n"
    )


def test_an_unknown_flag_without_a_neighbour_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"argument '--qqq=3'; the flags are --config, --help, --preset, -h; see "):
        Parser("x").parse(["--qqq=3"])
    with pytest.raises(UserError, match=r"^unknown argument 'demo'; see python"):
        Parser("x").parse(["demo"])
    assert capsys.readouterr() == ("", "")


def test_flags_are_not_guessed_from_their_beginnings() -> None:
    with pytest.raises(UserError, match=r"unknown argument '--pre'"):
        Parser("x").parse(["--pre", "demo"])


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "abc", ""])
def test_minutes_that_are_no_number_above_0_are_refused(minutes: str) -> None:
    expected = rf"^argument --minutes: is {re.escape(repr(minutes))}; expected a number above 0; see python "
    with pytest.raises(UserError, match=expected):
        stage_run("tiny", "x", ["--minutes", minutes])


def test_numbers_above_0_are_taken() -> None:
    assert [positive_number(text) for text in ("0.5", "45", "1e3")] == [0.5, 45, 1000]


def test_a_wrong_flag_ends_a_stage_script_with_one_line_and_status_2() -> None:
    assert refusal("train_tiny.py", "--minutes", "abc") == (
        "error: argument --minutes: is 'abc'; expected a number above 0; see python train_tiny.py --help\n"
    )


def test_the_flags_of_a_stage_script_arrive(tmp_path: Path) -> None:
    run = stage_run("children", "x", [])
    assert (run.stage.name, run.ladder.name, run.device) == ("children", "default", "auto")
    assert (run.fresh, run.minutes, run.plan, run.accept_changes) == (False, None, False, False)
    path = edited_config(tmp_path, "PRESETS = (replace(DEMO, name='mine'),)")
    flags = f"--device cpu --preset mine --config {path} --fresh --minutes 3 --plan --accept-changes".split()
    run = stage_run("simple", "x", flags)
    assert (run.stage.name, run.ladder.name, run.device) == ("simple", "mine", "cpu")
    assert (run.fresh, run.minutes, run.plan, run.accept_changes) == (True, 3.0, True, True)


def test_the_three_stage_scripts_differ_in_stage_name_and_docstring_only() -> None:
    names = {"train_tiny.py": "tiny", "train_children.py": "children", "train_simp.py": "simple"}
    trees = set()
    for script, stage in names.items():
        tree = ast.parse((PROJECT / script).read_text(encoding="utf-8"))
        assert isinstance(tree.body[0], ast.Expr), "a docstring comes first"
        del tree.body[0]
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == stage]
        assert len(found) == 1
        found[0].value = "STAGE"
        trees.add(ast.dump(tree))
    assert len(trees) == 1


# --- config files -----------------------------------------------------------------------------------------------------


def test_config_py_and_an_edited_copy_of_it_are_loaded_and_checked(tmp_path: Path) -> None:
    assert load_ladder(None, "default").model.n_params == 27_846_000
    assert load_ladder(None, "default").config_flag is None
    path = edited_config(tmp_path, "PRESETS = (replace(LADDER, model=replace(MODEL, dropout=0.2)),)")
    assert load_ladder(path, "default").model.dropout == 0.2
    assert load_ladder(path, "default").config_flag == str(path)
    path = edited_config(tmp_path, "PRESETS = (replace(LADDER, model=replace(MODEL, dropout=2)),)")
    with pytest.raises(SettingsError, match=r"preset 'default' in .*edited\.py:\n.*dropout is 2; expected 0 to 0\.9"):
        load_ladder(path, "default")


def test_a_missing_config_file_is_told(tmp_path: Path) -> None:
    assert (
        message(tmp_path / "none.py")
        == f"there is no settings file {tmp_path / 'none.py'}; copy config.py there and edit it"
    )
    assert message(tmp_path).startswith("there is no settings file")


def test_what_goes_wrong_in_a_config_file_is_told_in_one_line_with_its_place(tmp_path: Path) -> None:
    compare = "; compare it with the original config.py"
    assert message(written(tmp_path, "x = 1\ny = = 2\n")) == "mine.py line 2: invalid syntax: 'y = = 2'"
    assert (
        message(written(tmp_path, "x = 1\ny = Stage\n"))
        == f"mine.py line 2: NameError: name 'Stage' is not defined{compare}"
    )
    assert message(written(tmp_path, "import nowhere_at_all")) == (
        f"mine.py line 1: ModuleNotFoundError: No module named 'nowhere_at_all'{compare}"
    )
    assert message(written(tmp_path, "\n\n1 / 0")) == f"mine.py line 3: ZeroDivisionError: division by zero{compare}"
    assert "mine.py line 1: FileNotFoundError: " in message(written(tmp_path, "open('nowhere')"))
    assert message(written(tmp_path, b"x = '\xff'\n")).startswith("mine.py")


def test_settings_changed_in_place_are_told_with_their_line(tmp_path: Path) -> None:
    text = "from storyladder.settings import ModelConfig\nMODEL = ModelConfig()\nMODEL.n_layer = 3\n"
    assert message(written(tmp_path, text)).startswith("mine.py line 3: FrozenInstanceError: cannot assign to field")


def test_a_setting_that_was_left_out_is_told_with_its_line(tmp_path: Path) -> None:
    text = "from storyladder.settings import StageConfig\nTINY = StageConfig(name='tiny')\n"
    assert message(written(tmp_path, text)) == (
        "mine.py line 2: StageConfig needs a value for corpus, result_file, script"
    )


@pytest.mark.parametrize("text", ["", "PRESETS = 3", "PRESETS = (1, 2)", "PRESETS = {}"])
def test_a_config_file_without_presets_is_told(tmp_path: Path, text: str) -> None:
    assert message(written(tmp_path, text)) == (
        "mine.py must define PRESETS, a tuple of Ladder, as the original config.py does"
    )


def test_a_forgotten_comma_behind_a_single_preset_is_told(tmp_path: Path) -> None:
    assert message(edited_config(tmp_path, "PRESETS = (LADDER)")).startswith("edited.py must define PRESETS, a tuple")


def test_two_presets_of_one_name_are_refused_instead_of_one_being_ignored(tmp_path: Path) -> None:
    path = edited_config(tmp_path, "PRESETS = (LADDER, replace(LADDER, model=replace(MODEL, n_layer=2)), DEMO)")
    assert message(path) == "edited.py has 2 presets named 'default'; give each its own name"
    assert load_ladder(path, "demo").name == "demo"


def test_a_misspelt_field_is_told_with_its_line(tmp_path: Path) -> None:
    path = edited_config(tmp_path, "MINE = replace(TINY, max_step=5)")
    line = path.read_text(encoding="utf-8").count("\n")
    assert message(path) == f"edited.py line {line}: StageConfig has no field 'max_step'; did you mean 'max_steps'?"


def test_a_stage_that_a_preset_does_not_have_is_refused_in_one_line(tmp_path: Path) -> None:
    path = edited_config(tmp_path, "PRESETS = (replace(LADDER, name='solo', stages=(TINY,)),)")
    expected = f"error: preset 'solo' of {path} has no stage 'children'; expected one of tiny\n"
    assert refusal("train_children.py", "--config", path, "--preset", "solo") == expected


def test_a_broken_config_file_ends_every_script_with_one_line_and_status_2(tmp_path: Path) -> None:
    path = written(tmp_path, "PRESETS = (LADDER,)\n")
    expected = (
        "error: mine.py line 1: NameError: name 'LADDER' is not defined; compare it with the original config.py\n"
    )
    for script in ("train_simp.py", "prepare_data.py", "generate.py", "config.py"):
        assert refusal(script, "--config", path) == expected


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "9999999", "two", ""])
def test_threads_that_are_no_count_are_refused(threads: str) -> None:
    expected = rf"^argument --threads: is {re.escape(repr(threads))}; expected a whole number from 1 to 1,024; see "
    with pytest.raises(UserError, match=expected):
        stage_run("tiny", "x", [f"--threads={threads}"])


def test_a_stage_script_hears_of_precision_and_threads() -> None:
    run = stage_run("tiny", "x", ["--precision", "bf16", "--threads", "3"])
    assert (run.precision, run.threads) == ("bf16", 3)
    assert (stage_run("tiny", "x", []).precision, stage_run("tiny", "x", []).threads) == ("auto", None)
    with pytest.raises(UserError, match=r"^argument --precision: invalid choice: 'half'.*see python"):
        stage_run("tiny", "x", ["--precision", "half"])


def test_loading_a_config_file_does_not_run_what_stands_behind_its_main_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_ladder(edited_config(tmp_path), "demo")
    assert capsys.readouterr() == ("", "")
