"""Compare recipes: train stage 1 of several presets on one text with one seed, and time how long each takes to a loss.

    python benchmarks/recipe.py                            default and swift, 300 steps each; update RESULTS.md
    python benchmarks/recipe.py --steps 6000 --device cuda
    python benchmarks/recipe.py --recipes default swift mine --config my_config.py
    python benchmarks/recipe.py --plain-steps 5            also extrapolate a plain loop on transformers' GPT-2
    python benchmarks/recipe.py --data data/swift          use train.bin and val.bin of that folder

The first recipe is the baseline: when do the others reach its final loss? All use the same validation windows. The
warm-up is at most a tenth of the steps. Minutes count training steps only. To resume an interrupted comparison, repeat
the command; finished recipes are not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from storyladder.command_line import Parser, StageRun, load_ladder
from storyladder.runtime.errors import UserError, report, user_errors
from storyladder.settings import DEFAULT_PRESET, PROJECT, Ladder, Paths, check

QUANTITIES = ("step", "tokens", "minutes")


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation."""

    step: int
    tokens: int
    minutes: float  # of training steps, including compilation
    val_loss: float
    bits_per_byte: float


Curve = list[Point]


def arm_of(
    preset: Ladder, *, steps: int, seed: int, windows: int, evaluations: int, data: Path, folder: Path
) -> Ladder:
    """The preset with a first stage of `steps` steps, files under `folder`, and text from `data`."""
    stage = dataclasses.replace(
        preset.stages[0],
        max_steps=steps,
        warmup_steps=min(preset.stages[0].warmup_steps, steps // 10),
        eval_interval=max(1, steps // evaluations),
        val_windows=windows,
        seed=seed,
    )
    paths = Paths(root=str((folder / preset.name).resolve()), data=str(data.resolve()))
    return check(dataclasses.replace(preset, name=DEFAULT_PRESET, stages=(stage, *preset.stages[1:]), paths=paths))


def curve_of(arm: Ladder, device: str) -> Curve:
    """Train the first stage, or resume it, and read its evaluations."""
    from model import GPT
    from storyladder.results import StageFiles
    from storyladder.runtime.run_log import read_records
    from storyladder.stage.loop import train_stage

    stage = arm.stages[0]
    train_stage(StageRun(ladder=arm, stage=stage, device=device), GPT)
    records = read_records(StageFiles.of(arm, stage).record)
    return [
        Point(
            record["step"],
            record["step"] * arm.tokens_per_step(stage),
            record["train_seconds"] / 60,
            record["val_loss"],
            record["bits_per_byte"],
        )
        for record in records
        if record["event"] == "evaluation"
    ]


def when(curve: Curve, loss: float) -> dict[str, float] | None:
    """Step, tokens and minutes at which a curve first reaches a loss, interpolated linearly; None if it never does."""
    before: Point | None = None
    for point in curve:
        if point.val_loss <= loss:
            if before is None:
                return {name: float(getattr(point, name)) for name in QUANTITIES}
            share = (before.val_loss - loss) / (before.val_loss - point.val_loss)
            values = {name: (getattr(before, name), getattr(point, name)) for name in QUANTITIES}
            return {name: start + share * (end - start) for name, (start, end) in values.items()}
        before = point
    return None


def table(curves: dict[str, Curve]) -> list[str]:
    """The comparison as a Markdown table; the first curve is the baseline."""
    baseline, *_ = curves
    goal = curves[baseline][-1]
    lines = [
        f"| recipe | tokens | minutes | val_loss | bits/byte | steps to {goal.val_loss:.3f} ({baseline}) | tokens "
        "| minutes | share of its steps | speedup |",
        f"|{' --- |' * 10}",
    ]
    for name, curve in curves.items():
        last, reached = curve[-1], when(curve, goal.val_loss)
        cells = [name, f"{last.tokens:,}", f"{last.minutes:.1f}", f"{last.val_loss:.4f}", f"{last.bits_per_byte:.3f}"]
        if reached is None:
            cells += ["never", *[""] * 4]
        else:
            cells += [f"{reached['step']:,.0f}", f"{reached['tokens']:,.0f}", f"{reached['minutes']:.2f}"]
            cells += [f"{reached['step'] / goal.step:.0%}", f"{goal.minutes / reached['minutes']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def losses_table(curves: dict[str, Curve]) -> list[str]:
    """Validation losses by step, at most thirteen rows."""
    steps = [point.step for point in next(iter(curves.values()))]
    shown = [*steps[:: max(1, len(steps) // 12)]]
    by_step = {name: {point.step: point.val_loss for point in curve} for name, curve in curves.items()}
    lines = [f"| step | {' | '.join(curves)} |", f"|{' --- |' * (1 + len(curves))}"]
    for step in [*shown, *([steps[-1]] if shown[-1] != steps[-1] else [])]:
        cells = [f"{losses[step]:.3f}" if step in losses else "" for losses in by_step.values()]
        lines.append(f"| {step:,} | {' | '.join(cells)} |")
    return lines


def seconds_of_plain_loop(arm: Ladder, device: str, steps: int) -> float:
    """Seconds per step of a plain loop with this recipe: the median of `steps`, after one warm-up."""
    import torch

    from benchmarks.peers import PlainLoop
    from storyladder.corpus.corpora import token_files
    from storyladder.corpus.token_file import TrainBatches, open_token_file
    from storyladder.corpus.tokenizer import gpt2_tokenizer
    from storyladder.runtime.machine import pick_device, pick_precision

    chosen, stage = pick_device(device), arm.stages[0]
    text = open_token_file(
        token_files(arm, stage)[0],
        tokenizer=gpt2_tokenizer().fingerprint,
        vocab_size=arm.model.vocab_size,
        at_least=arm.model.context_length + 1,
    )
    batches = TrainBatches(
        text.ids, context_length=arm.model.context_length, batch_size=stage.batch_size, seed=stage.seed
    )
    bf16 = pick_precision(chosen).dtype == torch.bfloat16
    loop = PlainLoop(arm.model, stage, batches, device=chosen, bf16=bf16)
    seconds = []
    for number in range(steps + 1):
        tick = time.perf_counter()
        loop.step(number).item()
        seconds.append(time.perf_counter() - tick)
    return statistics.median(seconds[1:])


def plain_lines(curves: dict[str, Curve], step_seconds: float) -> list[str]:
    """When a plain loop with the first recipe would reach its final loss, and how much sooner the others do."""
    baseline, *others = curves
    goal = curves[baseline][-1]
    minutes = step_seconds * goal.step / 60
    lines = [
        f"A plain loop on transformers' GPT-2 with recipe {baseline} takes {step_seconds:.3g} s per step (measured), "
        f"which is {minutes:.1f} minutes for {goal.step:,} steps to a loss of {goal.val_loss:.3f} (extrapolated)."
    ]
    for name in others:
        if (reached := when(curves[name], goal.val_loss)) is not None:
            lines.append(f"Storyladder with {name} reaches it {minutes / reached['minutes']:.1f} times sooner.")
    return lines


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Plot losses over tokens and over minutes to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, (quantity, scale, label) in zip(
        axes, (("tokens", 1e6, "million tokens"), ("minutes", 1.0, "minutes of training")), strict=True
    ):
        for name, curve in curves.items():
            axis.plot([getattr(p, quantity) / scale for p in curve], [p.val_loss for p in curve], ".-", label=name)
        axis.axhline(next(iter(curves.values()))[-1].val_loss, color="gray", linewidth=0.8, linestyle="--")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("validation loss, nats per token")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--recipes", nargs="+", default=["default", "swift"], metavar="NAME", help="presets to compare")
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="steps per recipe (300)")
    parser.add_argument("--seed", type=int, default=1337, metavar="N", help="seed of weights and batches (1337)")
    parser.add_argument("--windows", type=int, default=128, metavar="N", help="validation windows of 256 tokens (128)")
    parser.add_argument("--evaluations", type=int, default=30, metavar="N", help="evaluations per recipe (30)")
    parser.add_argument("--plain-steps", type=int, default=0, metavar="N", help="also time N steps of a plain loop (0)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with train.bin and val.bin (data)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (reports/recipe)")
    parser.add_argument("--no-picture", action="store_true", help="do not plot curves, which needs matplotlib")
    parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    flags = parser.parse(argv)
    for name, lowest in (("steps", 10), ("windows", 1), ("evaluations", 1), ("plain_steps", 0), ("seed", 0)):
        if (value := getattr(flags, name)) < lowest:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected {lowest} or more")
    if len(set(flags.recipes)) != len(flags.recipes):
        parser.error(f"--recipes {' '.join(flags.recipes)}: name each preset once")
    if not flags.no_picture and importlib.util.find_spec("matplotlib") is None:
        raise UserError("plotting needs matplotlib; run python -m pip install matplotlib, or add --no-picture")
    return flags


def compare(flags: argparse.Namespace) -> tuple[dict[str, Curve], list[str]]:
    """Train every recipe; returns the curves and the report lines."""
    presets = [load_ladder(flags.config, name) for name in flags.recipes]
    data = flags.data if flags.data is not None else PROJECT / "data"
    out = flags.out if flags.out is not None else PROJECT / "reports" / "recipe"
    folder = out / f"{flags.steps}-steps-seed-{flags.seed}"
    names = ("steps", "seed", "windows", "evaluations")
    arms = {
        preset.name: arm_of(preset, data=data, folder=folder, **{name: getattr(flags, name) for name in names})
        for preset in presets
    }
    curves = {}
    for name, arm in arms.items():
        report(f"recipe {name}, {flags.steps:,} steps")
        curves[name] = curve_of(arm, flags.device)
    lines = [*table(curves), "", *losses_table(curves)]
    if flags.plain_steps:
        first = next(iter(arms.values()))
        lines += ["", *plain_lines(curves, seconds_of_plain_loop(first, flags.device, flags.plain_steps))]
    if not flags.no_picture:
        draw(curves, folder / "curves.png")
        report(f"curves: {folder / 'curves.png'}")
    return curves, lines


def main(argv: Sequence[str] | None = None) -> None:
    """Train, compare, record."""
    with user_errors():
        flags = arguments(argv)
        curves, lines = compare(flags)
        typed = " ".join(sys.argv[1:] if argv is None else argv).replace(str(PROJECT), ".")
        device = _device_line(flags.device)
        lines = [hardware_line() + f"; {device}.", "", f"    python benchmarks/recipe.py {typed}".rstrip(), "", *lines]
        print("\n".join(lines))
        if not flags.no_results:
            write_section(f"Recipes: {' and '.join(curves)}, {flags.steps:,} steps", lines)
        if flags.json:
            found: dict[str, Any] = {name: [dataclasses.asdict(p) for p in curve] for name, curve in curves.items()}
            goal = next(iter(curves.values()))[-1].val_loss
            print(json.dumps({"curves": found, "reached": {name: when(curve, goal) for name, curve in curves.items()}}))


def _device_line(device: str) -> str:
    from storyladder.runtime.machine import device_text, pick_device, pick_precision

    chosen = pick_device(device)
    return f"{device_text(chosen)}, {pick_precision(chosen).name}"


if __name__ == "__main__":
    main()
