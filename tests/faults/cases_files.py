"""Cases 1 to 23 of the matrix: killed and torn writes, damaged files, disks that refuse."""

from __future__ import annotations

import collections
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_replay
import damage
import kill_loop
from judging import (
    Injection,
    Reference,
    Verdict,
    check_outcome,
    compare,
    fault_then_again,
    recover,
    refuses,
)
from launcher import KILLED, Outcome, small_file_system
from playground import PATIENCE, PLAIN, STEADY, WHOLE, Toy, copy_toy, ending_of, sound_steps

RESUME, PREVIOUS, BEST = "tiny_resume.pt", "tiny_resume.prev.pt", "tiny_best.pt"
RESULT = "tinystories_28M_final.pt"
_KILL = {"statuses": (KILLED,)}


def calls_of(reference: Reference, *, names: tuple[str, ...]) -> dict[tuple[str, str], int]:
    """How often an uninterrupted run makes every kind of call on files whose name holds one of `names`."""
    words = [line.split()[1:3] for line in reference.trace if line.startswith("call")]
    counts = collections.Counter((point, name) for point, name in words if any(part in name for part in names))
    return dict(sorted(counts.items()))


def sampled(count: int, at_most: int, seed: int) -> list[int]:
    """Numbers of calls from 1 to `count`: the first, the last and some between."""
    if count <= at_most:
        return list(range(1, count + 1))
    between = random.Random(seed).sample(range(2, count), at_most - 2)
    return sorted([1, count, *between])


def kills_at_every_call(case: int, reference: Reference, names: tuple[str, ...], writes: int) -> Iterator[Injection]:
    """SIGKILL before and after every call that is no write, before some writes, and in the middle of some."""
    for (point, name), count in calls_of(reference, names=names).items():
        for number in sampled(count, writes if point == "write" else 99, seed=case):
            for action in ("kill", "torn") if point == "write" else ("kill", "after-kill"):
                faults = f"{point}@{name}:{number}:{action}"
                yield Injection(case, faults, fault_then_again(faults, **_KILL), fast=number == 2 and point == "rename")


def errors_at_every_call(
    case: int, reference: Reference, names: tuple[str, ...], errors: tuple[str, ...], writes: int
) -> Iterator[Injection]:
    """The disk refuses one call: training continues, says so, and ends in the same weights."""
    for (point, name), count in calls_of(reference, names=names).items():
        if point in ("flush", "unlink"):
            continue
        for number in sampled(count, writes if point == "write" else 99, seed=case):
            for error in errors:
                if error == "short" and point != "write":
                    continue
                faults = f"{point}@{name}:{number}:{error}"
                play = fault_then_again(faults, must_say=True)
                yield Injection(case, faults, play, fast=faults.startswith("fsync@tiny_resume.partial:1:"))


# --- 1 to 7: kill -------------------------------------------------------------------------------------------------


def kill_cases(references: dict[str, Reference]) -> Iterator[Injection]:
    """Cases 1 and 3 to 7."""
    plain = references[PLAIN.name]
    yield from kills_at_every_call(1, plain, ("tiny_resume", "tinystories_28M_final", "checkpoints"), writes=24)
    yield from kills_at_every_call(1, plain, (".verified", ".lock", "tiny.jsonl"), writes=4)
    for point in ("open", "fsync", "close", "rename", "fsync-folder"):
        for action in ("kill", "after-kill"):
            name = "checkpoints" if point == "fsync-folder" else "tiny_resume"
            number = 2 if point == "fsync-folder" else 1  # the first is that of the best weights at step 0
            faults = f"{point}@{name}:{number}:{action}"
            play = fault_then_again(faults, **_KILL, between=_says_where_it_starts)
            yield Injection(3, faults, play, fast=point == "rename")
    for number in (1, 2, 30, 60, 90):
        faults = f"write@tiny_resume:{number}:torn"
        yield Injection(3, faults, fault_then_again(faults, **_KILL))
    yield from kills_at_every_call(4, plain, ("tiny_best",), writes=12)
    for number in (1, 2):
        for action in ("kill", "after-kill"):
            for point, name in (("rename", "prev"), ("unlink", "tiny_resume")):
                faults = f"{point}@{name}:{number}:{action}"
                yield Injection(5, faults, fault_then_again(faults, **_KILL))
    for action in ("kill", "after-kill"):  # from the second save on, two generations
        faults = f"rename@tiny_resume.pt:3:{action}"
        yield Injection(5, f"{faults}, two generations", fault_then_again(faults, **_KILL, between=_has_generations))
    yield Injection(7, "crash states of all prefixes of the file calls", crash_replay.play)


