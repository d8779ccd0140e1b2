"""Power loss: all states that a disk may be in after any prefix of the file calls of a run, and what is read from them.

The calls are recorded while a toy trains. A model of the file system then replays every prefix three ways: nothing lost
(the process was killed), everything lost that was never synced, and names kept while unsynced content is lost (as a
journal of names only may do). From every state the newest resume state, best weights and result that were complete
must be read.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from pathlib import Path

from judging import Reference, Verdict
from playground import Toy

from storyladder.runtime.checkpoint import load_checkpoint
from storyladder.runtime.errors import CheckpointError

RESUME, BEST, RESULT = "tiny_resume.pt", "tiny_best.pt", "tinystories_28M_final.pt"
_RECORDER = """
import base64, json, os
out = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def record(*call):
    os.write(out, (json.dumps(call) + chr(10)).encode())
import failpoints
class Recording(failpoints.FaultyFile):
    def write(self, data):
        raw = data.encode() if isinstance(data, str) else bytes(data)
        record("write", self._name, base64.b64encode(raw).decode())
        return super().write(data)
failpoints.FaultyFile = Recording
real_call = armed.call
def call(point, name, do, **how):
    result = real_call(point, name, do, **how)
    if point != "write":
        record(point, name)
    return result
armed.call = call
"""


@dataclasses.dataclass
class Inode:
    """A file's content, and how much of it a power loss would leave."""

    content: bytes = b""
    synced: bytes = b""


class Disk:
    """One folder: names now, and names as they were when the folder was last synced."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.synced_names: dict[str, Inode] = {}

    def apply(self, call: list[str]) -> None:
        """Do one recorded call."""
        point, name = call[0], call[1]
        if point == "open":
            self.names[name] = Inode()
        elif point == "write" and name in self.names:
            self.names[name].content += base64.b64decode(call[2])
        elif point == "fsync" and name in self.names:
            self.names[name].synced = self.names[name].content
        elif point == "fsync-folder":
            self.synced_names = dict(self.names)
        elif point == "unlink":
            self.names.pop(name, None)
        elif point == "rename":
            source = name.replace(".prev.pt", ".pt") if ".prev" in name else name.replace(".pt", ".partial")
            self.names[name] = self.names.pop(source)

    def states(self) -> dict[str, dict[str, bytes]]:
        """What may be found afterwards: file contents by name."""
        return {
            "killed": {name: inode.content for name, inode in self.names.items()},
            "power lost": {name: inode.synced for name, inode in self.synced_names.items()},
            "power lost, names kept": {name: inode.synced for name, inode in self.names.items()},
        }


def play(toy: Toy, _reference: Reference) -> Verdict:
    """Record one run, replay all prefixes, and read what can be read from every different state of the disk."""
    path = toy.root.with_name(f"{toy.root.name}.calls")
    outcome = toy.run(prepare=_RECORDER.format(path=str(path)))
    verdict = Verdict()
    verdict.demand(outcome.status == 0, outcome.last_error())
    calls = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    disk, complete, prefixes = Disk(), dict.fromkeys((RESUME, BEST, RESULT), -1), 0
    seen: set[int] = set()
    folder = toy.root.with_name(f"{toy.root.name}.states")
    for call in calls:
        if call[0] in ("forward", "evaluate") or call[:2] == ["unlink", RESUME]:
            _note_complete(disk, complete, folder)  # the program continues, so all that it has saved must be safe
        if call[1].startswith(("tiny_", "tinystories", "checkpoints")):
            disk.apply(call)
        for kind, found in disk.states().items():
            files = {name: content for name, content in found.items() if not name.endswith(".partial")}  # never read
            prefixes += 1
            key = hash((*complete.values(), *sorted(files.items())))
            if key in seen:
                continue
            seen.add(key)
            if problem := _problem(files, folder, complete):
                verdict.failed += 1
                verdict.problems.append(f"{kind} after {call[0]} {call[1]}: {problem}")
    verdict.count = len(seen)
    verdict.notes.append(f"{prefixes:,} prefixes and kinds of loss, {len(seen)} different states")
    verdict.demand(min(complete.values()) > 0, f"not everything was ever complete: {complete}")
    return verdict


def _note_complete(disk: Disk, complete: dict[str, int], folder: Path) -> None:
    """The steps of the files as they are now, by name."""
    steps = _steps({name: inode.content for name, inode in disk.names.items()}, folder)
    complete.update((name, step) for name, step in steps.items() if step is not None)


def _problem(files: dict[str, bytes], folder: Path, complete: dict[str, int]) -> str | None:
    """What is wrong with a state, in words: of every file the newest complete one, or a newer one, must be read."""
    try:
        steps = _steps(files, folder)
    except CheckpointError as error:
        return str(error)
    # With the result complete the stage is finished, and its resume states are deleted.
    needed = [BEST, RESULT if complete[RESULT] >= 0 else RESUME]
    for name in needed:
        step = steps[name]
        if complete[name] >= 0 and (step is None or step < complete[name]):
            return f"{name} of step {complete[name]} was complete, but that of step {step} is read"
    return None


def _steps(files: dict[str, bytes], folder: Path) -> dict[str, int | None]:
    """The steps that a program would find, by name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    found = {name: load_checkpoint(folder / name) for name in (RESUME, BEST, RESULT)}
    return {name: None if loaded is None else int(loaded.payload["step"]) for name, loaded in found.items()}
