"""The flags that all commands share, and loading config.py. Does not import torch, so that --help is instant.

Flags are about this run on this machine; everything about the model is in config.py only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from storyladder.runtime.cores import wait_passively
from storyladder.runtime.errors import SettingsError, UserError, prints_for_all, user_errors
from storyladder.settings import (
    DEFAULT_PRESET,
    PROJECT,
    Ladder,
    StageConfig,
    check,
    nearest,
    quoted,
    typed_path,
)
from storyladder.unknown_flags import answers_to

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
MOST_THREADS = 1024


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, and a hint for every unknown flag.

    `script` is the script's file name in the project folder, which sys.argv does not contain in a notebook.
    """

    def __init__(self, description: str | None, script: str | None = None) -> None:
        super().__init__(
            prog=script,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._typed = quoted(typed_path(script)) if script else self.prog
        self.add_argument("--preset", default=DEFAULT_PRESET, metavar="NAME", help="a preset of config.py")
        self.add_argument("--config", type=Path, metavar="FILE", help="an edited copy of config.py")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error as a UserError."""
        raise UserError(f"{message}; see python {self._typed} --help")

    def print_help(self, file: Any = None) -> None:
        """Print the help once, however many processes torchrun has started."""
        if prints_for_all():
            super().print_help(file)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The flags; a UserError with a hint for each unknown one."""
        wait_passively()  # here because every command parses its flags before it imports torch
        known, extra = self.parse_known_args(argv)
        if extra:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error("; ".join(answers_to(extra, flags, str(known.config or "config.py"))))
        return known


def positive_number(text: str) -> float:
    """Parse a flag's value that must be a finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a number above 0")
    return value


def positive_count(text: str) -> int:
    """Parse a flag's value that must be an integer from 1 to MOST_THREADS."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_THREADS):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number from 1 to {MOST_THREADS:,}")
    return int(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """One run of a stage script: what to train, and how to run it on this machine."""

    ladder: Ladder
    stage: StageConfig
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    fresh: bool = False
    minutes: float | None = None
    plan: bool = False
    accept_changes: bool = False

    def again(self, *flags: str) -> str:
        """The command that continues this run on the same --device, with `flags` appended."""
        device = () if self.device == "auto" else ("--device", self.device)
        return self.ladder.command(self.stage.script, *device, *flags)


def stage_run(
    stage_name: str, description: str | None, argv: Sequence[str] | None, script: str | None = None
) -> StageRun:
    """The flags of a stage script, which is the file `script`, and the settings that it trains with, checked."""
    parser = Parser(description, script and Path(script).name)
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="of the large matmuls; auto picks the fastest one here",
    )
    parser.add_argument(
        "--threads", type=positive_count, metavar="N", help="threads on a CPU; by default as many as speed up the model"
    )
    parser.add_argument("--fresh", action="store_true", help="start this stage over; its old files are renamed")
    parser.add_argument("--minutes", type=positive_number, metavar="N", help="fit the stage's schedule to N minutes")
    parser.add_argument("--plan", action="store_true", help="print what would run and for how long; train nothing")
    parser.add_argument(
        "--accept-changes", action="store_true", help="continue even if settings or data changed since the last save"
    )
    flags = parser.parse(argv)
    ladder = load_ladder(flags.config, flags.preset)
    return StageRun(
        ladder=ladder,
        stage=ladder.stage(stage_name),
        device=flags.device,
        precision=flags.precision,
        threads=flags.threads,
        fresh=flags.fresh,
        minutes=flags.minutes,
        plan=flags.plan,
        accept_changes=flags.accept_changes,
    )


def load_ladder(config: Path | None, preset: str) -> Ladder:
    """Load and check the settings of one preset in config.py, or in an edited copy of it."""
    path = config if config is not None else PROJECT / "config.py"
    values = _run(path)
    chosen = _chosen(values.get("PRESETS"), preset, path.name)
    ladder = check(chosen, str(config or "config.py"))
    return dataclasses.replace(ladder, config_flag=None if config is None else str(config))


@contextlib.contextmanager
def as_typed_for(ladder: Ladder) -> Iterator[None]:
    """Rewrite commands and settings in error messages to what this user types (Ladder.as_typed)."""
    try:
        yield
    except UserError as error:
        error.args = (ladder.as_typed(str(error)),)
        raise


def _run(path: Path) -> dict[str, Any]:
    """Run a config file; returns what it defines. It is the user's Python, so any error in it becomes one line."""
    if not path.is_file():
        raise SettingsError(f"there is no settings file {path}; copy config.py there and edit it")
    try:
        return runpy.run_path(str(path), run_name="storyladder_config")
    except SyntaxError as error:
        raise SettingsError(f"{path.name} line {error.lineno}: {error.msg}: {(error.text or '').strip()!r}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f" line {frame.lineno}" for frame in frames if frame.filename == str(path)]
        where = f"{path.name}{lines[-1] if lines else ''}"
        if isinstance(error, UserError):
            raise SettingsError(f"{where}: {error}") from None
        kind = type(error).__name__
        raise SettingsError(f"{where}: {kind}: {error}; compare it with the original config.py") from None


def _chosen(presets: Any, name: str, file_name: str) -> Ladder:
    """The preset of that name."""
    if not isinstance(presets, (tuple, list)) or not all(isinstance(ladder, Ladder) for ladder in presets):
        raise SettingsError(f"{file_name} must define PRESETS, a tuple of Ladder, as the original config.py does")
    names = [ladder.name for ladder in presets]
    if name not in names:
        raise SettingsError(f"{file_name} has no preset {name!r}{nearest(name, map(str, names))}")
    if names.count(name) > 1:
        raise SettingsError(f"{file_name} has {names.count(name)} presets named {name!r}; give each its own name")
    ladder: Ladder = presets[names.index(name)]
    return ladder


def print_settings(file: str, description: str | None, argv: Sequence[str] | None = None) -> None:
    """`python config.py`, or a copy of it: print the resolved settings of every stage of one preset."""
    own = Path(file).resolve()
    with user_errors():
        flags = Parser(description, own.name).parse(argv)
        config = flags.config or (None if own == PROJECT / "config.py" else own)
        print("\n".join(settings_lines(load_ladder(config, flags.preset))))


def settings_lines(ladder: Ladder) -> list[str]:
    """The settings of a ladder as a table: one column per stage, then the shared settings."""
    model = ladder.model
    lines = [
        f"preset {ladder.name}: {model.n_params:,} parameters "
        f"({model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, context {model.context_length}, "
        f"{model.vocab_size:,} tokens of {ladder.tokenizer}, dropout {model.dropout:g})",
        "",
    ]
    rows = [("tokens per step", [f"{ladder.tokens_per_step(stage):,}" for stage in ladder.stages])]
    rows += [("tokens in all", [f"{ladder.tokens_per_step(stage) * stage.max_steps:,}" for stage in ladder.stages])]
    for field in dataclasses.fields(StageConfig):
        rows.append((field.name, [_shown(getattr(stage, field.name)) for stage in ladder.stages]))
    rows.sort(key=lambda row: row[0] != "name")
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(ladder.stages))]
    for name, cells in rows:
        columns = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{name:20}{columns}".rstrip())
    for part in (ladder.corpus.cleaning, ladder.corpus, ladder.generate, ladder.paths):
        values = [
            f"{field.name}={_shown(getattr(part, field.name))}"
            for field in dataclasses.fields(part)
            if not dataclasses.is_dataclass(getattr(part, field.name))
        ]
        lines += ["", f"{type(part).__name__}: {', '.join(values)}"]
    return lines


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{item}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