def _says_where_it_starts(toy: Toy) -> None:
    assert sound_steps(toy).keys() <= {BEST, RESUME}


def _has_generations(toy: Toy) -> None:
    generations = [name for name in sound_steps(toy) if name.startswith("tiny_resume")]
    assert generations, "no generation is left"


def kill_loop_cases() -> Iterator[Injection]:
    """Case 2, with early stopping."""
    for kills in (1, 10, 50):
        yield Injection(2, f"{kills} random kills in 2,000 steps", kill_loop.loop(kills), kill_loop.VARIANT)
    yield Injection(2, "5 random kills in 60 steps", kill_loop.loop(5, most_steps=14), STEADY, fast=True)
    calls = (("evaluate", "", 8), ("write", "tiny_best", 8), ("rename", "tiny_best", 2), ("open", "tiny.jsonl", 8))
    for point, name, count in calls:
        for back in range(1, count + 1):
            play = kill_loop.near_patience(point, name, back)
            words = f"early stopping: kill at the {back}. {point} {name} from the end"
            yield Injection(2, words, play, PATIENCE, fast=point == "evaluate" and back == 2)


# --- 6: tokenising ----------------------------------------------------------------------------------------------------


def prepare_cases() -> Iterator[Injection]:
    """Case 6: prepare_data.py killed or refused; then run again."""
    points = ("open", "write", "fsync", "close", "rename")
    for name in ("train.bin", "val.bin"):
        for point in points:
            after = "torn" if point == "write" else "after-kill"
            for number, action in ((1, "kill"), (1, after), (2, "kill"), (1, "enospc"), (1, "eio")):
                faults = f"{point}@{name}:{number}:{action}"
                yield Injection(6, faults, _prepare_again(faults), WHOLE, fast=faults == "rename@train.bin:2:kill")
    for bit in (1, 2):
        faults = f"write@train.bin.partial:1:flip={bit}"
        yield Injection(6, faults, _flipped_while_preparing(faults), WHOLE)


def _prepare(toy: Toy, faults: str = "") -> Outcome:
    return toy.run(faults, "--sample", "--stage", "tiny", script="prepare_data.py")


def _prepare_again(faults: str) -> Callable[[Toy, Reference], Verdict]:
    """Interrupted over existing token files, then compared with an uninterrupted preparation."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        old = toy.data("train.bin").read_bytes()
        first = _prepare(toy, faults)
        check_outcome(verdict, first)
        verdict.demand(first.status != 0, "went on as if nothing had happened")
        trained = toy.run()  # with old files, or a clear refusal; never with half of them
        check_outcome(verdict, trained, must_fire=False)
        if trained.status == 0:
            verdict.demand(toy.data("train.bin").read_bytes() in (old, _prepared(toy)), "trained on half a file")
        again = _prepare(toy)
        check_outcome(verdict, again, must_fire=False)
        verdict.demand(again.status == 0, f"cannot be prepared again: {again.last_error()}")
        verdict.demand(toy.data("train.bin").read_bytes() == _prepared(toy), "prepared again, it differs")
        left = [path.name for path in toy.root.rglob("*.partial")]
        verdict.demand(not left, f"left behind: {left}")
        return verdict

    return play


def _prepared(toy: Toy) -> bytes:
    """What an uninterrupted preparation writes; made next to the toy."""
    other = toy.root.with_name(f"{toy.root.name}.prepared")
    if not other.exists():
        assert _prepare(copy_toy(Toy(toy.root, toy.variant), other)).status == 0
    return (other / "data" / "train.bin").read_bytes()


def _flipped_while_preparing(faults: str) -> Callable[[Toy, Reference], Verdict]:
    """A bit that turns over on its way to the disk is found at the first training."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        prepared = _prepare(toy, faults)
        verdict.demand(prepared.fired, "the fault did not happen")
        trained = toy.run()
        verdict.silent = prepared.status == 0 and trained.status == 0
        verdict.demand(prepared.status != 0 or "its sidecar" in trained.stderr, trained.last_error())
        verdict.demand(_prepare(toy).status == 0 and toy.run().status == 0, "cannot be prepared again")
        return verdict

    return play


# --- 8 to 12: damaged files -------------------------------------------------------------------------------------------


