"""Measure what was learned: loss, perplexity and bits per byte of every stage on every validation text.

    python evaluate.py                                     all stages on all corpora, what was forgotten, a heat map
    python evaluate.py --checkpoint FOLDER                 also a Hugging Face model (GPT-2 or Llama) in the same table
    python evaluate.py --text FILE                         all stages on a text of your own
    python evaluate.py --text FILE --checkpoint FILE --json        one checkpoint, the numbers as one line of JSON
    python evaluate.py --scorecard 200                     sample 200 stories per stage and measure them
    python evaluate.py --report                            one page with all results, and MODEL_CARD.md

Writes evaluation.json, evaluation.md and heat_map.png into the reports folder, except with --text. Lower is better.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # python -P, or PYTHONSAFEPATH=1, leaves this folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from storyladder.command_line import PRECISIONS, Parser, as_typed_for, load_ladder
from storyladder.runtime.errors import UserError, report, user_errors
from storyladder.settings import Ladder

if TYPE_CHECKING:
    import torch

    from storyladder.corpus.tokenizer import Tokenizer
    from storyladder.measuring.candidates import Candidate
    from storyladder.measuring.matrix import Matrix
    from storyladder.measuring.texts import Text

SCORECARD_STORIES = 200
SCORECARD_SEED = 1


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__, "evaluate.py")
    parser.add_argument("--text", type=Path, metavar="FILE", help="score this text instead of the validation files")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="FILE",
        help="a checkpoint, a stage's name or a Hugging Face folder; with --text only these are scored; repeatable",
    )
    parser.add_argument(
        "--protocol",
        choices=("windows", "sliding", "stories"),
        help="how the text is cut (docs/measuring.md); windows, or stories where a Hugging Face folder is scored",
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--scorecard",
        nargs="?",
        type=story_count,
        const=SCORECARD_STORIES,
        metavar="N",
        help="measure N sampled stories",
    )
    what.add_argument("--report", action="store_true", help="write reports/index.html and MODEL_CARD.md")
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="of the large matmuls; auto: fp32, as published"
    )
    flags = parser.parse(argv)
    alone = "--report" if flags.report else "--scorecard" if flags.scorecard is not None else None
    if alone and (flags.text or flags.checkpoint or flags.protocol or flags.json):
        parser.error(f"{alone} takes no --text, --checkpoint, --protocol or --json")
    return flags


def story_count(text: str) -> int:
    """Parse a number of stories."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number from 1 to 100,000")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the reports."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        with as_typed_for(ladder):
            if flags.report:
                from storyladder.measuring.report import write_report

                print("\n".join(map(str, write_report(ladder))))
            elif flags.scorecard is not None:
                print_scorecard(ladder, flags)
            else:
                typed = sys.argv[1:] if argv is None else argv
                evaluate(ladder, flags, ladder.command("evaluate.py", *_without_settings(typed)))


def _without_settings(typed: list[str]) -> list[str]:
    """The flags as they were typed, without --config and --preset, which Ladder.command adds."""
    kept: list[str] = []
    words = iter(typed)
    for word in words:
        if word in ("--config", "--preset"):
            next(words, None)
        elif not word.startswith(("--config=", "--preset=")):
            kept.append(word)
    return kept


def print_scorecard(ladder: Ladder, flags: argparse.Namespace) -> None:
    """Sample stories of every stage and print what is measured on them."""
    from model import GPT
    from storyladder.measuring.scorecard import write_scorecard
    from storyladder.runtime.machine import pick_device
    from storyladder.runtime.signals import stop_on_signals

    device = pick_device(flags.device)
    with stop_on_signals() as stop:
        lines = write_scorecard(
            ladder, GPT, n=flags.scorecard, seed=SCORECARD_SEED, device=device, check_stop=stop.check
        )
    print("\n".join(lines))


