"""An injection, what is demanded of it, and the play that most of them share: fault, look, run again, compare."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import HUNG, Outcome
from playground import PLAIN, TRAIN, Ending, Toy, Variant, copy_toy, ending_of, lost_checkpoint, make_toy
from rounding import loss_tolerance

from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.run_log import read_records

_RUNS_TO_RECOVER = 4


@dataclasses.dataclass
class Verdict:
    """What became of one injection. `count`: injections in one play; 0 where none was possible."""

    problems: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    silent: bool = False
    count: int = 1
    failed: int = 0  # of `count`
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def demand(self, true: bool, otherwise: str) -> None:
        """Note a problem unless something holds."""
        if not true:
            self.problems.append(otherwise)

    @property
    def survived(self) -> int:
        """Injections that ended well."""
        failed = max(self.failed, int(bool(self.problems or self.lost or self.silent)))
        return max(0, self.count - failed)


@dataclasses.dataclass(frozen=True)
class Injection:
    """One fault of the matrix (or one play of many alike), on a fresh copy of a toy project."""

    case: int
    words: str
    play: Callable[[Toy, Reference], Verdict]
    variant: Variant = PLAIN
    fast: bool = False  # also a part of `make test`


@dataclasses.dataclass(frozen=True)
class Reference:
    """The toy of a variant before its first run, and how an uninterrupted run of it ends."""

    untouched: Toy
    ending: Ending
    trace: list[str]
    seconds: float

    def calls(self, *words: str) -> list[int]:
        """Where in the trace the calls stand whose point and file name hold these words."""
        wanted = [(number, line) for number, line in enumerate(self.trace) if line.startswith("call ")]
        return [number for number, line in wanted if all(word in line for word in words)]


def reference_of(variant: Variant, folder: Path) -> Reference:
    """Make a variant's toy, run a copy of it uninterrupted, and keep both."""
    untouched = make_toy(folder / f"{variant.name}-untouched", variant)
    toy = copy_toy(untouched, folder / f"{variant.name}-clean")
    outcome = toy.run(timeout=900)
    ending = ending_of(toy)
    assert outcome.status == 0 and ending.weights and ending.record, f"{variant.name}: {outcome.stderr}"
    return Reference(untouched, ending, outcome.trace, outcome.seconds)


def judge(injection: Injection, reference: Reference, root: Path) -> Verdict:
    """Play one injection on a copy of the toy."""
    began = time.monotonic()
    try:
        verdict = injection.play(copy_toy(reference.untouched, root), reference)
    except Exception as error:  # a mistake of the harness must not look like a survival, nor end the whole run
        verdict = Verdict(problems=[f"the harness failed: {type(error).__name__}: {error}"])
    verdict.seconds = time.monotonic() - began
    return verdict


def check_outcome(verdict: Verdict, outcome: Outcome, *, must_fire: bool = True) -> None:
    """What holds after every run: the fault happened, nothing hung, and no error was unforeseen."""
    verdict.demand(outcome.fired or not must_fire, "the fault did not happen")
    verdict.demand(outcome.status != HUNG, "hung")
    verdict.demand(not outcome.has_traceback, f"traceback: {outcome.last_error()}")


def recover(toy: Toy, verdict: Verdict, reference: Reference, *, equal: str = "weights record") -> Outcome:
    """Run again, unfaulted, until it is finished, and compare the ending with the uninterrupted run's.

    The last run's outcome, with what all of them said on stderr.
    """
    stderr = ""
    for _ in range(_RUNS_TO_RECOVER):
        outcome = toy.run()
        stderr += outcome.stderr
        verdict.demand(not outcome.has_traceback, f"afterwards a traceback: {outcome.last_error()}")
        if outcome.status == 0:
            break
    verdict.demand(outcome.status == 0, f"does not finish afterwards: {outcome.status}, {outcome.last_error()}")
    compare(toy, verdict, reference, equal=equal)
    return dataclasses.replace(outcome, stderr=stderr)


def compare(toy: Toy, verdict: Verdict, reference: Reference, *, equal: str = "weights record") -> None:
    """Demand a result, and of `equal` the uninterrupted run's."""
    ending = ending_of(toy)
    verdict.demand(ending.weights is not None, "there is no sound result")
    for what in equal.split():
        verdict.demand(getattr(ending, what) == getattr(reference.ending, what), f"final {what} differ")


