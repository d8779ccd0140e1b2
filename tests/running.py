"""How tests run a script as a user does: in a process of its own, on settings whose folders lie under tmp_path."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
# Without what the one who runs the tests has set: PYTHONUNBUFFERED moves the place where a closed pipe is met.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
PRECISION = "auto"  # of every stage that a test runs, here or in another process: pytest --precision
SCRIPTS = ("prepare_data.py", "train_tiny.py", "train_children.py", "train_simp.py", "generate.py", "evaluate.py")
TOY_CONFIG = """
from dataclasses import replace
from config import CHILDREN, SIMPLE, TINY
from storyladder.settings import CorpusConfig, GenerateConfig, Ladder, ModelConfig, Paths

TOY = dict(max_steps={steps}, batch_size=4, max_lr=5e-3, min_lr=5e-4, warmup_steps=2, eval_interval=4, save_interval=3)
TOY |= dict(replay=None, sample_tokens=0, pictures=False)
TINY = replace(TINY, **TOY)
CHILDREN = replace(CHILDREN, **TOY, patience=3)
SIMPLE = replace(SIMPLE, **TOY, patience=3)
LADDER = Ladder(
    model=ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, dropout=0.1),
    stages=(TINY, CHILDREN, SIMPLE),
    corpus=CorpusConfig(sample_stories=120, val_percent=10.0),
    generate=GenerateConfig(max_new_tokens=20),
    paths=Paths(root={root!r}),
)
PRESETS = (LADDER,)
"""


def command(script: str, *flags: object) -> list[str]:
    """What to type, with the precision that stages are to run in."""
    return [sys.executable, str(PROJECT / script), *map(str, flags), *precision_flags(script)]


def precision_flags(script: str) -> list[str]:
    """For a stage script whose precision pytest's option forces."""
    return ["--precision", PRECISION] if script.startswith("train_") and PRECISION != "auto" else []


def pretend_amx() -> None:
    """Let torch take this CPU for one with AMX, here and in all processes that tests start."""
    folder = str(PROJECT / "tests" / "pretend_amx")
    sys.path.append(folder)
    importlib.import_module("pretend_amx").install()
    os.environ["PYTHONPATH"] = ENVIRONMENT["PYTHONPATH"] = folder


def run_script(
    script: str, *flags: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Its exit status, stdout and stderr."""
    return subprocess.run(
        command(script, *flags),
        cwd=PROJECT,
        env={**ENVIRONMENT, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refusal(script: str, *flags: object) -> str:
    """The message of a command that refuses: exit status 2, nothing on stdout, `error: ...` and no traceback."""
    done = run_script(script, *flags)
    assert done.returncode == 2, done
    assert done.stdout == "" and done.stderr.startswith("error: ") and "Traceback" not in done.stderr, done
    return done.stderr


def edited_config(folder: Path, *lines: str) -> Path:
    """A copy of config.py with lines added at its end, as a user would edit it."""
    path = folder / "edited.py"
    text = (PROJECT / "config.py").read_text(encoding="utf-8")
    path.write_text(text + "\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@cache
def flags_of(script: str) -> frozenset[str]:
    """What a command's --help names."""
    done = run_script(script, "--help")
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout.partition("\noptions:\n")[2]))
