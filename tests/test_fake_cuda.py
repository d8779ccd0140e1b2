"""The GPU's step on a machine without one: no wait for the device, no CPU tensor among its own, no broken graph."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from storyladder.settings import PROJECT

ASKS_FOR_THE_LOSS = "loss = self.group.sum(own_loss.item()) / self.group.world_size"
EXPECTED = {
    "bf16, compact": "ran on cuda:0",
    "bf16, whole": "ran on cuda:0",
    "bf16, compact, two micro-batches": "ran on cuda:0",
    "bf16, compact, Muon": "ran on cuda:0",
    "fp32, compact": "ran on cuda:0",
    "fp32, whole": "ran on cuda:0",
    "fp16, single": ASKS_FOR_THE_LOSS,
    "bf16, single": ASKS_FOR_THE_LOSS,
    "chunks": "[4096, 4096]",
    "compiled": "2 graphs",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What tests/fake_cuda_program.py found."""
    program = PROJECT / "tests" / "fake_cuda_program.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or torch.backends.cuda.is_built(), reason="needs torch's build for CPUs on Linux"
)
@pytest.mark.parametrize("case", EXPECTED)
def test_a_step_on_a_gpu_waits_for_nothing_before_its_losses_are_asked_for(answers: dict[str, str], case: str) -> None:
    assert answers[case] == EXPECTED[case]
    assert answers.keys() == EXPECTED.keys()
