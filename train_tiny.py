"""Stage 1 of 3: TinyStories, from random weights.

    python train_tiny.py                 train, or resume where training was interrupted
    python train_tiny.py --plan          print device, memory and time needed, then exit
    python train_tiny.py --minutes 45    fit the schedule into 45 minutes
    python train_tiny.py --fresh         start over; the old result is kept under another name

Reads   data/train.bin, data/val.bin             (python prepare_data.py)
Writes  checkpoints/tinystories_28M_final.pt, the best weights; runs/tiny.jsonl, the log
Stop    Ctrl-C saves and exits; run the same command again to resume exactly there
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # python -P, or PYTHONSAFEPATH=1, leaves this folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from storyladder.command_line import stage_run
from storyladder.runtime.errors import user_errors


def main(argv: list[str] | None = None) -> None:
    """Train this stage."""
    with user_errors():
        run = stage_run("tiny", __doc__, argv, __file__)
        from model import GPT  # importing torch takes seconds; --help must not wait for it
        from storyladder.stage.loop import train_stage

        train_stage(run, GPT)


if __name__ == "__main__":
    main()
