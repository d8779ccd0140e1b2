"""Cases 44 to 48 of the matrix: other processes, signals, clocks, devices, and files and prompts of strangers."""

from __future__ import annotations

import os
import pickle
import pty
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from failpoints import PROJECT
from judging import (
    Injection,
    Reference,
    Verdict,
    check_outcome,
    compare,
    demand_same_training,
    fault_then_again,
    recover,
    refuses,
)
from launcher import KILLED, Launch, run_process, start
from playground import NO_DROPOUT, PLAIN, STEADY, TRAIN, WHOLE, Toy, sound_steps

from storyladder.runtime.checkpoint import FORMAT, FORMAT_VERSION, digest_of

RESULT = "tinystories_28M_final.pt"
_LEAVE = {"int": 130, "term": 143, "hup": 129}
_SECONDS_TO_LEAVE = 10.0
_REFUSED_IN = 1.0  # of processor time


# --- 44: two processes ------------------------------------------------------------------------------------------------


def lock_cases() -> Iterator[Injection]:
    """Case 44."""
    yield Injection(44, "a second train_tiny.py exits immediately and names the first", _second(TRAIN), fast=True)
    yield Injection(44, "a second prepare_data.py exits immediately", _second_prepare, WHOLE)
    yield Injection(44, "the lock of a killed process is free", fault_then_again("forward:14:kill", statuses=(KILLED,)))
    yield Injection(44, "telling while training", _tell_while_training, WHOLE)


def _second(script: str) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        first = start(toy.launch("forward:14:tell forward:14:sleep=3"))
        first.wait_until_told()
        outcome = start(toy.launch(script=script), place="second").wait()
        verdict.demand(outcome.status not in (0, 1), f"status {outcome.status}")
        verdict.demand(f"process {first.pid}" in outcome.stderr, outcome.last_error())
        verdict.demand(outcome.cpu_seconds < _REFUSED_IN, f"took {outcome.cpu_seconds:.1f} s")
        check_outcome(verdict, outcome, must_fire=False)
        verdict.demand(first.wait().status == 0, "the first was disturbed")
        compare(toy, verdict, reference)
        return verdict

    return play


def _second_prepare(toy: Toy, _reference: Reference) -> Verdict:
    verdict = Verdict()
    arguments = ("--sample", "--stage", "tiny")
    faults = "write@train.bin:1:tell write@train.bin:1:sleep=2"
    first = start(toy.launch(faults, *arguments, script="prepare_data.py"))
    first.wait_until_told()
    outcome = start(toy.launch("", *arguments, script="prepare_data.py"), place="second").wait()
    verdict.demand(outcome.status == 2 and f"process {first.pid}" in outcome.stderr, outcome.last_error())
    verdict.demand(first.wait().status == 0, "the first was disturbed")
    return verdict


def _tell_while_training(toy: Toy, reference: Reference) -> Verdict:
    """generate.py reads best weights while they are being replaced; it needs no lock and disturbs nobody."""
    verdict = Verdict()
    first = start(toy.launch("rename@tiny_best:2-9:sleep=0.05 forward:9:tell"))
    first.wait_until_told()
    for _ in range(4):
        told = start(toy.launch("", "--max-new-tokens", "3", script="generate.py"), place="told").wait()
        verdict.demand(told.status == 0, told.last_error())
    verdict.demand(first.wait().status == 0, "the training was disturbed")
    compare(toy, verdict, reference)
    return verdict


# --- 45: signals ------------------------------------------------------------------------------------------------------


def signal_cases() -> Iterator[Injection]:
    """Case 45."""
    moments = (
        "forward:1",
        "forward:8",
        "forward:23",
        "evaluate:2",
        "evaluate:20",
        "write@tiny_resume:40",
        "rename@tiny_b:2",
    )
    for name, status in _LEAVE.items():
        for moment in (*moments, "rename@tiny_resume.pt:1", "fsync-folder:3", "open@tiny.jsonl:4"):
            faults = f"{moment}:{name}"
            yield Injection(45, faults, _leaves(faults, status), fast=faults in ("forward:8:int", "evaluate:20:term"))
    for moment in (*moments, "write@tinystories:5", "rename@tinystories:1"):
        faults = f"{moment}:usr1"
        yield Injection(45, f"{faults}: saves and continues", _saves(faults, moment), fast="d:8" in faults)
        faults = f"{moment}:term=2"
        twice = fault_then_again(faults, statuses=(143,))
        yield Injection(45, f"{faults}: twice exits immediately", twice, fast="resume" in faults)
    for name, status in _LEAVE.items():
        for moment in ("open@train.bin:1", "write@train.bin:1", "close@val.bin:1", "write@val.bin:1"):
            yield Injection(45, f"prepare_data.py: {moment}:{name}", _prepare_left(f"{moment}:{name}", status), WHOLE)
        yield Injection(45, f"generate.py: evaluate:5:{name}", _generate_left(name, status), WHOLE)
    for name in ("train", "train with errors", "prepare", "generate"):
        yield Injection(45, f"| head: {name}", _piped(name), WHOLE)
    yield Injection(45, "the terminal window is closed", _terminal_closed, STEADY)
    yield Injection(45, "nohup: SIGHUP stays ignored", _ignored(signal.SIGHUP, "hup"))
    yield Injection(45, "in the background of a script: SIGINT stays ignored", _ignored(signal.SIGINT, "int"))


