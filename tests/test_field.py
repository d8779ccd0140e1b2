"""What people met in the field, through the scripts they run: notebooks, odd folders, what to type next."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ENVIRONMENT, PROJECT, SCRIPTS, TOY_CONFIG, command

import generate
from storyladder.runtime.lock import locked

CONFIG = "my config.py"  # a name that a shell would cut in two
ROOT_FOLDERS = {"data", "checkpoints", "runs", "reports", ".venv", ".git", "__pycache__"}


def type_there(root: Path, line: str, *, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a line as it would be typed in `root`, `python` being the one of the tests."""
    line = re.sub(r"\bpython ", f"{shlex.quote(sys.executable)} ", line)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=root,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},  # quicker at this size, above all next to other tests
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == status and "Traceback" not in done.stderr, (done.stdout, done.stderr)
    return done


def typed(script: str, *flags: str) -> str:
    return f"python {shlex.join([str(PROJECT / script), '--config', CONFIG, *flags])}"


def write_config(root: Path, *, steps: int = 5, name: str = CONFIG) -> None:
    (root / name).write_text(TOY_CONFIG.format(root=str(root), steps=steps), encoding="utf-8")


@pytest.fixture(scope="module")
def first_rung(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder elsewhere with sample stories and a trained stage 1, and what training it printed. Not to be changed."""
    root = tmp_path_factory.mktemp("climbed")
    write_config(root)
    type_there(root, typed("prepare_data.py", "--sample"))
    return root, type_there(root, typed("train_tiny.py", "--device", "cpu")).stdout


@pytest.fixture
def climbed(first_rung: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it to change."""
    root = shutil.copytree(first_rung[0], tmp_path / "copy")
    write_config(root)
    return root


# --- the next command -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_commands_that_stages_print_can_be_typed_as_they_are(first_rung: tuple[Path, str], climbed: Path) -> None:
    printed = first_rung[1]
    for script in ("train_children.py", "train_simp.py", "generate.py"):
        (line,) = re.findall(r"^next: (.*)$", printed, re.MULTILINE)
        assert line.startswith(f"python {PROJECT / script} --config '{CONFIG}'")
        done = type_there(climbed, line)
        printed = done.stdout
    assert printed.startswith("Once upon a time")


@pytest.mark.slow
def test_the_commands_and_files_in_errors_are_those_that_were_given(climbed: Path) -> None:
    (climbed / "data" / "train_ch.bin").unlink()
    error = type_there(climbed, typed("train_children.py"), status=2).stderr
    assert f"create it with {typed('prepare_data.py')}\n" in error
    (line,) = re.findall(r"create it with (.*)$", error, re.MULTILINE)
    type_there(climbed, f"{line} --sample")
    config = climbed / CONFIG
    config.write_text(config.read_text().replace("n_embd=16", "n_embd=32"))
    error = type_there(climbed, typed("train_children.py"), status=2).stderr
    assert f"n_embd is 16 in the file and 32 in {CONFIG}" in error and f"undo the change in {CONFIG}" in error
    error = type_there(climbed, typed("train_children.py", "--lr", "1"), status=2).stderr
    assert f"set max_lr (StageConfig) in {CONFIG}; see python {PROJECT / 'train_children.py'} --help" in error


# --- a finished stage -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_steps_after_the_end_are_refused_with_what_to_type_which_then_works(climbed: Path) -> None:
    write_config(climbed, steps=7)
    error = type_there(climbed, typed("train_tiny.py"), status=2).stderr
    assert "max_steps was 5 and is 7" in error
    line = re.search(r"keep the old result under another name: (.*?--fresh);", error)
    assert line is not None
    assert "after 7 steps" in type_there(climbed, line[1]).stdout


@pytest.mark.slow
def test_stories_are_not_replaced_under_a_stage_that_trains_on_them(climbed: Path) -> None:
    before = (climbed / "data" / "train.bin").read_bytes()
    with locked(climbed / "checkpoints" / ".tiny.lock"):
        error = type_there(climbed, typed("prepare_data.py", "--sample"), status=2).stderr
        assert error.startswith(f"error: {climbed / 'data' / 'train.bin'} is in use by ") and error.count("\n") == 1
        assert str(os.getpid()) in error
        type_there(climbed, typed("prepare_data.py", "--sample", "--stage", "children"))
    assert (climbed / "data" / "train.bin").read_bytes() == before
    type_there(climbed, typed("prepare_data.py", "--sample", "--stage", "tiny"))


# --- stdout -----------------------------------------------------------------------------------------------------------

TELL = ("--prompt", "One “day ", "--seed", "1", "--max-new-tokens", "3")


@pytest.fixture
def in_root(first_rung: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(first_rung[0])
    yield first_rung[0]


@pytest.mark.slow
def test_in_a_notebook_a_story_arrives_in_what_stands_in_for_stdout(in_root: Path) -> None:
    told = []
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            generate.main(["--config", CONFIG, *TELL])
        told.append(out.getvalue())
    assert told[0].startswith("One “day") and told[0] == told[1]
    assert "training never saw" in err.getvalue()


def test_in_a_notebook_usage_names_the_script_and_not_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as left:
        generate.main(["--oops"])
    assert left.value.code == 2 and err.getvalue().endswith("; see python generate.py --help\n")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_story_is_told_in_any_code_page(in_root: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    generate.main(["--config", CONFIG, *TELL])
    out.flush()
    assert out.buffer.getvalue().startswith("One “day".encode(encoding, "backslashreplace"))  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_story_is_told_without_a_console(in_root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, name, None)
    generate.main(["--config", CONFIG, *TELL])


@pytest.mark.slow
@pytest.mark.parametrize("redirect", [">&- 2>&-", "2>&- | cat", "| head -1"])
def test_a_stage_trains_however_it_is_redirected(climbed: Path, redirect: str) -> None:
    type_there(climbed, f"{typed('train_tiny.py', '--fresh')} {redirect}; s=${{PIPESTATUS[0]}}; [ $s = 0 -o $s = 141 ]")
    assert (climbed / "checkpoints" / "tinystories_28M_final.pt").exists() or "head" in redirect
    assert not list((climbed / "checkpoints").glob("*.partial"))


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_blank_at_the_end_changes_no_story_and_unseen_words_are_named(
    in_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for prompt in ("Once upon a time", "Once upon a time  ", "Once <|endoftext|> 漢字"):
        generate.main(["--config", CONFIG, "--seed", "1", "--max-new-tokens", "5", "--prompt", prompt])
        told.append(capsys.readouterr())
    assert told[0].out == told[1].out and "never saw" not in told[1].err
    assert "ordinary text" in told[2].err and "training never saw" in told[2].err and "'漢字'" in told[2].err


# --- the folder and the interpreter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, "config.py"])
def test_every_script_finds_its_modules_also_on_a_safe_path_and_from_anywhere(tmp_path: Path, script: str) -> None:
    for cwd in (PROJECT, tmp_path):
        python, path, *_ = command(script)
        for line in ([python, path, "--help"], [python, "-I", path, "--help"]):
            done = subprocess.run(
                line,
                cwd=cwd,
                env={**ENVIRONMENT, "PYTHONSAFEPATH": "1"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_importing_a_script_leaves_the_path_alone() -> None:
    names = ", ".join(script.removesuffix(".py") for script in (*SCRIPTS, "config.py"))
    program = f"import sys; before = list(sys.path); import {names}; assert sys.path == before"
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=ENVIRONMENT, check=True, timeout=60)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_every_file_survives_a_clone_by_git_for_windows_byte_for_byte(tmp_path: Path) -> None:
    original, clone = tmp_path / "original", tmp_path / "clone"
    shutil.copytree(PROJECT, original, ignore=shutil.ignore_patterns(*ROOT_FOLDERS, ".*_cache"))

    def git(*words: str) -> str:
        alone = {**ENVIRONMENT, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(
            ["git", *who, *words], cwd=original, env=alone, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    names = git("ls-files", "-z").split("\0")[:-1]
    assert "storyladder/corpus/assets/r50k_base.tiktoken" in names and "Makefile" in names
    for setting in ("core.autocrlf=true", "core.eol=crlf"):
        git("-c", setting, "clone", "-q", str(original), str(clone))
        changed = [name for name in names if (clone / name).read_bytes() != (original / name).read_bytes()]
        assert changed == [], setting
        shutil.rmtree(clone)
