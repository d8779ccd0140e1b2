"""Writing what a stage must not lose: its resume state, the best weights, the result. What a disk refuses waits.

runtime/checkpoint.py knows how a file is written safely; here is decided what is in it, and what a failure means.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import torch

from storyladder.corpus.tokenizer import tokenizer_named
from storyladder.runtime.checkpoint import Payload, previous_of, save_checkpoint
from storyladder.runtime.errors import SaveFailed, say
from storyladder.runtime.machine import is_out_of_memory, machine_line
from storyladder.stage_files import pack_optimizer, pack_weights, plain_settings
from storyladder.starting import Work

_FAILED_SAVES_TO_STOP = 3


def pack_result(work: Work) -> Payload:
    """What result and resume state have in common."""
    return {
        "stage": work.stage.name,
        "step": work.state.step,
        "settings": plain_settings(work.run.ladder, work.run.stage, work.start.ancestors),
        "fitted": work.state.fitted,
        "data": work.data.fingerprints,
        "parent_digest": work.start.parent_digest,
        "tokenizer": tokenizer_named(work.run.ladder.tokenizer).fingerprint,
        "seen_tokens": work.vocabulary.seen_V.to(torch.uint8),
        "machine": machine_line(work.device, work.precision),
        "model": pack_weights(work.model, work.vocabulary),
    }


def save_best(work: Work) -> bool:
    """Write the best weights if they are not on the disk yet; False if it refused. They are kept for the next try."""
    best = work.unsaved_best
    if best is not None and save_file(work, work.files.best, lambda: best, keep_previous=False):
        work.unsaved_best = None
    return work.unsaved_best is None


def save_state(work: Work) -> bool:
    """Write the resume state; False if the disk refused."""
    work.saved_at = time.monotonic()
    if not save_best(work):
        return False  # a state that counts on best weights which are not on the disk could not be gone on from

    def payload() -> Payload:
        return {
            **pack_result(work),
            "optimizer": pack_optimizer(work.model, work.optimizer, work.vocabulary),
            "scaler": work.scaler.state_dict(),
            "progress": dataclasses.asdict(work.state),
        }

    return save_file(work, work.files.resume, payload, keep_previous=True)


def save_file(work: Work, path: Path, payload: Callable[[], Payload], *, keep_previous: bool) -> bool:
    """Save, or warn and go on training, whether disk or memory were short; after several failures in a row, SaveFailed.

    The first process of a group saves; all learn how it went.
    """

    def refusal() -> str | None:
        try:
            save_checkpoint(path, payload(), keep_previous=keep_previous)
        except (OSError, MemoryError, RuntimeError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            work.log.write("save failed", step=work.state.step, file=path.name, error=str(error))
            return str(error.strerror) if isinstance(error, OSError) else "out of memory"
        return None

    why = work.group.first(refusal)
    if why is None:
        work.failed_saves = 0
        return True
    work.failed_saves += 1
    say(f"\nwarning: {path.name} could not be saved ({why}); going on")
    if work.failed_saves >= _FAILED_SAVES_TO_STOP:
        raise SaveFailed(f"{work.failed_saves} saves in a row failed ({why}); {what_is_left(work)}")
    return False


def what_is_left(work: Work) -> str:
    """The last good file, and what to type once there is room again."""
    states = [file for file in (work.files.resume, previous_of(work.files.resume)) if file.exists()]
    good = next((str(file) for file in (*states, work.files.best) if file.exists()), "none")
    # Without any resume state the stage can only begin anew, and best weights are never trained over unasked.
    again = work.run.again(*(() if states or good == "none" else ("--fresh",)))
    return f"the last good file is {good}. Make room, then run {again} again"
