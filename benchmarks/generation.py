"""Generation speed: tokens/s and time to first token, against transformers' generate and no KV cache at all.

    python benchmarks/generation.py                        with random weights, which are just as fast
    python benchmarks/generation.py --checkpoint FILE      with the weights of a result
    python benchmarks/generation.py --json                 with one JSON object as the last line

All three have the same weights and must generate the same first 32 tokens with greedy decoding.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from benchmarks.turns import Measured, race
from storyladder.command_line import Parser, load_ladder, positive_number
from storyladder.runtime.errors import report, user_errors
from storyladder.settings import Ladder

_PROMPT = "Once upon a time, there was a"
_WARMUPS = 1


def measure(
    ladder: Ladder, checkpoint: Path, *, device: str, stories: int, tokens: int, seconds: float
) -> dict[str, Any]:
    """Measure all three in turns: `lines` for people, `json` for programs."""
    from benchmarks.tellers import SAME_TOKENS, Telling, entries_of
    from storyladder.runtime.machine import device_text, pick_device

    settings = dataclasses.replace(ladder.generate, max_new_tokens=tokens)
    telling = Telling(ladder=ladder, checkpoint=checkpoint, device=device, prompt=_PROMPT, settings=settings)
    found = race(entries_of(telling), warmups=_WARMUPS, turns=stories, seconds=seconds, report=report)
    greedy = {tuple(measured.facts["greedy"]) for measured in found.values() if measured.failure is None}
    same = f"The first {SAME_TOKENS} tokens of greedy decoding are {'the same' if len(greedy) == 1 else 'DIFFERENT'}."
    return {
        "lines": [*table(found), "", same],
        "json": {**json_line(found), "same_tokens": len(greedy) == 1, "device": device_text(pick_device(device))},
    }


def table(found: dict[str, Measured]) -> list[str]:
    """The measurements as a Markdown table."""
    from benchmarks.tellers import OURS

    lines = ["| contender | tokens/s (min to max) | n | tokens per story | first token, ms | Storyladder, speedup |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    ours = found[OURS].median
    for name, measured in found.items():
        if measured.median is None:
            lines.append(f"| {name} | not measured: {measured.failure} | | | | |")
            continue
        speeds = [1 / value for value in measured.seconds]
        tokens = statistics.median(reading["tokens"] for reading in measured.readings)
        faster = f"{measured.median / ours:.2f}" if ours is not None and name != OURS else ""
        lines.append(
            f"| {name} | {1 / measured.median:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | {len(speeds)} "
            f"| {tokens:.0f} | {1e3 * _first_token(measured):.1f} | {faster} |"
        )
    return lines


def json_line(found: dict[str, Measured]) -> dict[str, Any]:
    """The object that --json prints; null for anything that was not measured."""
    from benchmarks.tellers import NO_CACHE, OURS, THEIRS

    ours = found[OURS].median
    ratios = {
        name: None if ours is None or median is None else round(median / ours, 3)
        for name in (THEIRS, NO_CACHE)
        for median in (found[name].median,)
    }
    return {
        "tokens_per_s": None if ours is None else round(1 / ours, 1),
        "ratio_transformers": ratios[THEIRS],
        "ratio_no_cache": ratios[NO_CACHE],
        "first_token_ms": {
            name: None if measured.median is None else round(1e3 * _first_token(measured), 2)
            for name, measured in found.items()
        },
        "n": {name: len(measured.readings) for name, measured in found.items()},
        "versions": hardware_line(),
    }


def _first_token(measured: Measured) -> float:
    """Median seconds to the first token."""
    return float(statistics.median(reading["first_token"] for reading in measured.readings))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to use; default random")
    parser.add_argument("--stories", type=int, default=10, metavar="N", help="stories per contender (10)")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="maximum tokens per story (200)")
    parser.add_argument("--minutes", type=positive_number, default=4.0, metavar="N", help="approximate time limit (4)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
    flags = parser.parse(argv)
    for name in ("stories", "tokens"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name} is {getattr(flags, name)}; expected 1 or more")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors(), tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        from benchmarks.workload import put_random_weights
        from storyladder.runtime.checkpoint import read_checkpoint
        from storyladder.telling.teller import model_config

        checkpoint = flags.checkpoint or Path(folder) / "random.pt"
        if flags.checkpoint is None:
            put_random_weights(ladder, checkpoint)
        model = model_config(read_checkpoint(checkpoint), checkpoint)
        room = model.context_length - 1 - len(_PROMPT)  # the peer cannot exceed its context; a token is 1+ letters
        tokens = min(flags.tokens, max(room, 1))
        found = measure(
            ladder,
            checkpoint,
            device=flags.device,
            stories=flags.stories,
            tokens=tokens,
            seconds=60 * flags.minutes,
        )
        typed = " ".join(sys.argv[1:] if argv is None else argv)
        shape = f"{model.n_params:,} parameters, {'random weights' if flags.checkpoint is None else checkpoint.name}"
        task = f"at most {tokens} tokens after {_PROMPT!r}, temperature {ladder.generate.temperature:g}"
        lines = [hardware_line() + ".", "", f"    python benchmarks/generation.py {typed}".rstrip(), ""]
        lines += [f"{shape}; {task}, top-k {ladder.generate.top_k}.", "", *found["lines"]]
        print("\n".join(lines))
        if not flags.no_results:
            write_section("Generation", lines)
        if flags.json:
            print(json.dumps(found["json"]))


if __name__ == "__main__":
    main()