def _leaves(faults: str, status: int) -> Callable[[Toy, Reference], Verdict]:
    """Saved at the step where it was, within ten seconds, and it continues exactly there."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        outcome = toy.run(faults)
        check_outcome(verdict, outcome)
        verdict.demand(outcome.seconds < _SECONDS_TO_LEAVE, f"took {outcome.seconds:.1f} s")
        verdict.demand(outcome.status == status, f"status {outcome.status}: {outcome.last_error()}")
        verdict.demand("saved at step" in outcome.stderr, outcome.last_error())
        verdict.demand("tiny_resume.pt" in sound_steps(toy), "nothing is saved")
        recover(toy, verdict, reference)
        return verdict

    return play


_NO_SAVE_AFTERWARDS = ("forward:23", "evaluate:20", "write@tinystories", "rename@tinystories")


def _saves(faults: str, moment: str) -> Callable[[Toy, Reference], Verdict]:
    """SIGUSR1: one resume state more than without it, unless the stage is about to end."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = fault_then_again(faults, statuses=(0,))(toy, reference)
        trace = toy.root.with_name(f"{toy.root.name}.out") / "trace"
        saves = trace.read_text(encoding="utf-8").splitlines().count("done rename tiny_resume.pt")
        usual = reference.trace.count("done rename tiny_resume.pt")
        more = 0 if moment.startswith(_NO_SAVE_AFTERWARDS) else 1
        verdict.demand(saves == usual + more, f"{saves} resume states are saved, {usual} without the signal")
        return verdict

    return play


def _prepare_left(faults: str, status: int) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        arguments = ("--sample", "--stage", "tiny")
        outcome = toy.run(faults, *arguments, script="prepare_data.py")
        check_outcome(verdict, outcome)
        right = (status, 0) if "close@val" in faults else (status,)  # there the work is done but for the renaming
        verdict.demand(outcome.status in right, f"status {outcome.status}: {outcome.last_error()}")
        left = [path.name for path in toy.root.rglob("*.partial")]
        verdict.demand(not left, f"left behind: {left}")
        verdict.demand(toy.run("", *arguments, script="prepare_data.py").status == 0, "cannot be prepared again")
        verdict.demand(toy.run().status == 0, "cannot train on it")
        return verdict

    return play


def _generate_left(name: str, status: int) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        assert toy.run().status == 0
        arguments = ("--max-new-tokens", "200", "--num-samples", "3", "--seed", "1")
        outcome = toy.run(f"evaluate:5:{name}", *arguments, script="generate.py")
        check_outcome(verdict, outcome)
        verdict.demand(outcome.status == status, f"status {outcome.status}: {outcome.last_error()}")
        verdict.demand(outcome.seconds < _SECONDS_TO_LEAVE, f"took {outcome.seconds:.1f} s")
        return verdict

    return play