def evaluate(ladder: Ladder, flags: argparse.Namespace, command: str) -> None:
    """Score models on texts, print the table and write the reports."""
    import torch

    from storyladder.corpus.tokenizer import tokenizer_named
    from storyladder.measuring.evaluation_files import table, write_evaluation
    from storyladder.measuring.heat_map import draw_heat_map
    from storyladder.measuring.matrix import measure_matrix
    from storyladder.measuring.texts import text_of_file, validation_texts
    from storyladder.runtime.machine import keep_freed_memory, machine_line, most_threads, pick_device, pick_precision
    from storyladder.runtime.signals import stop_on_signals

    protocol, tokenizer = protocol_of(ladder, flags), tokenizer_named(ladder.tokenizer)
    device = pick_device(flags.device)
    asked = flags.precision if flags.precision != "auto" else "fp32"
    precision = pick_precision(device, asked, "published numbers are fp32" if asked == "fp32" else "it was asked for")
    torch.set_num_threads(most_threads())
    keep_freed_memory()
    own_folder = tempfile.TemporaryDirectory(prefix="storyladder-", ignore_cleanup_errors=True)  # Windows: still mapped
    with stop_on_signals() as stop, own_folder as folder:
        if flags.text is not None:
            texts = [text_of_file(flags.text, ladder.corpus, tokenizer, Path(folder), stop.check)]
        else:
            texts = validation_texts(ladder, tokenizer, report)
        matrix = measure_matrix(
            models(ladder, flags, texts[0], tokenizer, device),
            texts,
            protocol,
            stages=[stage.name for stage in ladder.stages],
            device=device,
            precision=precision,
            check_stop=stop.check,
        )
    print("\n".join(table(matrix.rows)))
    print_forgetting(matrix, ladder)
    if flags.text is None:
        reports = ladder.folder("reports")
        written = write_evaluation(reports, matrix, command=command, machine=machine_line(device, precision))
        written += [path for path in [draw_heat_map(reports / "heat_map.png", matrix.rows)] if path]
        print(f"written: {', '.join(map(str, written))}")
    if flags.json:
        print(json.dumps(matrix.rows[0] if len(matrix.rows) == 1 else matrix.record()))


def protocol_of(ladder: Ladder, flags: argparse.Namespace) -> str:
    """The protocol asked for, else the one that suits the models. UserError if it cannot compare them."""
    stages = [stage.name for stage in ladder.stages]
    foreign = any(Path(name).is_dir() for name in flags.checkpoint if name not in stages)
    if foreign and flags.protocol not in (None, "stories"):
        raise UserError(
            f"--protocol {flags.protocol} cannot compare models with different tokenizers; use --protocol stories"
        )
    return flags.protocol or ("stories" if foreign else "windows")


def models(
    ladder: Ladder, flags: argparse.Namespace, text: Text, tokenizer: Tokenizer, device: torch.device
) -> list[Candidate]:
    """The models to score, all loaded: what is wrong with one shows before an hour of scoring."""
    from model import GPT
    from storyladder.measuring.candidates import of_file, of_stage, stages_with_weights, untrained
    from storyladder.measuring.foreign import load_foreign

    stages = [] if flags.text is not None and flags.checkpoint else stages_with_weights(ladder)
    found = [untrained(ladder, GPT, tokenizer, device)] if stages else []
    for name in dict.fromkeys([*stages, *flags.checkpoint]):
        if name in [stage.name for stage in ladder.stages]:
            found.append(of_stage(ladder, name, GPT, tokenizer, device, report))
        elif Path(name).is_dir():
            found.append(load_foreign(Path(name), text.stories(), device))
        else:
            found.append(of_file(Path(name), GPT, tokenizer, device))
    for note in dict.fromkeys(note for candidate in found for note in candidate.notes):
        report(f"note: {note}")
    return found


def print_forgetting(matrix: Matrix, ladder: Ladder) -> None:
    """Print what later stages forgot, and warn where it is more than noise."""
    from storyladder.measuring.forgetting import LIMIT, advice

    for entry in matrix.forgetting:
        print(entry.sentence)
    for entry in matrix.forgetting:
        if entry.is_beyond_noise:
            how = advice(ladder, entry.stage, entry.corpus)
            report(f"warning: stage {entry.stage} is more than {LIMIT:.0%} worse on {entry.corpus}{how}")


if __name__ == "__main__":
    main()