def demand_same_training(verdict: Verdict, ours: Toy, theirs: Toy) -> None:
    """The same numbers but for rounding: losses, and in fp32 weights.

    In bf16 weights may part, where a gradient is nothing but round-off: AdamW takes a whole step from its sign.
    """
    records = [read_records(toy.root / "runs" / "tiny.jsonl") for toy in (ours, theirs)]
    mine, other = (
        [record["train_loss"] for record in record_of_one if record["event"] == "train"] for record_of_one in records
    )
    precision = records[0][0]["precision"]
    far = max(abs(a - b) for a, b in zip(mine, other, strict=True))
    verdict.demand(far <= loss_tolerance(precision, max(other) - min(other)), f"losses differ by {far:.1e}")
    if precision == "fp32":
        weights = [read_checkpoint(toy.checkpoint("tinystories_28M_final.pt"))["model"] for toy in (ours, theirs)]
        far = max((weights[0][name] - tensor).abs().max().item() for name, tensor in weights[1].items())
        verdict.demand(far < 1e-4, f"weights differ by {far:.1e}")


def fault_then_again(
    faults: str,
    *arguments: str,
    statuses: tuple[int, ...] | None = None,
    must_say: bool = False,
    equal: str = "weights record",
    before: Callable[[Toy], object] = lambda toy: None,
    between: Callable[[Toy], object] = lambda toy: None,
    words: str = "",
    **how: Any,
) -> Callable[[Toy, Reference], Verdict]:
    """The play of most injections: run with a fault, look what is left, run again to the end, compare."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        before(toy)
        first = toy.run(faults, *arguments, **how)
        check_outcome(verdict, first, must_fire=bool(faults))
        if statuses is not None:
            verdict.demand(
                first.status in statuses, f"status {first.status}, expected {statuses}: {first.last_error()}"
            )
        verdict.demand(words in first.stderr, f"did not say {words!r}: {first.last_error()}")
        if lost := lost_checkpoint(toy, first):
            verdict.lost.append(lost)
        between(toy)
        again = recover(toy, verdict, reference, equal=equal) if first.status != 0 else None
        if again is None:
            compare(toy, verdict, reference, equal=equal)
        left = [path.name for path in toy.root.rglob("*.partial")]
        verdict.demand(not left, f"left behind: {left}")
        told = first.said or (again is not None and again.said)
        verdict.silent = not told and (must_say or "final weights differ" in verdict.problems)
        return verdict

    return play


def refuses(
    *arguments: str,
    before: Callable[[Toy], object],
    words: str,
    script: str = TRAIN,
    statuses: tuple[int, ...] = (2,),
    unchanged: str = "",
    most_seconds: float = 20.0,  # of processor time
    most_bytes: int = 200_000_000,
    **how: Any,
) -> Callable[[Toy, Reference], Verdict]:
    """A play that demands one clear message, quickly, in little memory, twice alike, and keeps files `unchanged`."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        before(toy)
        files = {path: path.read_bytes() for path in toy.root.glob(unchanged) if path.is_file()} if unchanged else {}
        for which in ("first", "second"):
            outcome = toy.run("", *arguments, script=script, **how)
            check_outcome(verdict, outcome, must_fire=False)
            said = outcome.stderr + outcome.stdout
            verdict.demand(outcome.status in statuses, f"{which} run: status {outcome.status}: {outcome.last_error()}")
            verdict.demand(words in said, f"{which} run did not say {words!r}: {outcome.last_error()}")
            verdict.demand(outcome.cpu_seconds < most_seconds, f"took {outcome.cpu_seconds:.1f} s")
            verdict.demand(outcome.peak_bytes < most_bytes, f"took {outcome.peak_bytes / 1e6:.0f} MB")
            verdict.silent = verdict.silent or outcome.status == 0
        changed = [path.name for path, content in files.items() if not path.exists() or path.read_bytes() != content]
        verdict.demand(not changed, f"changed although it refused: {changed}")
        return verdict

    return play
