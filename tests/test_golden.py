"""Literal losses of a toy ladder: what a refactor must not move.

They may change only with a change that is meant to change what is learned (initialization, batches, dropout, optimizer,
schedule). Then run this file, look at every new number, replace them, and say in the commit why they moved. Otherwise
a failure here is a bug, however small the difference: they hold on every CPU, since all sums are taken by one thread in
fp32. `python tests/same_weights.py COMMIT COMMIT` compares the weights of two commits bit for bit on one machine.
"""

from __future__ import annotations

import pytest

from model import GPT
from storyladder.command_line import StageRun
from storyladder.results import StageFiles
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage

TRAIN_LOSSES = {
    "tiny": [10.8171425, 10.7828341, 10.5844698, 10.370903, 10.1476784, 10.0311556],
    "children": [10.1513557, 10.0211658, 9.8619385, 9.5803852, 9.2737465, 9.2391052],
    "simple": [9.398407, 9.1583652, 9.004859, 8.8691921, 8.4647779, 8.2725105],
}
VAL_LOSSES = {
    "tiny": [10.8070362, 10.3654916, 9.9667498],
    "children": [10.1665663, 9.5467062, 9.0364432],
    "simple": [9.4512232, 8.7979199, 8.2501736],
}


def test_the_toy_ladder_has_the_losses_it_always_had(toy_data: Ladder) -> None:
    for stage in toy_data.stages:
        train_stage(StageRun(ladder=toy_data, stage=stage, device="cpu", precision="fp32"), GPT)
        records = read_records(StageFiles.of(toy_data, stage).record)
        train = [record["train_loss"] for record in records if record["event"] == "train"]
        val = [record["val_loss"] for record in records if record["event"] == "evaluation"]
        assert train == pytest.approx(TRAIN_LOSSES[stage.name], abs=1e-5)
        assert val == pytest.approx(VAL_LOSSES[stage.name], abs=1e-5)
