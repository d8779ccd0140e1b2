"""Training speed: Storyladder's own step against a plain loop on transformers' GPT-2, taking turns in one run.

    python benchmarks/training.py                    print a table, update RESULTS.md; about eight minutes
    python benchmarks/training.py --json             the same, with one JSON object as the last line
    python benchmarks/training.py --data FILE.bin    on your own text (a token file with its sidecar)
    python benchmarks/training.py --compiled         also compile the plain loop on a CPU (minutes longer)
    python benchmarks/training.py --curve 200        compare the losses of 200 steps instead of the speed
    python benchmarks/training.py --kernels          a step with all C kernels, with none, and without each one

tokens_per_s, ratio_plain_fp32 and ratio_plain_bf16 use the full vocabulary, the *_compact keys the compact one. Ratios
compare medians within one race. Model FLOPs are 6 per weight and token, plus causal attention.

--kernels runs on a CPU with the compact vocabulary and without the plain loops. A part without its kernel uses torch
ops, as on a machine without a C compiler. Attention and LayerNorm have kernels in bf16 only, so they have no row in
fp32; --bf16 measures in bf16 even where that is slow, --compiled adds the compiled plain loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from benchmarks.turns import Measured, race
from storyladder.command_line import Parser, load_ladder, positive_number
from storyladder.runtime.errors import UserError, report, user_errors
from storyladder.settings import PROJECT, Ladder, ModelConfig

GB = 1e9
_WARMUPS = 2
_STEPS_PER_TURN = {"cuda": 20}  # steps take milliseconds there, so they are timed in blocks
_MEMORY_SHARE = 0.9  # of free memory that a race may use
OURS, COMPACT = "Storyladder", "Storyladder, compact vocabulary"
ALL_KERNELS, NO_KERNELS = "all kernels", "no kernels"
_BF16_KERNELS = ("attention", "layer_norm")  # these kernels are bf16 only
PLAIN = {"fp32": "plain loop, fp32", "bf16": "plain loop, bf16 autocast"}


@dataclasses.dataclass
class Result:
    """One contender over all races: its step times, and its speed relative to the contenders it raced against."""

    name: str
    facts: dict[str, Any]
    seconds: list[float]
    median: float | None
    tokens_per_s: float | None
    ratios: dict[str, float]  # other contender's name -> how many times as fast as it
    share: float | None  # of peak matmul throughput in its precision, by its own FLOPs
    share_of_full: float | None  # the same, with the FLOPs of the full vocabulary
    note: str = ""


def flops_per_token(model: ModelConfig, rows: int) -> float:
    """FLOPs of forward and backward: 6 per matmul weight, plus causal attention."""
    body = 12 * model.n_embd**2 * model.n_layer
    attention = model.n_layer * model.context_length * model.n_embd
    return 6.0 * (body + rows * model.n_embd + attention)


def races_that_fit(
    needs: dict[str, float], anchors: list[str], free: float | None
) -> tuple[list[list[str]], list[str]]:
    """Group contenders into races that fit in memory; also returns those that do not fit even alone with the anchors.

    `needs` maps names to bytes. If everything fits in `free`, there is one race. Otherwise every race includes the
    anchors, so that ratios compare times within one race.
    """
    if free is None or sum(needs.values()) <= free:
        return [list(needs)], []
    base = sum(needs[name] for name in anchors)
    others = [name for name in needs if name not in anchors]
    fitting = [name for name in others if base + needs[name] <= free]
    races: list[list[str]] = []
    for name in fitting:
        room = [race for race in races if sum(needs[each] for each in (*race, name)) <= free]
        if room:
            room[0].append(name)
        else:
            races.append([*anchors, name])
    races = races or ([anchors] if base <= free else [])
    left_out = [name for name in others if name not in fitting] + ([] if base <= free else anchors)
    return races, left_out


def run_races(
    ladder: Ladder, contenders: list[Any], *, device: str, steps: int, seconds: float
) -> tuple[list[dict[str, Measured]], list[str]]:
    """Run the races one by one, sharing the time equally; also returns the contenders that did not fit in memory."""
    from benchmarks.racers import Contender, Workload, entry_of, plain_memory
    from storyladder.learning.memory import fitting_micro_batch, predicted_memory
    from storyladder.runtime.machine import free_memory, pick_device

    chosen = pick_device(device)
    stage, model = ladder.stages[0], ladder.model
    free, rows = free_memory(chosen), model.vocab_size
    micro = fitting_micro_batch(model, stage, chosen, n_rows=rows, free_bytes=free)
    ours = predicted_memory(model, n_rows=rows, micro_batch_size=micro, device_type=chosen.type)
    needs = {each.name: plain_memory(ladder) if each.kind == "plain" else ours for each in contenders}
    anchors = [each.name for each in contenders if each.name in (OURS, COMPACT, ALL_KERNELS)]
    groups, left_out = races_that_fit(needs, anchors, None if free is None else free * _MEMORY_SHARE)
    per_turn = _STEPS_PER_TURN.get(chosen.type, 1)
    workload = Workload(ladder=ladder, device=device, steps_per_turn=per_turn)
    deadline = time.monotonic() + seconds
    found = []
    for number, names in enumerate(groups):
        entries = [entry_of(each, workload) for each in contenders if each.name in names]
        precisions = sorted({each.precision or _matmul_precision(device) for each in contenders if each.name in names})
        matmuls = [Contender(name=_matmuls(each), kind="matmuls", precision=each) for each in precisions]
        entries += [entry_of(each, workload) for each in matmuls]
        share = max(0.0, deadline - time.monotonic()) / (len(groups) - number)
        report(f"race {number + 1} of {len(groups)}, {share / 60:.1f} minutes: {', '.join(names)}")
        found.append(race(entries, warmups=_WARMUPS, turns=steps, seconds=share, report=report))
    return found, left_out


def _matmul_precision(device: str) -> str:
    from storyladder.runtime.machine import pick_device, pick_precision

    name = pick_precision(pick_device(device)).name
    return "bf16" if name == "bf16" else "fp32"  # fp16 matmuls are not measured


def _matmuls(precision: str) -> str:
    return f"matmuls, {precision}"


def results_of(
    ladder: Ladder, contenders: list[Any], races: list[dict[str, Measured]], left_out: list[str]
) -> list[Result]:
    """One result per contender, in the same order."""
    results = []
    for contender in contenders:
        there = [(found[contender.name], found) for found in races if contender.name in found]
        good = [(measured, found) for measured, found in there if measured.median is not None]
        seconds = [value for measured, _ in good for value in measured.seconds]
        ratios = {}
        for measured, found in good:
            for name in (*PLAIN.values(), ALL_KERNELS):
                plain = found[name].median if name in found else None
                if plain is not None and measured.median is not None and name != contender.name:
                    ratios[name] = plain / measured.median
        median = _median(seconds)
        tokens = ladder.tokens_per_step(ladder.stages[0])
        facts = _facts(good)
        share, share_of_full = _shares(ladder.model, good, tokens)
        results.append(
            Result(
                name=contender.name,
                facts=facts,
                seconds=seconds,
                median=median,
                tokens_per_s=None if median is None else tokens / median,
                ratios=ratios,
                share=share,
                share_of_full=share_of_full,
                note=_note(contender.name, there, left_out),
            )
        )
    return results


def _facts(good: list[tuple[Measured, dict[str, Measured]]]) -> dict[str, Any]:
    """The facts a contender reported, with its highest memory peaks over all races."""
    facts = dict(good[-1][0].facts) if good else {}
    for name in ("peak_rss", "peak_gpu"):
        if peaks := [measured.facts[name] for measured, _ in good if measured.facts.get(name)]:
            facts[name] = max(peaks)
    return facts


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _shares(
    model: ModelConfig, good: list[tuple[Measured, dict[str, Measured]]], tokens: int
) -> tuple[float | None, float | None]:
    """Median FLOP/s of a contender over that of bare matmuls in the same race and precision, averaged over races."""
    own, full = [], []
    for measured, found in good:
        matmuls = found.get(_matmuls(measured.facts["precision"]))
        if matmuls is None or matmuls.median is None or measured.median is None:
            continue
        peak = _median([reading["flops_per_s"] for reading in matmuls.readings])
        assert peak is not None
        own.append(flops_per_token(model, measured.facts["rows"]) * tokens / measured.median / peak)
        full.append(flops_per_token(model, model.vocab_size) * tokens / measured.median / peak)
    return (sum(own) / len(own), sum(full) / len(full)) if own else (None, None)


def _note(name: str, there: list[tuple[Measured, dict[str, Measured]]], left_out: list[str]) -> str:
    if name in left_out:
        return "left out: not enough free memory"
    failures = [measured.failure for measured, _ in there if measured.failure is not None]
    if failures:
        return f"not measured: {failures[0]}"
    return "cold: there was no time for a warm-up" if any(measured.cold for measured, _ in there) else ""


def table(results: list[Result]) -> list[str]:
    """The results as a Markdown table."""
    plain = [name for name in PLAIN.values() if any(name in result.ratios for result in results)]
    against = [f"x {name}" for name in plain]
    heads = ["contender", "precision", "s/step (min to max)", "n", "tokens/s", *against]
    heads += ["share of peak (full vocabulary)", "peak GB", "micro-batch", "rows"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for result in results:
        if result.median is None:
            lines.append(f"| {result.name} |{' |' * (len(heads) - 1)}")
            continue
        cells = [result.name, str(result.facts["precision"])]
        cells.append(f"{result.median:.4g} ({min(result.seconds):.4g} to {max(result.seconds):.4g})")
        cells += [str(len(result.seconds)), f"{result.tokens_per_s:,.0f}"]
        cells += [f"{result.ratios[name]:.2f}" if name in result.ratios else "" for name in plain]
        share = "" if result.share is None else f"{result.share:.0%}"
        full = result.share_of_full
        cells.append(f"{share} ({full:.0%})" if full is not None and result.share != full else share)
        cells.append(_memory_cell(result.facts))
        cells += [str(result.facts["micro_batch"]), f"{result.facts['rows']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"{result.name}: {result.note}." for result in results if result.note]
    return [*lines, *([""] if notes else []), *notes]


def _memory_cell(facts: dict[str, Any]) -> str:
    cell = f"{facts['peak_rss'] / GB:.2f}" if facts.get("peak_rss") else ""
    return f"{cell}, GPU {facts['peak_gpu'] / GB:.2f}" if facts.get("peak_gpu") else cell


def peak_lines(races: list[dict[str, Measured]]) -> list[str]:
    """Peak matmul throughput, one line per precision."""
    lines = []
    for name in sorted({name for found in races for name in found if name.startswith("matmuls")}):
        readings = [reading for found in races if name in found for reading in found[name].readings]
        peak = _median([reading["flops_per_s"] for reading in readings])
        if peak is not None:
            lines.append(f"{name}: {peak / 1e12:.3g} TFLOP/s (n = {len(readings)}).")
    return lines


def json_line(results: list[Result], *, device: str) -> dict[str, Any]:
    """The object that --json prints; null for anything that was not measured."""
    named = {result.name: result for result in results}
    ours, compact = named.get(OURS), named.get(COMPACT)
    peaks = [each.facts["peak_rss"] for each in (ours, compact) if each is not None and each.facts.get("peak_rss")]
    gpu = [each.facts["peak_gpu"] for each in (ours, compact) if each is not None and each.facts.get("peak_gpu")]
    return {
        "tokens_per_s": _rounded(ours.tokens_per_s if ours else None, 1),
        "tokens_per_s_compact": _rounded(compact.tokens_per_s if compact else None, 1),
        "ratio_plain_fp32": _rounded(ours.ratios.get(PLAIN["fp32"]) if ours else None),
        "ratio_plain_bf16": _rounded(ours.ratios.get(PLAIN["bf16"]) if ours else None),
        "ratio_plain_fp32_compact": _rounded(compact.ratios.get(PLAIN["fp32"]) if compact else None),
        "ratio_plain_bf16_compact": _rounded(compact.ratios.get(PLAIN["bf16"]) if compact else None),
        "peak_rss_gb": _rounded(max(peaks) / GB if peaks else None),
        "peak_gpu_gb": _rounded(max(gpu) / GB if gpu else None),
        "share_of_peak": {each.name: _rounded(each.share) for each in results},
        "seconds_per_step": {each.name: _rounded(each.median, 5) for each in results},
        "n": {each.name: len(each.seconds) for each in results},
        "notes": {each.name: each.note for each in results if each.note},
        "device": device,
        "versions": hardware_line(),
    }


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)


def contenders_for(device: str, *, compiled: bool) -> list[Any]:
    """The contenders on this device."""
    from benchmarks.racers import WITHOUT, Contender
    from storyladder.learning.device_steps import MODES
    from storyladder.runtime.machine import pick_device, pick_precision

    found = [
        Contender(name=OURS, kind="ours", precision=None),
        Contender(name=COMPACT, kind="ours", precision=None, compact=True),
        Contender(name=PLAIN["fp32"], kind="plain", precision="fp32"),
        Contender(name=PLAIN["bf16"], kind="plain", precision="bf16"),
    ]
    if pick_device(device).type == "cuda":  # what each technique gains; OURS chooses by itself
        found.append(Contender(name=f"{OURS}, one by one", kind="ours", one_by_one=True))
        modes = MODES if pick_precision(pick_device(device)).name != "fp16" else ()  # fp16 steps never run ahead
        found += [Contender(name=f"{OURS}, {mode.description}", kind="ours", mode=mode) for mode in modes]
        found += [Contender(name=f"{OURS}, without {part}", kind="ours", without=part) for part in WITHOUT]
    if compiled or pick_device(device).type == "cuda":
        found.append(_compiled_plain_loop(_matmul_precision(device)))
    return found


def _compiled_plain_loop(precision: str) -> Any:
    from benchmarks.racers import Contender

    name = f"plain loop, {precision}, compiled"
    return Contender(name=name, kind="plain", precision=precision, compiled=True)


def kernel_contenders(precision: str, *, compiled: bool) -> list[Any]:
    """The step with all C kernels, with none, and without each one that this precision uses."""
    from benchmarks.racers import Contender
    from storyladder.layers.kernels import PARTS

    used = [part for part in PARTS if precision == "bf16" or part not in _BF16_KERNELS]
    off = {ALL_KERNELS: (), NO_KERNELS: PARTS, **{f"without {part}": (part,) for part in used}}
    found = [
        Contender(name=name, kind="ours", precision=precision, compact=True, kernels_off=parts)
        for name, parts in off.items()
    ]
    return [*found, _compiled_plain_loop(precision)] if compiled else found


def measure_kernels(
    ladder: Ladder, *, device: str, steps: int, seconds: float, bf16: bool, compiled: bool
) -> dict[str, Any]:
    """Measure what each C kernel gains: `lines` for people, `json` for programs. UserError if there are no kernels."""
    from storyladder.layers.kernels import why_no_kernels
    from storyladder.runtime.machine import device_text, pick_device

    chosen = pick_device(device)
    if chosen.type != "cpu":
        raise UserError(f"--kernels compares C kernels, which run on CPUs, not on {chosen.type}; add --device cpu")
    if why := why_no_kernels():
        raise UserError(f"there are no C kernels to compare: {why}; install a C compiler")
    contenders = kernel_contenders("bf16" if bf16 else _matmul_precision(device), compiled=compiled)
    races, left_out = run_races(ladder, contenders, device=device, steps=steps, seconds=seconds)
    results = results_of(ladder, contenders, races, left_out)
    line = json_line(results, device=device_text(chosen))
    kept = ("seconds_per_step", "n", "notes", "device", "versions")
    times = {each.name: _rounded(_times_as_long(each)) for each in results}
    return {"lines": kernel_table(results), "json": {"times_as_long": times, **{name: line[name] for name in kept}}}


def _times_as_long(result: Result) -> float | None:
    """Median step time relative to all kernels, within the same race."""
    if result.name == ALL_KERNELS and result.median is not None:
        return 1.0
    return 1 / result.ratios[ALL_KERNELS] if ALL_KERNELS in result.ratios else None


def kernel_table(results: list[Result]) -> list[str]:
    """The results of --kernels as a Markdown table."""
    lines = ["| step | precision | s (min to max) | n | times as long |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        if result.median is None:
            lines.append(f"| {result.name} | | | | |")
            continue
        times = _times_as_long(result)
        seconds = f"{result.median:.4g} ({min(result.seconds):.4g} to {max(result.seconds):.4g})"
        cells = [result.name, str(result.facts["precision"]), seconds, str(len(result.seconds))]
        lines.append(f"| {' | '.join(cells)} | {'' if times is None else f'{times:.2f}'} |")
    notes = [f"{result.name}: {result.note}." for result in results if result.note]
    return [*lines, *([""] if notes else []), *notes]


def measure(ladder: Ladder, *, device: str, steps: int, seconds: float, compiled: bool = False) -> dict[str, Any]:
    """Run all races on a ladder whose text is in place: `lines` for people, `json` for programs."""
    from storyladder.runtime.machine import device_text, pick_device

    contenders = contenders_for(device, compiled=compiled)
    races, left_out = run_races(ladder, contenders, device=device, steps=steps, seconds=seconds)
    results = results_of(ladder, contenders, races, left_out)
    line = json_line(results, device=device_text(pick_device(device)))
    return {"lines": [*table(results), "", *peak_lines(races)], "json": line}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a token file; default data/train.bin")
    parser.add_argument(
        "--steps", type=int, default=10, metavar="N", help="timed steps per contender; on a GPU, blocks of 20 (10)"
    )
    parser.add_argument("--minutes", type=positive_number, default=8.0, metavar="N", help="approximate time limit (8)")
    parser.add_argument("--compiled", action="store_true", help="also compile the plain loop on a CPU")
    parser.add_argument("--curve", type=int, metavar="N", help="compare the losses of N steps instead")
    parser.add_argument("--curve-batch", type=int, default=4, metavar="N", help="sequences per step for --curve (4)")
    parser.add_argument("--kernels", action="store_true", help="compare C kernels on and off instead (CPU only)")
    parser.add_argument("--bf16", action="store_true", help="run --curve also in bf16, --kernels in bf16 even if slow")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
    flags = parser.parse(argv)
    for name in ("steps", "curve", "curve_batch"):
        if (value := getattr(flags, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
    if flags.kernels and flags.curve is not None:
        parser.error("--kernels and --curve cannot be combined; give one of them")
    if flags.bf16 and flags.curve is None and not flags.kernels:
        parser.error("--bf16 needs --curve N or --kernels; the race always includes a plain loop in bf16")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors(), tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
        flags = arguments(argv)
        preset = load_ladder(flags.config, flags.preset)
        from benchmarks.loss_curve import compare_curves  # importing torch takes seconds; --help must not wait for it
        from benchmarks.workload import moved_to, put_text

        ladder = moved_to(preset, Path(folder))
        text = put_text(ladder, flags.data)
        report(f"text: {text}")
        if flags.curve is not None:
            title = "Training: loss against the plain loop"
            precisions = ("fp32", "bf16") if flags.bf16 else None
            found = compare_curves(
                ladder, steps=flags.curve, batch_size=flags.curve_batch, device=flags.device, precisions=precisions
            )
        elif flags.kernels:
            title = "Training: C kernels on and off"
            found = measure_kernels(
                ladder,
                device=flags.device,
                steps=flags.steps,
                seconds=60 * flags.minutes,
                bf16=flags.bf16,
                compiled=flags.compiled,
            )
        else:
            title = "Training: speed"
            found = measure(
                ladder, device=flags.device, steps=flags.steps, seconds=60 * flags.minutes, compiled=flags.compiled
            )
        model = ladder.model
        batch = ladder.stages[0].batch_size if flags.curve is None else flags.curve_batch
        shape = (
            f"Preset {ladder.name}: {model.n_params:,} parameters, batch {batch} x {model.context_length}, "
            f"dropout {model.dropout if flags.curve is None else 0:g}, AdamW, gradients clipped. Text: {text}."
        )
        typed = " ".join(sys.argv[1:] if argv is None else argv).replace(str(PROJECT), ".")
        lines = [hardware_line() + ".", "", f"    python benchmarks/training.py {typed}".rstrip(), "", shape, ""]
        lines += found["lines"]
        print("\n".join(lines))
        if not flags.no_results:
            write_section(title, lines)
        if flags.json:
            print(json.dumps(found["json"]))


if __name__ == "__main__":
    main()
