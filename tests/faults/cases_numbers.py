"""Cases 34 to 43 of the matrix: numbers that go bad, settings and checkpoints that do not belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from judging import Injection, Reference, Verdict, check_outcome, demand_same_training, fault_then_again, refuses
from launcher import KILLED
from playground import FP16, NO_DROPOUT, STEADY, Toy, copy_toy, ending_of

from storyladder.runtime import checkpoint
from storyladder.runtime.checkpoint import read_checkpoint, save_checkpoint

RESUME, RESULT = "tiny_resume.pt", "tinystories_28M_final.pt"


def number_cases() -> Iterator[Injection]:
    """Cases 34 to 39."""
    for case, action in ((34, "nan"), (36, "infgrad")):
        for forward in (1, 2, 9, 10, 23):
            play = _skips(action, forward)
            yield Injection(case, f"{action} in forward {forward}: nothing moves", play, fast=forward == 9)
        faults = f"forward:9:{action} forward:20:kill"
        yield Injection(case, f"{faults}: counted across a kill", _counts_across_a_kill(faults))
    for first, last in ((41, 90), (1, 50), (61, 105)):
        faults = f"forward:{first}-{last}:nan"
        play = fault_then_again(faults, statuses=(0,), words="back", equal="")
        yield Injection(35, f"{faults}: rolls back and continues", play, STEADY)
    play = fault_then_again("forward:41+:nan", statuses=(70,), must_say=True, words="error:", equal="")
    yield Injection(35, "nan for ever: stops with 70, then (mended) continues", play, STEADY)
    for kill in (8, 13, 20, 30):
        faults = "forward:5:infgrad forward:15:infgrad"
        yield Injection(37, f"fp16 overflow, killed at forward {kill}", _scaler(faults, kill), FP16)
    for forward in (107, 116):
        play = fault_then_again(f"forward:{forward}:spike", statuses=(0,), words="standard deviations", equal="")
        yield Injection(38, f"a spike in forward {forward} is logged", play, STEADY)
    for forward in (12, 24, 41, 60):
        yield Injection(39, f"NaN in the weights at forward {forward}", _poisoned(f"forward:{forward}:poison"), STEADY)
    for forward in (10, 40, 110):  # the last of a step, right before a save
        words = f"NaN in the weights between forward {forward} and the save"
        yield Injection(39, words, _poisoned(f"forward:{forward}:after-poison"), STEADY)


def _stopped_at(toy: Toy, faults: str) -> dict[str, Any]:
    """The resume state that SIGTERM leaves."""
    assert toy.run(faults).status == 143
    return read_checkpoint(toy.checkpoint(RESUME))


def _skips(action: str, forward: int) -> Callable[[Toy, Reference], Verdict]:
    """After a step with a bad number: weights and optimizer bit for bit as before it, counted and said."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        step = (forward - 1) // 2
        outcome = toy.run(f"forward:{forward}:{action} forward:{2 * step + 2}:term")
        check_outcome(verdict, outcome)
        after = read_checkpoint(toy.checkpoint(RESUME))
        if step:
            other = copy_toy(reference.untouched, toy.root.with_name(f"{toy.root.name}.before"))
            before = _stopped_at(other, f"forward:{2 * step}:term")
            for part in ("model", "optimizer"):
                same = checkpoint.digest_of(before[part]) == checkpoint.digest_of(after[part])
                verdict.demand(same, f"{part} changed")
        else:
            verdict.demand(after["optimizer"]["updates"] == 0, "the optimizer counted it")
        verdict.demand(after["step"] == step + 1, f"stopped at step {after['step']}")
        verdict.demand(after["progress"]["skipped_steps"] == 1, "not counted")
        verdict.silent = f"step {step + 1} skipped" not in outcome.stderr
        again = toy.run()
        verdict.demand(again.status == 0, again.last_error())
        return verdict

    return play


def _counts_across_a_kill(faults: str) -> Callable[[Toy, Reference], Verdict]:
    """The run with a skipped step ends the same, killed afterwards or not."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        other = copy_toy(reference.untouched, toy.root.with_name(f"{toy.root.name}.unkilled"))
        other.run(faults.split(maxsplit=1)[0])
        toy.run(faults)
        toy.run()
        verdict.demand(ending_of(toy) == ending_of(other), "ends differ")
        verdict.demand(ending_of(toy).weights is not None, "is not finished")
        return verdict

    return play


def _scaler(faults: str, kill: int) -> Callable[[Toy, Reference], Verdict]:
    """Overflows in fp16, a kill between them: scale and growth tracker come back, so the end is the same."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        other = copy_toy(reference.untouched, toy.root.with_name(f"{toy.root.name}.unkilled"))
        plain = other.run(faults)
        check_outcome(verdict, plain)
        first = toy.run(f"{faults} forward:{kill}:kill")
        verdict.demand(first.status == KILLED, f"status {first.status}")
        left = read_checkpoint(toy.checkpoint(RESUME)) if toy.checkpoint(RESUME).exists() else {"step": 0}
        begun = 2 * left["step"]
        shifted = [f"forward:{number - begun}:infgrad" for number in (5, 15) if number > begun]
        again = toy.run(" ".join(shifted))
        verdict.demand(again.status == 0, again.last_error())
        verdict.demand(ending_of(toy) == ending_of(other), "ends differ")
        return verdict

    return play


