"""Speed of evaluate.py's scoring, against a plain loop over transformers' GPT-2 in fp32 and in bf16.

    python benchmarks/evaluation.py                        5 MB of the training text, random weights
    python benchmarks/evaluation.py --checkpoint FILE      with the weights of a result
    python benchmarks/evaluation.py --json                 with one JSON object as the last line

The contenders take turns on the same parts of the text, with the same weights. The plain loop scores disjoint windows
by eights, computes all logits and calls F.cross_entropy. Losses must agree to 1e-4 in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from benchmarks.turns import Measured, race
from storyladder.command_line import PRECISIONS, Parser, load_ladder, positive_number
from storyladder.runtime.errors import report, user_errors
from storyladder.settings import Ladder

_PART_TOKENS = 8_192  # of a turn
_WARMUPS = 1
_SAME_LOSS = 1e-4  # nats per token


def put_parts(ladder: Ladder, folder: Path, data: Path | None, megabytes: float) -> tuple[str, tuple[Path, ...]]:
    """Cut the first megabytes of the text into token files of one turn each; returns a description and their paths."""
    from benchmarks.workload import put_text
    from storyladder.corpus.corpora import token_files
    from storyladder.corpus.token_file import TokenWriter, open_token_file
    from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    description = put_text(ladder, data)
    train, _ = token_files(ladder, ladder.stages[0])
    ids = open_token_file(train, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size).ids
    parts: list[Path] = []
    left = megabytes * 1e6
    for start in range(0, len(ids), _PART_TOKENS):
        part = ids[start : start + _PART_TOKENS + 1]
        if left <= 0 or len(part) < 2:
            break
        size = int(tokenizer.token_bytes_V[part].sum())
        with TokenWriter(folder / f"part{len(parts):04}.bin", tokenizer.fingerprint) as writer:
            writer.add(part, stories=int((part == EOT).sum()), text_bytes=size)
            writer.finish(sources=[train.name], cleaning={})
        left -= size
        parts.append(writer.path)
    return f"{megabytes - left / 1e6:.1f} MB of {description}", tuple(parts)


def put_weights(ladder: Ladder, path: Path) -> None:
    """Random weights as a trained stage leaves them: the tokens that its text lacks have equal rows."""
    import torch

    from model import GPT
    from storyladder.corpus.corpora import token_files
    from storyladder.corpus.token_file import open_token_file
    from storyladder.corpus.tokenizer import gpt2_tokenizer
    from storyladder.learning.network import EMBEDDING
    from storyladder.learning.vocabulary import start_rows_equal
    from storyladder.results import plain_settings
    from storyladder.runtime.checkpoint import save_checkpoint

    stage, tokenizer = ladder.stages[0], gpt2_tokenizer()
    train = open_token_file(
        token_files(ladder, stage)[0], tokenizer=tokenizer.fingerprint, vocab_size=ladder.model.vocab_size
    )
    seen_V = torch.from_numpy(train.seen(ladder.model.vocab_size))
    torch.manual_seed(stage.seed)
    weights = GPT(ladder.model).state_dict()
    start_rows_equal(weights[EMBEDDING], seen_V)
    payload = {"stage": stage.name, "step": 0, "val_loss": 0.0, "settings": plain_settings(ladder, stage, [])}
    seen = {"seen_tokens": seen_V.to(torch.uint8), "model": weights}
    save_checkpoint(path, {**payload, **seen}, keep_previous=False)


def table(found: dict[str, Measured]) -> list[str]:
    """The measurements as a Markdown table."""
    from benchmarks.scorers import OURS

    lines = ["| contender | tokens/s (min to max) | n | loss | peak GB | Storyladder, speedup |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    ours = found[OURS].median
    for name, measured in found.items():
        if measured.median is None:
            lines.append(f"| {name} | not measured: {measured.failure} | | | | |")
            continue
        speeds = [1 / value for value in measured.seconds]
        faster = f"{measured.median / ours:.2f}" if ours is not None and name != OURS else ""
        peak = measured.facts.get("peak_rss")
        lines.append(
            f"| {name} | {1 / measured.median:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | {len(speeds)} "
            f"| {statistics.fmean(r['loss'] for r in measured.readings):.5f} "
            f"| {'' if peak is None else f'{peak / 1e9:.2f}'} | {faster} |"
        )
    return lines


def json_line(found: dict[str, Measured]) -> dict[str, Any]:
    """The object that --json prints; null for anything that was not measured."""
    from benchmarks.scorers import OURS, THEIRS

    medians = {name: measured.median for name, measured in found.items()}
    ours = medians[OURS]
    theirs = [seconds for name in THEIRS if (seconds := medians[name]) is not None]
    return {
        "tokens_per_s": {name: None if seconds is None else round(1 / seconds, 1) for name, seconds in medians.items()},
        "ratio_transformers": round(min(theirs) / ours, 3) if ours is not None and theirs else None,
        "largest_difference": largest_difference(found),
        "n": {name: len(measured.readings) for name, measured in found.items()},
        "versions": hardware_line(),
    }


def largest_difference(found: dict[str, Measured]) -> float | None:
    """Of the losses of ours and of transformers in fp32 on the same part, in nats per token."""
    from benchmarks.scorers import OURS, THEIRS

    theirs = {reading["part"]: reading["loss"] for reading in found[THEIRS[0]].readings}
    both = [(reading["loss"], theirs[reading["part"]]) for reading in found[OURS].readings if reading["part"] in theirs]
    return max((abs(mine - other) for mine, other in both), default=None)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of Storyladder (fp32)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to use; default random")
    parser.add_argument("--data", type=Path, metavar="FILE", help="a token file; default data/train.bin")
    parser.add_argument("--mb", type=positive_number, default=5.0, metavar="N", help="megabytes of text (5)")
    parser.add_argument("--minutes", type=positive_number, default=30.0, metavar="N", help="time limit, roughly (30)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
    return parser.parse(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors(), tempfile.TemporaryDirectory(prefix="storyladder-") as name:
        flags = arguments(argv)
        from benchmarks.scorers import Scoring, entries_of
        from benchmarks.workload import moved_to

        folder = Path(name)
        ladder = moved_to(load_ladder(flags.config, flags.preset), folder)
        description, parts = put_parts(ladder, folder, flags.data, flags.mb)
        checkpoint = flags.checkpoint or folder / "random.pt"
        if flags.checkpoint is None:
            put_weights(ladder, checkpoint)
        scoring = Scoring(checkpoint=checkpoint, parts=parts, device=flags.device, precision=flags.precision)
        found = race(entries_of(scoring), warmups=_WARMUPS, turns=len(parts), seconds=60 * flags.minutes, report=report)
        typed = " ".join(sys.argv[1:] if argv is None else argv)
        difference = largest_difference(found)
        agree = (
            "not compared"
            if difference is None
            else f"{difference:.1e}" + ("" if difference < _SAME_LOSS else ": DIFFERENT")
        )
        lines = [hardware_line() + ".", "", f"    python benchmarks/evaluation.py {typed}".rstrip(), ""]
        lines += [
            f"{ladder.model.n_params:,} parameters, {'random weights' if flags.checkpoint is None else 'a result'}; "
            f"{description}; {len(parts)} parts; largest difference of the losses in fp32: {agree}.",
            "",
        ]
        lines += table(found)
        print("\n".join(lines))
        if not flags.no_results:
            write_section("Evaluation", lines)
        if flags.json:
            print(json.dumps(json_line(found)))


if __name__ == "__main__":
    main()
