"""The save, kill, flip, disk and NaN cases pointed at the plain loop of baseline.py, judged more mildly than ours.

Only the final weights must equal those of its own uninterrupted run; its record and its messages are not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import damage
from cases_files import calls_of, sampled
from judging import Injection, Reference, Verdict
from playground import Toy, copy_toy, sha256_of_tensors

SCRIPT = "tests/faults/baseline.py"
RESULT = "tinystories_28M_final.pt"


def weights_of(toy: Toy) -> str | None:
    """Digest of what the plain loop left, or None where it cannot be read."""
    import torch

    try:
        return sha256_of_tensors(torch.load(toy.checkpoint(RESULT), weights_only=True)["model"])
    except Exception:
        return None


def baseline_reference(reference: Reference, folder: Path) -> Reference:
    """The plain loop's uninterrupted run on the same toy."""
    toy = copy_toy(reference.untouched, folder / f"{reference.untouched.variant.name}-baseline")
    outcome = toy.run(script=SCRIPT, timeout=120)
    assert outcome.status == 0, outcome.stderr
    ending = dataclasses.replace(reference.ending, weights=weights_of(toy), record=None)
    return Reference(reference.untouched, ending, outcome.trace, outcome.seconds)


def _again(faults: str = "", *, at: int = 0, harm: damage.Harm | None = None) -> Callable[[Toy, Reference], Verdict]:
    """A fault while it runs, or harm done to its file after a kill at forward `at`; then again to the end."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        first = toy.run(faults or f"forward:{at}:kill", script=SCRIPT)
        verdict.demand(first.fired, "the fault did not happen")
        saved = any(line.startswith(f"done close {RESULT}") for line in first.trace)
        if harm is not None:
            harm(toy.checkpoint(RESULT))
        if saved and weights_of(toy) is None:
            verdict.lost.append(RESULT)
        again = first
        for _ in range(3):
            if again.status != 0:
                again = toy.run(script=SCRIPT)
        verdict.demand(again.status == 0, f"never finishes: {again.last_error()}")
        verdict.demand(weights_of(toy) == reference.ending.weights, "final weights differ")
        verdict.silent = again.status == 0 and bool(verdict.problems) and not first.said
        return verdict

    return play


def cases(reference: Reference) -> Iterator[Injection]:
    """All of this page; `reference` is `baseline_reference` of the plain toy."""
    yield from _calls(reference)
    yield from _files_and_numbers()


def _calls(reference: Reference) -> Iterator[Injection]:
    names = ("tinystories_28M_final",)
    for (point, name), count in calls_of(reference, names=names).items():
        for number in sampled(count, 12 if point == "write" else 99, seed=1):
            for action in ("kill", "torn") if point == "write" else ("kill", "after-kill"):
                faults = f"{point}@{name}:{number}:{action}"
                yield Injection(1, faults, _again(faults))
            if point == "flush":
                continue
            for case, error in ((13, "enospc"), (13, "short"), (15, "eio"), (15, "edquot")):
                if error != "short" or point == "write":
                    faults = f"{point}@{name}:{number}:{error}"
                    yield Injection(case, faults, _again(faults))


def _files_and_numbers() -> Iterator[Injection]:
    for seed in range(8):
        yield Injection(8, f"newest cut, seed {seed}", _again(at=8, harm=damage.cut_at(seed)))
        yield Injection(9, f"newest flipped, seed {seed}", _again(at=8, harm=damage.flip_at(seed)))
    for words, harm in damage.EMPTY.items():
        if words != "missing":
            yield Injection(10, words, _again(at=8, harm=harm))
    for forward in (3, 6, 9):
        yield Injection(34, f"nan in forward {forward}", _nan(forward))
        yield Injection(45, f"forward:{forward}:term", _term(forward))


def _nan(forward: int) -> Callable[[Toy, Reference], Verdict]:
    """One NaN: the final weights must be finite."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        import torch

        verdict = Verdict()
        outcome = toy.run(f"forward:{forward}:nan", script=SCRIPT)
        weights = torch.load(toy.checkpoint(RESULT), weights_only=True)["model"]
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            verdict.lost.append(RESULT)
        verdict.silent = bool(verdict.lost) and not outcome.said
        return verdict

    return play


def _term(forward: int) -> Callable[[Toy, Reference], Verdict]:
    """SIGTERM: no step is lost, and the end is the same."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        import torch

        verdict = Verdict()
        toy.run(f"forward:{forward}:term", script=SCRIPT)
        path = toy.checkpoint(RESULT)
        step = torch.load(path, weights_only=True)["step"] if path.exists() else 0
        verdict.demand(step >= forward - 1, f"steps {step} to {forward - 1} are lost")
        verdict.demand(toy.run(script=SCRIPT).status == 0, "never finishes")
        verdict.demand(weights_of(toy) == reference.ending.weights, "final weights differ")
        return verdict

    return play
