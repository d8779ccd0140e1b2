"""Tell a story with what the ladder has learned.

    python generate.py --prompt "Once upon a time"
    python generate.py --prompt "The dragon" --num-samples 3 --temperature 0.7 --seed 1
    python generate.py --checkpoint checkpoints/tinystories_28M_final.pt

Uses the newest result of the highest stage there is, and says which.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import sys
import unicodedata
from pathlib import Path

from storyladder.command_line import Parser, load_ladder
from storyladder.runtime.errors import UserError, user_errors
from storyladder.settings import GenerateConfig, check_part

MAX_PROMPT_BYTES = 100_000


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--prompt", default="Once upon a time", metavar="TEXT", help="how the story begins")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="tell with this file")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest word")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens")
    parser.add_argument("--num-samples", type=int, metavar="N", help="how many stories")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest story")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed tells the same story")
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    return parser.parse(argv)


def settings_of(flags: argparse.Namespace, defaults: GenerateConfig) -> GenerateConfig:
    """config.py's settings with what the flags change, checked."""
    names = [field.name for field in dataclasses.fields(GenerateConfig)]
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    return check_part("flag", dataclasses.replace(defaults, **given))


def checked_prompt(text: str) -> str:
    """The prompt, or a UserError for what no story can begin with."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid text at character {error.start}; type it in UTF-8") from None
    if size > MAX_PROMPT_BYTES:
        raise UserError(f"the prompt has {size:,} bytes; at most {MAX_PROMPT_BYTES:,} are taken, so shorten it")
    strange = next((char for char in text if unicodedata.category(char) == "Cc" and char not in "\n\t"), None)
    if strange is not None:
        raise UserError(f"the prompt holds the control character {strange!r}; take it out")
    return text


def main(argv: list[str] | None = None) -> None:
    """Tell stories."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        settings = settings_of(flags, ladder.generate)
        prompt = checked_prompt(flags.prompt)
        seed = flags.seed if flags.seed is not None else secrets.randbelow(2**31)
        if not 0 <= seed < 2**63 - settings.num_samples:
            raise UserError(f"--seed is {seed}; expected 0 to 2**63")
        import torch  # which takes seconds; --help must not wait for it

        from model import GPT
        from storyladder.corpus.tokenizer import gpt2_tokenizer
        from storyladder.runtime.machine import most_threads, pick_device
        from storyladder.runtime.signals import stop_on_signals
        from storyladder.telling.story import tell
        from storyladder.telling.teller import load_teller

        sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        device = pick_device(flags.device)
        torch.set_num_threads(most_threads())
        teller = load_teller(ladder, flags.checkpoint, GPT, device)
        print(f"{teller.words}, seed {seed}", file=sys.stderr)
        with stop_on_signals() as stop:
            for number in range(settings.num_samples):
                if number:
                    print("\n---\n")
                print(prompt, end="", flush=True)
                for piece in tell(
                    teller.model,
                    gpt2_tokenizer(),
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