def damage_cases() -> Iterator[Injection]:
    """Cases 8 to 12."""
    yield Injection(8, "200 truncations, read in process", damage.truncations(200))
    yield Injection(9, "500 bit flips in tensor data, read in process", damage.flips(500, in_tensors=True))
    yield Injection(9, "500 bit flips elsewhere, read in process", damage.flips(500, in_tensors=False))
    for seed in range(8):
        harm = damage.cut_at(seed)
        yield Injection(8, f"newest cut, seed {seed}", _damaged_then_again(harm, RESUME), fast=seed == 0)
        harm = damage.flip_at(seed)
        yield Injection(9, f"newest flipped, seed {seed}", _damaged_then_again(harm, RESUME), fast=seed == 0)
    for seed in range(3):
        harm = damage.flip_at(seed)
        yield Injection(9, f"best flipped, seed {seed}", _damaged_then_again(harm, BEST))
        yield Injection(9, f"result flipped, seed {seed}", _damaged_result(harm), fast=seed == 0)
    for words, harm in damage.EMPTY.items():
        for name in (RESUME, PREVIOUS, BEST):
            yield Injection(
                10, f"{name}: {words}", _damaged_then_again(harm, name), fast=(words, name) == ("0 bytes", RESUME)
            )
        if words != "missing":  # a user who deletes the result has asked for a start from scratch
            yield Injection(10, f"{RESULT}: {words}", _damaged_result(harm))
    for words, harm in {"flipped": damage.flip_at(1), "cut": damage.cut_at(1), **damage.EMPTY}.items():
        if words == "missing":
            continue  # the same for both resume states
        yield Injection(11, f"newest and previous: {words}", _all_damaged(harm), fast=words == "flipped")
        yield Injection(11, f"result and best: {words}", _all_results_damaged(harm))
    for part in ("weights", "optimizer", "progress"):
        yield Injection(12, f"{part} of another step spliced in", _damaged_then_again(damage.splice(part), RESUME))
    for suffix in (".bin.json", ".bin"):
        yield Injection(
            12, f"val{suffix} copied over train{suffix}", refuses(before=_copied(suffix), words="prepare_data.py")
        )


def interrupted(toy: Toy, at: int = 20) -> None:
    """Leave the toy with two generations of resume states (steps 6 and 9) and best weights of step 8."""
    outcome = toy.run(f"forward:{at}:kill")
    assert outcome.status == KILLED and {RESUME, PREVIOUS, BEST} <= sound_steps(toy).keys()


def _damaged_then_again(harm: Callable[[Path], None], name: str) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        interrupted(toy)
        path = toy.checkpoint(name)
        harm(path)
        damaged = path.exists()
        again = recover(toy, verdict, reference)
        aside = path.with_name(f"{path.name}.corrupt").exists()
        if name == RESUME and damaged:
            verdict.demand("resuming from step 6" in again.stderr, "does not say how far back it went")
        if name != PREVIOUS:  # which nobody reads while the newest is sound
            verdict.demand(aside == damaged, "is not set aside" if damaged else "sets aside what is not there")
        must_say = name == BEST or (name == RESUME and damaged)
        verdict.silent = must_say and not again.said
        return verdict

    return play


def _damaged_result(harm: Callable[[Path], None]) -> Callable[[Toy, Reference], Verdict]:
    """The finished result is damaged: said, best weights in its place, never a start from scratch, also next time."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        assert toy.run().status == 0
        harm(toy.checkpoint(RESULT))
        for which in ("first", "second", "third"):
            outcome = toy.run()
            check_outcome(verdict, outcome, must_fire=False)
            scratch = "random weights" in outcome.stdout
            verdict.demand(not scratch, f"{which} run afterwards starts from scratch")
            verdict.demand(outcome.status == 0, f"{which} run afterwards: {outcome.last_error()}")
            verdict.silent = verdict.silent or (which == "first" and not outcome.said)
        verdict.demand(toy.checkpoint(f"{RESULT}.corrupt").exists(), "is not set aside")
        compare(toy, verdict, reference)
        best = sound_steps(toy).get(BEST)
        if best is None:
            verdict.lost.append(BEST)
        best = ending_of(toy, result=BEST)
        verdict.demand(best.weights == reference.ending.weights, "best weights differ")
        return verdict

    return play


def _all_damaged(harm: Callable[[Path], None]) -> Callable[[Toy, Reference], Verdict]:
    """No generation is sound: a clear stop, every time, and never a silent start from scratch."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        interrupted(toy)
        harm(toy.checkpoint(RESUME))
        harm(toy.checkpoint(PREVIOUS))
        for which in ("first", "second", "third"):
            outcome = toy.run()
            check_outcome(verdict, outcome, must_fire=False)
            verdict.demand("random weights" not in outcome.stdout, f"{which} run starts from scratch")
            verdict.demand(outcome.status == 2, f"{which} run: status {outcome.status}: {outcome.last_error()}")
            verdict.demand("--fresh" in outcome.stderr, f"{which} run does not say how to continue")
        fresh = toy.run("", "--fresh")
        verdict.demand(fresh.status == 0, f"--fresh: {fresh.last_error()}")
        compare(toy, verdict, reference, equal="weights")
        return verdict

    return play


