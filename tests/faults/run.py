"""All injections, the table, and RESULTS.md.

python tests/faults/run.py                       everything, about ten minutes on two cores
python tests/faults/run.py --case 9 --case 13    some cases
python tests/faults/run.py --words "best flipped"    some injections
python tests/faults/run.py --fast --json FILE    the representative ones of `make test`
python tests/faults/run.py --precision bf16      stages in another precision than the machine's own
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: forks of a process with threads hang
    sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]  # this one, tests, the project
    from playing import main

    main(__doc__)
