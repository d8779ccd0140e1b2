"""Stage 3 of 3: Simple Stories, from the weights of Children Stories. Ends when the validation loss stops falling.

    python train_simp.py                 train, or continue where it was interrupted
    python train_simp.py --plan          device, memory and time needed; starts nothing
    python train_simp.py --minutes 45    fit the schedule to the time there is
    python train_simp.py --fresh         start over; the old result is kept aside

Reads   data/train_simp.bin, data/val_simp.bin   (python prepare_data.py)
        checkpoints/children_stories_fin.pt      (python train_children.py)
Writes  checkpoints/simple_stories_ckpt.pt, the best weights; runs/simple.jsonl, all measurements
Stop    Ctrl-C saves and leaves; the same command goes on exactly there
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
        run = stage_run("simple", __doc__, argv, __file__)
        from model import GPT  # importing torch takes seconds; --help must not wait for it
        from storyladder.stage.loop import train_stage

        train_stage(run, GPT)


if __name__ == "__main__":
    main()