def _all_results_damaged(harm: Callable[[Path], None]) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        assert toy.run().status == 0
        harm(toy.checkpoint(RESULT))
        harm(toy.checkpoint(BEST))
        for which in ("first", "second"):
            outcome = toy.run()
            check_outcome(verdict, outcome, must_fire=False)
            verdict.demand("random weights" not in outcome.stdout, f"{which} run starts from scratch")
            verdict.demand(outcome.status == 2, f"{which} run: status {outcome.status}: {outcome.last_error()}")
        verdict.demand(toy.run("", "--fresh").status == 0, "--fresh does not help")
        compare(toy, verdict, reference, equal="weights")
        return verdict

    return play


def _copied(suffix: str) -> Callable[[Toy], object]:
    return lambda toy: shutil.copy(toy.data(f"val{suffix}"), toy.data(f"train{suffix}"))


# --- 13 to 23: disks and folders --------------------------------------------------------------------------------------


def disk_cases(references: dict[str, Reference]) -> Iterator[Injection]:
    """Cases 13 to 15."""
    plain = references[PLAIN.name]
    for number in (1, 5, 20, 40, 70, 150, 300, 350):
        yield Injection(13, f"tmpfs full at write {number} of the resume state", _tmpfs(number), fast=number == 40)
    yield Injection(13, "tmpfs full from step 3 to the end", _tmpfs_full_for_good)
    for limit in (8_000, 20_000, 40_000, 60_000):
        play = _file_limit(limit)
        yield Injection(14, f"RLIMIT_FSIZE of {limit:,} bytes in the first run", play, STEADY, fast=limit == 8_000)
    checkpoints = ("tiny_resume", "tiny_best", "tinystories_28M_final", "checkpoints")
    yield from errors_at_every_call(13, plain, checkpoints, ("enospc", "short"), writes=8)
    yield from errors_at_every_call(15, plain, checkpoints, ("eio", "edquot"), writes=8)
    for name in ("tiny_resume", "tiny_best", "tinystories_28M_final"):
        for number in largest_writes(plain, name, 6):
            for action in ("flip", "lost"):
                faults = f"write@{name}:{number}:{action}={number}{_kill_in_next_forward(plain, name, number)}"
                yield Injection(15, f"{faults} (found by reading back)", fault_then_again(faults))
    for name in ("rename@tiny_resume", "open@tiny_resume", "fsync@tiny_resume", "open@tiny_"):
        faults = f"{name}:1+:enospc"
        yield Injection(13, f"{faults}: three in a row stop", _stops(faults), STEADY, fast=name == "open@tiny_")


_NO_TMPFS = "left out where there is no right to mount a tmpfs; RLIMIT_FSIZE stands for it (case 14)"


def _tmpfs(number: int) -> Callable[[Toy, Reference], Verdict]:
    """Another program takes all space of the disk in mid-save, and gives it back before the next save."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        with small_file_system(toy.root / "checkpoints", 3_000_000) as mounted:
            if not mounted:
                return Verdict(count=0, notes=[_NO_TMPFS])
            before = reference.calls(" write tiny_resume")[number - 1]
            again = sum(place < before for place in reference.calls(" forward ")) + 1
            faults = f"write@tiny_resume:{number}:fill=checkpoints forward:{again}:unfill=checkpoints"
            return fault_then_again(faults, statuses=(0,), must_say=True)(toy, reference)

    return play


def _tmpfs_full_for_good(toy: Toy, reference: Reference) -> Verdict:
    with small_file_system(toy.root / "checkpoints", 3_000_000) as mounted:
        if not mounted:
            return Verdict(count=0, notes=[_NO_TMPFS])
        free = lambda toy: toy.checkpoint("ballast").unlink()  # noqa: E731
        return fault_then_again("forward:5:fill=checkpoints", statuses=(75,), between=free)(toy, reference)


def largest_writes(reference: Reference, name: str, count: int) -> list[int]:
    """Numbers, from 1, of the writes into a file that carry most: tensors, not the archive's small parts."""
    sizes = [int(reference.trace[place].split()[-1]) for place in reference.calls(f" write {name}")]
    return sorted(sorted(range(1, len(sizes) + 1), key=lambda number: sizes[number - 1])[-count:])


