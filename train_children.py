"""Stage 2 of 3: Children Stories, from the weights of TinyStories. Ends when the validation loss stops falling.

    python train_children.py                 train, or resume where training was interrupted
    python train_children.py --plan          print device, memory and time needed, then exit
    python train_children.py --minutes 45    fit the schedule into 45 minutes
    python train_children.py --fresh         start over; the old result is kept under another name

Reads   data/train_ch.bin, data/val_ch.bin       (python prepare_data.py)
        checkpoints/tinystories_28M_final.pt     (python train_tiny.py)
Writes  checkpoints/children_stories_fin.pt, the best weights; runs/children.jsonl, the log
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
        run = stage_run("children", __doc__, argv, __file__)
        from model import GPT  # importing torch takes seconds; --help must not wait for it
        from storyladder.stage.loop import train_stage

        train_stage(run, GPT)


if __name__ == "__main__":
    main()