def _piped(which: str) -> Callable[[Toy, Reference], Verdict]:
    """The reader of the output leaves: quiet, and what is on the disk can be gone on with."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        script, arguments = {
            "prepare": ("prepare_data.py", ("--sample",)),
            "generate": ("generate.py", ("--num-samples", "20", "--max-new-tokens", "40")),
        }.get(which, (TRAIN, ()))
        if which == "generate":
            assert toy.run().status == 0
        launch = toy.launch("", *arguments, script=script)
        errors = " 2>&1" if which == "train with errors" else ""
        outcome = run_process(
            launch, through=lambda command: ["bash", "-c", f'"$@"{errors} | head -c 1', "-", *command]
        )
        check_outcome(verdict, outcome, must_fire=False)
        verdict.demand("rror" not in outcome.stderr, f"is not quiet: {outcome.last_error()}")
        if script == TRAIN:
            recover(toy, verdict, reference)
        return verdict

    return play


def _terminal_closed(toy: Toy, reference: Reference) -> Verdict:
    """SIGHUP comes, and everything written to the terminal fails: it must still save and leave."""
    verdict = Verdict()
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(PROJECT)
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["STORYLADDER_FAULTS"] = "forward:30:sleep=2"
        os.environ["STORYLADDER_FAULT_ROOT"] = str(toy.root)
        os.environ["STORYLADDER_FAULT_TRACE"] = str(toy.root.with_name("closed.trace"))
        wrapper = str(Path(__file__).with_name("failpoints.py"))
        os.execv(sys.executable, [sys.executable, wrapper, TRAIN, *toy.launch().arguments])
    deadline = time.monotonic() + 300
    trace = toy.root.with_name("closed.trace")
    while time.monotonic() < deadline and not (trace.exists() and "fired forward" in trace.read_text(encoding="utf-8")):
        time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(status)
    verdict.demand(status == _LEAVE["hup"], f"status {status}")
    step = sound_steps(toy).get("tiny_resume.pt")
    verdict.demand(step == 15, f"saved step is {step}, not 15")
    recover(toy, verdict, reference)
    return verdict


def _ignored(number: int, name: str) -> Callable[[Toy, Reference], Verdict]:
    return fault_then_again(f"forward:9:{name}", statuses=(0,), ignored=(number,))


# --- 46 and 47: clocks and devices ------------------------------------------------------------------------------------


def machine_cases() -> Iterator[Injection]:
    """Cases 46 and 47."""
    for seconds in (86_400, -86_400):
        play = fault_then_again(
            f"forward:5:clock={seconds} forward:15:kill", statuses=(KILLED,), between=_shuffle_times
        )
        yield Injection(46, f"the clock jumps by {seconds:+,} s, file times shuffled", play, fast=seconds < 0)
    yield Injection(46, "file times in the far future", fault_then_again("forward:15:kill", between=_future_times))
    for device in ("cuda", "cuda:7", "mps", "xyz"):
        play = refuses("--device", device, before=lambda toy: None, words="--device")
        yield Injection(47, f"--device {device} where there is none", play, fast=device == "cuda")
    for kind in ("gpu", "cpu"):
        for forward in (1, 5, 9):
            faults = f"forward:{forward}:oom={kind}"
            play = _out_of_memory(faults)
            yield Injection(47, f"{faults}: smaller micro-batches, same losses", play, NO_DROPOUT)
    play = fault_then_again("forward:1+:oom", must_say=True, equal="", statuses=(75,))
    yield Injection(47, "out of memory for ever: stops with 75, then continues", play)


def _shuffle_times(toy: Toy) -> None:
    for number, path in enumerate(sorted(toy.root.glob("checkpoints/*.pt"), reverse=True)):
        os.utime(path, (1_000_000_000 + 86_400 * number,) * 2)


def _future_times(toy: Toy) -> None:
    for path in toy.root.rglob("*.*"):
        os.utime(path, (4_000_000_000,) * 2)


def _out_of_memory(faults: str) -> Callable[[Toy, Reference], Verdict]:
    """The step is made again with half the micro-batch; the numbers agree but for rounding."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        outcome = toy.run(faults)
        check_outcome(verdict, outcome)
        verdict.demand(outcome.status == 0, f"status {outcome.status}: {outcome.last_error()}")
        verdict.demand("memory" in outcome.stderr, "is not said")
        if outcome.status == 0:
            clean = Toy(reference.untouched.root.with_name(f"{toy.variant.name}-clean"), toy.variant)
            demand_same_training(verdict, toy, clean)
        else:
            recover(toy, verdict, reference)
        return verdict

    return play


# --- 48: strangers' files and prompts ---------------------------------------------------------------------------------


class _Canary:
    """A pickle that would create a file if anything ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.path}'",))


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """With our format and a right digest: anyone who writes such a file can also compute it."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **content}
    try:
        content["digest"] = digest_of(content)
    except (TypeError, RuntimeError):
        content["digest"] = "0" * 64
    return content