def _kill_in_next_forward(reference: Reference, name: str, number: int) -> str:
    """A fault that kills before the next save could hide what this write did; none at the end of the stage."""
    place = reference.calls(f" write {name}")[number - 1]
    forwards = reference.calls(" forward ")
    before = sum(forward < place for forward in forwards)
    return f" forward:{before + 1}:kill" if before < len(forwards) else ""


def _stops(faults: str) -> Callable[[Toy, Reference], Verdict]:
    """Stopped with 75 after three failed saves; the command that it tells to run leads to the same end."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        stopped = toy.run(faults)
        check_outcome(verdict, stopped)
        verdict.demand(stopped.status == 75, f"status {stopped.status}, expected 75: {stopped.last_error()}")
        verdict.demand("the last good file is" in stopped.stderr, stopped.last_error())
        again = toy.run("", *(["--fresh"] if "--fresh again" in stopped.stderr else []))
        verdict.demand(again.status == 0, f"what it says to do fails: {again.last_error()}")
        compare(toy, verdict, reference)
        return verdict

    return play


def _file_limit(limit: int) -> Callable[[Toy, Reference], Verdict]:
    """Files may not grow beyond a limit: EFBIG. 75 after three failed saves; without the limit it continues."""
    return fault_then_again("", statuses=(75, 2), file_limit=limit, must_say=True)


def folder_cases() -> Iterator[Injection]:
    """Cases 16 to 23."""
    for folder in ("checkpoints", "."):
        read_only = refuses(before=_protect(folder), words="cannot write", obey_permissions=True)
        yield Injection(16, f"{folder} is read-only at the start", read_only, fast=folder == "checkpoints")
    for number in (2, 8, 14):
        play = fault_then_again(
            f"forward:{number}:protect=checkpoints",
            obey_permissions=True,
            between=_unprotect("checkpoints"),
            statuses=(75,),
            must_say=True,
        )
        yield Injection(17, f"checkpoints turns read-only at forward {number}", play, STEADY)
    play = fault_then_again("open@tiny_resume:1:eacces open@tiny_best:2:erofs", must_say=True, statuses=(0,))
    yield Injection(17, "refused once, then writable again", play)
    for number in (2, 10, 20):
        yield Injection(18, f"checkpoints is deleted at forward {number}", _deleted_folder(number))
    yield Injection(18, "checkpoints is deleted, the best weights with it", _deleted_for_good, PATIENCE)
    yield Injection(18, "runs is deleted in mid-run", fault_then_again("forward:10:remove=runs", equal="weights"))
    yield Injection(19, "checkpoints is a file", refuses(before=_as_file, words="checkpoints"))
    yield Injection(19, "checkpoints is a dangling link", refuses(before=_as_dangling_link, words="checkpoints"))
    yield Injection(19, "checkpoints is a link to a folder", fault_then_again("", before=_as_link))
    yield Injection(20, "TMPDIR does not exist", fault_then_again("", environment=(("TMPDIR", "/nonexistent"),)))
    yield Injection(20, "TMPDIR is full", _full_temporary_folder)
    for umask in (0o077, 0o022, 0o027):
        yield Injection(21, f"umask {umask:03o}", _modes(umask))
    for name in ("with a space", "dünn und グランド ☃", "n" * 200, 'it\'s "quoted" #%$'):
        yield Injection(22, f"folder {name[:30]!r}", _named(name))
    for error in ("enolck", "enosys", "eopnotsupp"):
        play = refuses(before=lambda toy: None, words="cannot lock")
        yield Injection(22, f"flock: {error}", _with_faults(f"flock:1:{error}", play), fast=error == "enolck")
    for (point, number), error in zip(
        (("open", 1), ("open", 5), ("write", 7), ("close", 9), ("open", 18), ("write", 1)),
        ("eio", "enospc", "short", "edquot", "eacces", "erofs"),
        strict=True,
    ):
        faults = f"{point}@tiny.jsonl:{number}:{error}"
        yield Injection(23, faults, fault_then_again(faults, statuses=(0,), equal="weights", words="run log"))
    yield Injection(23, "the record is a folder", _record_is_folder)
    yield Injection(23, "torn record, killed, then repaired", _torn_record)


def _protect(folder: str) -> Callable[[Toy], object]:
    def protect(toy: Toy) -> None:
        (toy.root / folder).mkdir(exist_ok=True)
        (toy.root / folder).chmod(0o555)

    return protect


def _unprotect(folder: str) -> Callable[[Toy], object]:
    return lambda toy: (toy.root / folder).chmod(0o755)


def _with_faults(faults: str, play: Callable[[Toy, Reference], Verdict]) -> Callable[[Toy, Reference], Verdict]:
    """The same play with a failpoint in every run."""

    def changed(toy: Toy, reference: Reference) -> Verdict:
        class Faulty(Toy):
            def run(self, _faults: str = "", *arguments: str, **how: Any) -> Outcome:
                return super().run(faults, *arguments, **how)

        return play(Faulty(toy.root, toy.variant), reference)

    return changed


def _deleted_folder(number: int) -> Callable[[Toy, Reference], Verdict]:
    """What the user deletes is gone, but the run continues in a new folder, or stops with a clear message."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        outcome = toy.run(f"forward:{number}:remove=checkpoints")
        check_outcome(verdict, outcome)
        if outcome.status != 0:
            verdict.demand("error:" in outcome.stderr, outcome.last_error())
            toy.run("", "--fresh")
        compare(toy, verdict, reference, equal="weights")
        return verdict

    return play


