"""Tell a story with a trained model.

    python generate.py --prompt "Once upon a time"
    python generate.py --prompt "The dragon" --num-samples 3 --temperature 0.7 --seed 1
    python generate.py --checkpoint checkpoints/tinystories_28M_final.pt

Uses the newest result of the highest stage that has one, and prints which.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
from pathlib import Path

if __name__ == "__main__":  # python -P, or PYTHONSAFEPATH=1, leaves this folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from storyladder.command_line import Parser, as_typed_for, load_ladder
from storyladder.runtime.errors import UserError, report, user_errors
from storyladder.settings import GenerateConfig, check_part


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags of this command."""
    parser = Parser(__doc__, "generate.py")
    parser.add_argument("--prompt", default="Once upon a time", metavar="TEXT", help="how the story begins")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="use this checkpoint")
    for field in dataclasses.fields(GenerateConfig):
        kind, metavar = (float, "X") if field.type == "float" else (int, "N")
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, metavar=metavar, help=field.metadata["flag"])
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed tells the same story")
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    return parser.parse(argv)


def settings_of(flags: argparse.Namespace, defaults: GenerateConfig) -> GenerateConfig:
    """The settings of config.py, overridden by the flags and checked."""
    names = [field.name for field in dataclasses.fields(GenerateConfig)]
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    return check_part("flag", dataclasses.replace(defaults, **given))


def main(argv: list[str] | None = None) -> None:
    """Tell stories."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        settings = settings_of(flags, ladder.generate)
        seed = flags.seed if flags.seed is not None else secrets.randbelow(2**31)
        if not 0 <= seed < 2**63 - settings.num_samples:
            raise UserError(f"--seed is {seed}; expected 0 to 2**63")
        import torch  # takes seconds, which --help should not wait for

        from model import GPT
        from storyladder.corpus.tokenizer import tokenizer_named
        from storyladder.runtime.machine import most_threads, pick_device
        from storyladder.runtime.signals import stop_on_signals
        from storyladder.telling.prompt import checked_prompt, notes_on
        from storyladder.telling.story import tell
        from storyladder.telling.teller import load_teller

        prompt = checked_prompt(flags.prompt)
        tokenizer = tokenizer_named(ladder.tokenizer)
        device = pick_device(flags.device)
        torch.set_num_threads(most_threads())
        with as_typed_for(ladder):
            teller = load_teller(ladder, flags.checkpoint, GPT, device)
        report(f"{teller.description}, seed {seed}")
        for note in [*teller.notes, *notes_on(prompt, tokenizer, teller.seen_V)]:
            report(note)
        with stop_on_signals() as stop:
            for number in range(settings.num_samples):
                if number:
                    print("\n---\n")
                print(prompt, end="", flush=True)
                for piece in tell(
                    teller.model,
                    tokenizer,
                    prompt,
                    settings=settings,
                    seed=seed + number,
                    device=device,
                    check_stop=stop.check,
                ):
                    print(piece, end="", flush=True)
                print()


if __name__ == "__main__":
    main()
