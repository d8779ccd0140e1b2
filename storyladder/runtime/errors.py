"""User errors: one clear line and exit status 2. Any other exception is a bug of ours and keeps its traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from storyladder.runtime.console import console

# torchrun kills all processes of a group when one exits: a process without a message waits for those that have one.
GRACE_SECONDS = 1.0
_REQUIRED = ("torch", "tiktoken", "numpy", "tqdm", "ijson", "ftfy", "huggingface_hub")


class UserError(Exception):
    """Something the user can fix. The message names the wrong value, what was expected, and what to type next."""

    exit_status = 2
    print_here: bool | None = None  # whether this rank is the one that prints it; None if there is no group (yet)


class SettingsError(UserError):
    """An invalid value in config.py, or an invalid flag."""


class DataError(UserError):
    """A text or token file that is missing, damaged, of another kind, or does not match the settings."""


class DownloadError(UserError):
    """A file that could not be downloaded completely."""


class CheckpointError(UserError):
    """A result or resume state that is missing, damaged, not ours, or of another shape."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose content is not what was written."""


class SaveFailed(UserError):
    """Saving failed several times in a row; the last good file is named. Status 75 means `try again later`."""

    exit_status = 75


class OutOfMemory(UserError):
    """Not even one sequence at a time fits in memory. Status 75 means `try again later`."""

    exit_status = 75


class TrainingFailed(UserError):
    """The loss or the weights stay NaN or infinite."""

    exit_status = 70


class PeerLost(UserError):
    """Another process of the group died or stopped responding. Status 75 means `try again later`."""

    exit_status = 75


class OutputLost(UserError):
    """Some output could not be written, to a full disk for example; the work itself is done."""

    exit_status = 74


class OthersFailed(Exception):
    """Another process of the group failed and prints the error; this one exits silently."""

    exit_status = UserError.exit_status


class Interrupted(Exception):
    """A signal asked the program to exit, and everything is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


def report(line: str) -> None:
    """Print a line to stderr. A closed terminal or a log on a full disk loses the line but does not stop training."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a UserError into one message on stderr and its exit status; exit silently on a signal or a closed pipe.

    Inside, print always works: see runtime/console.py.
    """
    with console() as stdout, _as_exit_status():
        try:
            yield
        except SystemExit:  # raised by --help
            stdout.flush()
            raise
        stdout.flush()
        if stdout.failure is not None:
            raise OutputLost(f"not all of the output could be written ({stdout.failure.strerror}); the work is done")


@contextlib.contextmanager
def _as_exit_status() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _print_error(error)
        raise SystemExit(error.exit_status) from None
    except OthersFailed as error:
        time.sleep(GRACE_SECONDS)
        raise SystemExit(error.exit_status) from None
    except Interrupted as stop:
        raise SystemExit(stop.exit_status) from None
    except ModuleNotFoundError as error:
        if error.name not in _REQUIRED:
            raise
        install = "python -m pip install -c constraints.txt -r requirements.txt"
        _print_error(UserError(f"the package {error.name} is not installed here; run {install}"))
        raise SystemExit(UserError.exit_status) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # `python generate.py | head`: the reader has exited.
        raise SystemExit(141) from None  # 128 + SIGPIPE, which Windows does not define


def _print_error(error: UserError) -> None:
    """Print the error, unless another process does."""
    if error.print_here if error.print_here is not None else prints_for_all():
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(GRACE_SECONDS)


def prints_for_all() -> bool:
    """Whether this process prints what all processes run into: local rank 0 does, of those torchrun started here."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"