def _deleted_for_good(toy: Toy, reference: Reference) -> Verdict:
    """No later weights are as good: a clear line, and the same command continues to a result."""
    verdict = Verdict()
    last_best = reference.calls("rename tiny_best.pt")[-1]
    forward = sum(place < last_best for place in reference.calls(" forward ")) + 1
    outcome = toy.run(f"forward:{forward}:remove=checkpoints")
    check_outcome(verdict, outcome)
    verdict.demand(outcome.status == 2 and "tiny_best.pt is missing" in outcome.stderr, outcome.last_error())
    again = recover(toy, verdict, reference, equal="")
    verdict.silent = not again.said
    return verdict


def _as_file(toy: Toy) -> None:
    (toy.root / "checkpoints").write_text("", encoding="utf-8")


def _as_dangling_link(toy: Toy) -> None:
    (toy.root / "checkpoints").symlink_to(toy.root / "nowhere")


def _as_link(toy: Toy) -> None:
    (toy.root / "elsewhere").mkdir()
    (toy.root / "checkpoints").symlink_to(toy.root / "elsewhere")


def _full_temporary_folder(toy: Toy, reference: Reference) -> Verdict:
    full = toy.root.with_name(f"{toy.root.name}.tmp")
    with small_file_system(full, 16_384) as mounted:
        if not mounted:
            return Verdict(count=0, notes=[_NO_TMPFS])
        (full / "ballast").write_bytes(bytes(8_192))
        return fault_then_again("", environment=(("TMPDIR", str(full)),))(toy, reference)


def _modes(umask: int) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        toy.run(umask=umask)
        for path in (toy.checkpoint(RESULT), toy.checkpoint(BEST), toy.root / "runs" / "tiny.jsonl"):
            mode = stat.S_IMODE(path.stat().st_mode)
            verdict.demand(mode == 0o666 & ~umask, f"{path.name} has mode {mode:03o}")
        return verdict

    return play


def _named(name: str) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, reference: Reference) -> Verdict:
        other = copy_toy(toy, toy.root.with_name(f"{toy.root.name} {name}"[-200:]))
        return fault_then_again("forward:14:kill", statuses=(KILLED,))(other, reference)

    return play


def _record_is_folder(toy: Toy, reference: Reference) -> Verdict:
    (toy.root / "runs" / "tiny.jsonl").mkdir(parents=True)
    verdict = Verdict()
    outcome = toy.run()
    check_outcome(verdict, outcome, must_fire=False)
    verdict.demand(outcome.status in (0, 2), outcome.last_error())
    verdict.silent = not outcome.said
    if outcome.status == 0:
        compare(toy, verdict, reference, equal="weights")
    return verdict


def _torn_record(toy: Toy, reference: Reference) -> Verdict:
    verdict = Verdict()
    toy.run("write@tiny.jsonl:9:torn")
    recover(toy, verdict, reference)
    return verdict


def cases(references: dict[str, Reference]) -> Iterator[Injection]:
    """All of this page."""
    yield from kill_cases(references)
    yield from kill_loop_cases()
    yield from prepare_cases()
    yield from damage_cases()
    yield from disk_cases(references)
    yield from folder_cases()
