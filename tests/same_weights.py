"""Do two commits train the same weights?  python tests/same_weights.py main~1 main

A toy ladder made from each commit's own demo preset climbs its three stages on the sample stories, in fp32 with one
thread. Token files, losses and the final weights (SHA-256) are compared; status 1 if one of them differs. A refactor
must not change them. tests/test_golden.py keeps the losses of a smaller ladder as literal numbers.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SCRIPTS = ("train_tiny.py", "train_children.py", "train_simp.py")
RESULTS = ("tinystories_28M_final.pt", "children_stories_fin.pt", "simple_stories_ckpt.pt")
CONFIG = """
import runpy
from dataclasses import replace
from pathlib import Path
from storyladder.settings import CorpusConfig, ModelConfig
demo = next(p for p in runpy.run_path(str(Path(__file__).with_name("config.py")))["PRESETS"] if p.name == "demo")
short = dict(max_steps=40, batch_size=8, micro_batch_size=4, warmup_steps=5, eval_interval=10, patience=None)
model = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=64, dropout=0.1)
stages = tuple(replace(stage, **short) for stage in demo.stages)
PRESETS = (replace(demo, name="toy", model=model, stages=stages, corpus=CorpusConfig(sample_stories=300)),)
"""
READ = """
import sys, torch
from storyladder.runtime.checkpoint import read_checkpoint
from pathlib import Path
import hashlib
for path in map(Path, sys.argv[1:]):
    loaded = read_checkpoint(path)
    weights = getattr(loaded, "payload", loaded)["model"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    print(path.name, digest.hexdigest())
"""


def climbed(commit: str, folder: Path) -> list[str]:
    """What the toy ladder of a commit comes to, a line for each measurement."""
    archive = subprocess.run(["git", "archive", commit], cwd=PROJECT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)
    (folder / "toy.py").write_text(CONFIG, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{commit}: {' '.join(words)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    chosen = ("--config", "toy.py", "--preset", "toy")
    python("prepare_data.py", *chosen, "--sample")
    precision = ("--precision", "fp32") if "--precision" in python(SCRIPTS[0], "--help") else ()
    lines = []
    for path in sorted((folder / "data" / "toy").glob("*.bin")):
        lines.append(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    for script in SCRIPTS:
        told = python(script, *chosen, "--device", "cpu", *precision)
        lines += re.findall(r"step [\d,]+: val_loss [\d.]+", told)
    results = [str(folder / "checkpoints" / "toy" / name) for name in RESULTS]
    (folder / "read.py").write_text(READ, encoding="utf-8")
    return lines + python("read.py", *results).splitlines()


def main(commits: list[str]) -> int:
    """Climb both and compare; status 1 if they differ."""
    if len(commits) != 2:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        ours, theirs = climbed(commits[0], Path(one)), climbed(commits[1], Path(two))
    for a, b in zip(ours, theirs, strict=True):
        print(f"  {a}" if a == b else f"{commits[0]}: {a}\n{commits[1]}: {b}   DIFFERS")
    return int(ours != theirs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