def _poisoned(faults: str) -> Callable[[Toy, Reference], Verdict]:
    """A weight turns NaN: it is never saved, and the run says so and stops, or goes back to sound weights."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        outcome = toy.run(faults)
        check_outcome(verdict, outcome)
        verdict.demand(outcome.status in (0, 70), f"status {outcome.status}: {outcome.last_error()}")
        for path in toy.root.glob("checkpoints/*.pt"):
            sound = all(tensor.isfinite().all() for tensor in read_checkpoint(path)["model"].values())
            verdict.demand(sound, f"{path.name} holds NaN")
        verdict.silent = not outcome.said
        again = toy.run()
        verdict.demand(again.status == 0, f"afterwards: {again.status}, {again.last_error()}")
        return verdict

    return play


# --- settings and lineage ---------------------------------------------------------------------------------------------


def lineage_cases() -> Iterator[Injection]:
    """Cases 40 to 43."""
    for name, value in (("n_embd", 32), ("vocab_size", 80), ("context_length", 8), ("n_layer", 2), ("n_head", 4)):
        play = refuses(before=_interrupted_then(model={name: value}), words=f"{name} is", unchanged="checkpoints/*.pt")
        yield Injection(40, f"{name} is {value} now", play, fast=name == "n_embd")
    for words, harm in {"of another stage": _of_another_stage, "of a later format": _of_a_later_format}.items():
        play = refuses(before=harm, words="tiny_resume.pt", unchanged="checkpoints/*.pt")
        yield Injection(41, f"resume state {words}", play)
    play = refuses(before=_foreign, words="tiny_resume.pt", unchanged="checkpoints/*.pt")
    yield Injection(41, "a file of another program", play)
    for script, words in (("train_children.py", "train_tiny.py"), ("train_simp.py", "train_children.py")):
        play = refuses(before=lambda toy: None, words=words, script=script)
        yield Injection(42, f"{script} before the stage before it", play)
    play = refuses(before=_interrupted_then(), words="is not finished", script="train_children.py")
    yield Injection(42, "train_children.py while stage 1 is unfinished", play)
    for change in ({"batch_size": 8}, {"max_steps": 40}, {"seed": 8}, {"max_lr": 2e-2}, {"warmup_steps": 3}):
        name = next(iter(change))
        play = refuses(before=_interrupted_then(stage=change), words=name, unchanged="checkpoints/*.pt")
        yield Injection(43, f"{name} changed: refused", play)
        yield Injection(43, f"{name} changed: accepted by flag", _accepted(change))
    change = {"compact_vocabulary": False}
    yield Injection(43, "compact vocabulary turned off in the middle: same losses", _same_losses(change), NO_DROPOUT)
    yield Injection(
        43, "other micro-batches in the middle: same losses", _same_losses({"micro_batch_size": 1}), NO_DROPOUT
    )


def _interrupted_then(**changes: Any) -> Callable[[Toy], None]:
    def before(toy: Toy) -> None:
        assert toy.run("forward:20:kill").status == KILLED
        toy.write_config(**changes)

    return before


def _resumable(toy: Toy) -> list[Path]:
    assert toy.run("forward:20:kill").status == KILLED
    return [toy.checkpoint("tiny_resume.pt"), toy.checkpoint("tiny_resume.prev.pt")]


def _of_another_stage(toy: Toy) -> None:
    for path in _resumable(toy):
        save_checkpoint(path, {**read_checkpoint(path), "stage": "children"}, keep_previous=False)


def _of_a_later_format(toy: Toy) -> None:
    real = checkpoint.FORMAT_VERSION
    for path in _resumable(toy):
        content = torch.load(path, weights_only=True)
        content |= {"format_version": real + 1}
        content["digest"] = checkpoint.digest_of(content)
        torch.save(content, path)


def _foreign(toy: Toy) -> None:
    for path in _resumable(toy):
        torch.save({"model": {"w": torch.zeros(3)}, "iter_num": 7}, path)


def _accepted(change: dict[str, Any]) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        _interrupted_then(stage=change)(toy)
        outcome = toy.run("", "--accept-changes")
        check_outcome(verdict, outcome, must_fire=False)
        verdict.demand(outcome.status == 0, outcome.last_error())
        verdict.demand("continuing at step 9" in outcome.stdout, "does not continue")
        return verdict

    return play


def _same_losses(change: dict[str, Any]) -> Callable[[Toy, Reference], Verdict]:
    """What changes no mathematics may change in the middle; losses agree up to rounding."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        other = copy_toy(reference.untouched, toy.root.with_name(f"{toy.root.name}.plain"))
        assert other.run().status == 0
        assert toy.run("forward:10:kill").status == KILLED
        toy.write_config(stage=change)
        outcome = toy.run()
        verdict.demand(outcome.status == 0, outcome.last_error())
        demand_same_training(verdict, toy, other)
        return verdict

    return play


def cases(references: dict[str, Reference]) -> Iterator[Injection]:
    """All of this page."""
    assert references
    yield from number_cases()
    yield from lineage_cases()
