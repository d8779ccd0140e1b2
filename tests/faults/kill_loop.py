"""Killed again and again at random moments: the end must be that of the run that nobody killed."""

from __future__ import annotations

import random
from collections.abc import Callable

from judging import Reference, Verdict, check_outcome, recover
from launcher import KILLED
from playground import LONG, Toy, ending_of, lost_checkpoint, sound_steps

from storyladder.runtime.run_log import read_records

VARIANT = LONG
_FORWARDS_A_STEP = 2
_SEED = 2024


def loop(kills: int, *, most_steps: int | None = None) -> Callable[[Toy, Reference], Verdict]:
    """SIGKILL a random time after a random step, `kills` times."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict, choice = Verdict(), random.Random(_SEED + kills)
        steps = most_steps or 2 * 1_900 // max(kills, 2) + 2
        made = 0
        for _ in range(kills):
            forward = choice.randint(1, steps * _FORWARDS_A_STEP)
            outcome = toy.run(f"forward:{forward}:timer={choice.uniform(0, 0.03):.4f}", timeout=600)
            if outcome.status != KILLED:
                break
            made += 1
            lost = lost_checkpoint(toy, outcome) if made == 1 else _no_generation(toy, outcome.trace)
            if lost:
                verdict.lost.append(lost)
        verdict.demand(made == kills, f"it was finished after {made} kills")
        recover(toy, verdict, reference)
        ending = ending_of(toy)
        verdict.notes.append(
            f"{kills} kills: SHA-256 of the final weights {ending.weights}, of the loss record {ending.record}; "
            f"never killed: {reference.ending.weights}, {reference.ending.record}"
        )
        return verdict

    return play


def _no_generation(toy: Toy, trace: list[str]) -> str | None:
    began = any(line.startswith("done rename tiny_resume.pt") for line in trace)
    names = sound_steps(toy)
    return "tiny_resume.pt" if began and not any("resume" in name for name in names) else None


def _evaluations_without_improvement(toy: Toy) -> int:
    records = [each for each in read_records(toy.root / "runs" / "tiny.jsonl") if each["event"] == "evaluation"]
    best = max(number for number, record in enumerate(records) if record["best"])
    return len(records) - 1 - best


def near_patience(point: str, name: str, back: int) -> Callable[[Toy, Reference], Verdict]:
    """Kill at the `back`-th call from the end, where evaluations without improvement are being counted."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        steps = len(reference.calls("forward")) // _FORWARDS_A_STEP
        verdict.demand(steps < dict(toy.variant.stage)["max_steps"], "patience never runs out in this toy")
        count = len(reference.calls(f" {point} ", name))
        faults = f"{point}{'@' + name if name else ''}:{count + 1 - back}:kill"
        first = toy.run(faults)
        check_outcome(verdict, first)
        verdict.demand(first.status == KILLED, f"status {first.status}: {first.last_error()}")
        if point == "evaluate":  # of the last evaluation
            left = dict(toy.variant.stage)["patience"] - _evaluations_without_improvement(toy)
            verdict.demand(left == 1, f"killed with {left} evaluations of patience left, not with one")
        recover(toy, verdict, reference)
        return verdict

    return play