def _tampered(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """A real result with something changed, and the digest made right again."""

    def write(path: Path) -> None:
        torch.save(_sealed(change(torch.load(path, weights_only=True))), path)

    return write


def _zip(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in records.items():
                archive.writestr(name, content)

    return write


def _looped(path: Path) -> None:
    content: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": "0" * 64}
    content["again"] = content
    torch.save(content, path)


def _deep(path: Path) -> None:
    raw = b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b"."
    _zip({"x/data.pkl": raw, "x/version": b"3\n", "x/byteorder": b"little"})(path)


def _same_names_twice(path: Path) -> None:
    raw = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        name = archive.namelist()[0]
    path.write_bytes(raw)
    with zipfile.ZipFile(path, "a") as archive:
        archive.fp.seek(0, 2)  # type: ignore[union-attr]
        archive.NameToInfo.pop(name, None)
        archive.writestr(name, b"\x80\x02}.")


def _huge_stride(shape: tuple[int, ...]) -> Callable[[Path], None]:
    """One number that a stride of 0 spreads over a huge shape."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": "0" * 64}
    return lambda path: torch.save({**header, "model": {"w": torch.zeros(1).expand(shape)}}, path)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Canary(path.with_name("canary"))))


def _pickled_in_archive(path: Path) -> None:
    torch.save({"format": FORMAT, "model": _Canary(path.with_name("canary"))}, path)


def _nested(content: dict[str, Any], *names: str, value: Any) -> dict[str, Any]:
    part = content
    for name in names[:-1]:
        part = part[name]
    part[names[-1]] = value
    return content


STRANGE: dict[str, Callable[[Path], None]] = {
    "a pickle that runs a command": _pickled,
    "an archive whose pickle runs a command": _pickled_in_archive,
    "a bomb of compressed zeros": _zip({"x/data.pkl": bytes(300_000_000)}, zipfile.ZIP_DEFLATED),
    "a structure of 33 MB": _zip({"x/data.pkl": bytes(33 << 20), "x/version": b"3\n"}),
    "a pickle 200,000 deep": _deep,
    "a structure that contains itself": _looped,
    "two records of one name": _same_names_twice,
    "a tensor of 4 TB made of one number": _huge_stride((10**6, 10**6)),
    "a tensor of 2 GB made of one number": _huge_stride((5, 10**8)),
    "a million keys": lambda path: torch.save(_sealed({"model": {str(i): i for i in range(10**6)}}), path),
    "settings that are a list": _tampered(lambda content: content | {"settings": []}),
    "settings without a model": _tampered(lambda content: content | {"settings": {}}),
    "a model of a thousand layers": _tampered(lambda c: _nested(c, "settings", "model", "n_layer", value=1000)),
    "a width of 100,000": _tampered(lambda c: _nested(c, "settings", "model", "n_embd", value=100_000)),
    "a width that is a text": _tampered(lambda c: _nested(c, "settings", "model", "n_embd", value="8")),
    "weights that are numbers": _tampered(lambda c: _nested(c, "model", "transformer.ln_f.bias", value=3)),
    "weights that are a list": _tampered(lambda content: content | {"model": [1, 2]}),
    "weights of another type": _tampered(
        lambda c: _nested(c, "model", "transformer.ln_f.bias", value=torch.zeros(8, dtype=torch.complex64))
    ),
    "sparse weights": _tampered(
        lambda c: _nested(c, "model", "transformer.ln_f.bias", value=torch.zeros(8).to_sparse())
    ),
    "a step that is a text": _tampered(lambda content: content | {"step": "x", "val_loss": "y"}),
    "no step": _tampered(lambda content: {name: value for name, value in content.items() if name != "step"}),
    "a stage that is a control sequence": _tampered(lambda content: content | {"stage": "\x1b[2J\x1b]0;x\x07"}),
}
PROMPTS = {
    "10 MB": ("x" * 10_000_000, 2),
    "NUL": ("a\0b", 2),
    "escape sequence": ("\x1b[2J", 2),
    "lone surrogate": ("\ud800", 2),
    "right-to-left override": ("\u202eabc", 0),
    "empty": ("", 0),
    "end marks": ("<|endoftext|>" * 50, 0),
    "emoji": ("🐻" * 500, 0),
}
FLAGS = (
    ("--temperature", "nan"),
    ("--temperature", "-1"),
    ("--temperature", "inf"),
    ("--top-k", "-5"),
    ("--top-k", "0"),
    ("--num-samples", "-1"),
    ("--num-samples", "1000000000000"),
    ("--max-new-tokens", "-1"),
    ("--max-new-tokens", "99999999999"),
    ("--seed", "-1"),
    ("--seed", "99999999999999999999999"),
    ("--checkpoint", "/dev/zero"),
    ("--checkpoint", "/etc/passwd"),
    ("--checkpoint", "."),
    ("--preset", "../../etc"),
    ("--temprature", "1"),
)


def stranger_cases() -> Iterator[Injection]:
    """Case 48."""
    for words, write in STRANGE.items():
        for how in ("--checkpoint", "as result"):
            play = _strange_file(write, how)
            yield Injection(48, f"{words}, {how}", play, WHOLE, fast=how == "as result" and "runs a command" in words)
    for words, (prompt, status) in PROMPTS.items():
        yield Injection(48, f"prompt: {words}", _prompt(prompt, status), WHOLE)
    for flags in FLAGS:
        play = refuses(*flags, before=_with_result, words="error:", script="generate.py", most_seconds=_REFUSED_IN)
        yield Injection(48, f"generate.py {' '.join(flags)}", play, WHOLE)
    for flags in (
        ("--minutes", "nan"),
        ("--minutes", "-1"),
        ("--minutes", "1e999"),
        ("--config", "/dev/null"),
        ("--bogus",),
    ):
        play = refuses(*flags, before=lambda toy: None, words="error:", most_seconds=_REFUSED_IN)
        yield Injection(48, f"train_tiny.py {' '.join(flags)}", play)


def _with_result(toy: Toy) -> None:
    assert toy.run().status == 0


def _strange_file(write: Callable[[Path], None], how: str) -> Callable[[Toy, Reference], Verdict]:
    """generate.py and the next stage refuse it in one clear line, quickly, in little memory, and run none of it."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        _with_result(toy)
        path = toy.checkpoint(RESULT)
        before = path.read_bytes()
        write(path)
        if how == "as result":
            toy.checkpoint("tiny_best.pt").unlink()
            launches = [toy.launch(script="train_children.py")]
        else:
            stranger = path.rename(toy.root / "stranger.pt")
            path.write_bytes(before)
            launches = [toy.launch("", "--checkpoint", str(stranger), script="generate.py")]
        for launch in launches:
            outcome = start(launch).wait()
            check_outcome(verdict, outcome, must_fire=False)
            refused = outcome.status == 2 and "error:" in outcome.stderr
            harmless = outcome.status == 0 and "\x1b" not in outcome.stderr + outcome.stdout
            verdict.demand(refused or harmless, f"status {outcome.status}: {outcome.last_error()!r}")
            verdict.demand(outcome.cpu_seconds < _REFUSED_IN, f"took {outcome.cpu_seconds:.1f} s")
            verdict.demand(outcome.peak_bytes < 200e6, f"took {outcome.peak_bytes / 1e6:.0f} MB")
        verdict.demand(not list(toy.root.rglob("canary")), "it was run")
        return verdict

    return play


def _prompt(prompt: str, status: int) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        _with_result(toy)
        outcome = toy.run("", "--prompt", prompt, "--max-new-tokens", "5", script="generate.py")
        check_outcome(verdict, outcome, must_fire=False)
        verdict.demand(outcome.status == status, f"status {outcome.status}: {outcome.last_error()}")
        verdict.demand(len(outcome.stderr) < 2_000, f"says {len(outcome.stderr):,} characters")
        return verdict

    return play


# --- forks and processes are alike ------------------------------------------------------------------------------------


def equivalence_cases() -> Iterator[Injection]:
    """The forks of this harness are what `python train_tiny.py` is: same statuses, files and digests."""
    for faults in (
        "",
        "forward:14:kill",
        "write@tiny_resume:40:enospc",
        "forward:8:term",
        "rename@tiny_resume.pt:2:kill",
    ):
        yield Injection(
            1, f"as a process of its own: {faults or 'no fault'}", _alike(faults), fast=faults.endswith("14:kill")
        )


def _alike(faults: str) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        launch: Launch = toy.launch(faults)
        process = run_process(launch)
        check_outcome(verdict, process, must_fire=bool(faults))
        left = sound_steps(toy)
        other = Toy(toy.root.with_name(f"{toy.root.name}.fork"), toy.variant)
        subprocess.run(["cp", "-r", str(reference.untouched.root), str(other.root)], check=True)
        other.write_config()
        fork = other.run(faults)
        verdict.demand(process.status == fork.status, f"process {process.status}, fork {fork.status}")
        verdict.demand(left == sound_steps(other), f"process left {left}")
        if process.status != 0:
            again = toy.run()
            verdict.demand(again.status == 0, again.last_error())
        compare(toy, verdict, reference)
        return verdict

    return play


def cases(references: dict[str, Reference]) -> Iterator[Injection]:
    """All of this page."""
    assert PLAIN.name in references
    yield from lock_cases()
    yield from signal_cases()
    yield from machine_cases()
    yield from stranger_cases()
    yield from equivalence_cases()
