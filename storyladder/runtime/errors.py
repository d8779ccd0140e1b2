"""The user's mistakes: one clear line and exit status 2. Every other exception is ours and keeps its traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from storyladder.runtime.console import console

# torchrun ends all processes of a group as soon as one has left: who has nothing to say lets the others speak first.
LAST_WORDS = 1.0  # seconds
_REQUIRED = ("torch", "tiktoken", "numpy", "tqdm", "ijson", "ftfy", "huggingface_hub")


class UserError(Exception):
    """Something the user can mend. The message says what is wrong (the value), what was expected, what to type next."""

    exit_status = 2
    tell: bool | None = None  # whether this process of a group is the one that tells it; None as long as no group is


class SettingsError(UserError):
    """A value in config.py, or a flag, that cannot be meant."""


class DataError(UserError):
    """A text or token file that is missing, damaged, foreign or does not fit."""


class DownloadError(UserError):
    """A file that could not be fetched whole."""


class CheckpointError(UserError):
    """A result or resume state that is missing, damaged, foreign or of another shape."""


class DamagedCheckpoint(CheckpointError):
    """A file of ours whose content is not what was written."""


class SaveFailed(UserError):
    """Saving failed several times in a row; the last good file is named. Status 75 means `try again later`."""

    exit_status = 75


class OutOfMemory(UserError):
    """Not even one sequence at a time fits. Status 75 means `try again later`."""

    exit_status = 75


class TrainingFailed(UserError):
    """Numbers that went bad for good."""

    exit_status = 70


class PeerLost(UserError):
    """Another process of the group that trains together died or fell silent. Status 75 means `try again later`."""

    exit_status = 75


class OutputLost(UserError):
    """Not all that was printed could be written, to a full disk for example; the work itself is done."""

    exit_status = 74


class OthersFailed(Exception):
    """Another process of the group met an error and tells it; this one leaves without a word."""

    exit_status = UserError.exit_status


class Interrupted(Exception):
    """A signal asked the program to leave, and it has brought everything into safety."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_status = 128 + signal_number


def say(line: str) -> None:
    """A line on stderr. A closed terminal or a log on a full disk takes the words away, and not the training."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a UserError into one message on stderr and its exit status; leave quietly on a signal or a closed pipe.

    Inside, everything may print: see runtime/console.py.
    """
    with console() as stdout, _as_exit_status():
        try:
            yield
        except SystemExit:  # --help leaves like this
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
        _tell(error)
        raise SystemExit(error.exit_status) from None
    except OthersFailed as error:
        time.sleep(LAST_WORDS)
        raise SystemExit(error.exit_status) from None
    except Interrupted as stop:
        raise SystemExit(stop.exit_status) from None
    except ModuleNotFoundError as error:
        if error.name not in _REQUIRED:
            raise
        install = "python -m pip install -c constraints.txt -r requirements.txt"
        _tell(UserError(f"the package {error.name} is not installed here; run {install}"))
        raise SystemExit(UserError.exit_status) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # `python generate.py | head`: the reader has left.
        raise SystemExit(141) from None  # 128 + SIGPIPE, which Windows does not name


def _tell(error: UserError) -> None:
    """Print it, unless it is another process that does."""
    if error.tell if error.tell is not None else speaks():
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(LAST_WORDS)


def speaks() -> bool:
    """Whether this process tells what all meet: of those that torchrun started on a machine, the first does."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"
