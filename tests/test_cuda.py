"""What only a real GPU can show: `make gpu` runs these there; elsewhere they are skipped.

Steps ahead equal single steps, replay equals capture, resume is exact on the device, checkpoints travel between CPU
and GPU, memory that really runs out, a signal in a run of graphs, evaluation and generation in three precisions.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import PROJECT, command
from stages import assert_equal, elsewhere, files_of, plain_state, with_stage

from model import GPT
from storyladder.command_line import StageRun
from storyladder.corpus.token_file import ValidationWindows
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.learning.device_steps import MODES, DeviceSteps, StepMode
from storyladder.learning.evaluation import evaluate
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.step import Stepper, StepResult
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.errors import Interrupted
from storyladder.runtime.machine import Precision
from storyladder.runtime.run_log import read_records
from storyladder.settings import GenerateConfig, Ladder, ModelConfig, StageConfig
from storyladder.stage.loop import train_stage
from storyladder.telling.story import story_tokens

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    # Warnings of the compiler and of torch's other versions are no failure of ours.
    pytest.mark.filterwarnings("default"),
]

GPU = torch.device("cuda:0")
MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=84, context_length=64, vocab_size=1000, dropout=0.0)  # heads of 42
STAGE = StageConfig(
    name="tiny", corpus="tiny", script="train_tiny.py", result_file="", batch_size=8, max_lr=1e-2, seed=7
)
IDS = np.random.default_rng(0).integers(0, 900, 5_000).astype(np.uint16)
LRS = [2**-9, 2**-8, 2**-9, 2**-9, 2**-10, 2**-10]
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Relative: sums in another order in fp32; 8 bits of mantissa, averaged over thousands of tokens, in the others.
NEAR = {"fp32": 1e-4, "bf16": 2**-7, "fp16": 2**-8}
BUSY = 90.0  # seconds for a script to compile its steps on a machine that does other things too


def precision_of(name: str, device: torch.device = GPU) -> Precision:
    return Precision(FORMATS[name], "a test wants it", device.type)


def built(device: torch.device = GPU, **changes: Any) -> GPT:
    torch.manual_seed(1)
    return GPT(replace(MODEL, **changes)).to(device).train()


def vocabulary(compact: bool, device: torch.device = GPU) -> CompactVocabulary:
    return CompactVocabulary(torch.arange(MODEL.vocab_size) < 900, compact=compact).to(device)


def starts() -> list[Any]:
    return list(np.random.default_rng(1).integers(0, len(IDS) - 65, (len(LRS), STAGE.batch_size)))


def stepper_of(model: GPT, **changes: Any) -> Stepper:
    asked: dict[str, Any] = {"micro_batch_size": 8, "precision": precision_of("fp32"), "vocabulary": vocabulary(False)}
    return Stepper(model, build_optimizer(model, STAGE), STAGE, **asked | changes)


def ahead(model: GPT, **changes: Any) -> DeviceSteps:
    return DeviceSteps(stepper_of(model, **changes), [IDS], 64, GPU)


def single_steps(model: GPT, **changes: Any) -> list[StepResult]:
    """The same updates by the plain step, one by one."""
    stepper, results = stepper_of(model, **changes), []
    for step, (places, lr) in enumerate(zip(starts(), LRS, strict=True)):
        windows = torch.from_numpy(IDS[places[:, None] + np.arange(65)].astype(np.int64)).to(GPU)
        batch = windows[:, :-1], windows[:, 1:]
        results.append(stepper.step(batch, step, lr))
    return results


def assert_near(found: list[StepResult], expected: list[StepResult], tolerance: float) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine.applied and other.applied
        assert mine.train_loss == pytest.approx(other.train_loss, rel=tolerance)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=10 * tolerance)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.description)
def test_steps_ahead_equal_single_steps(mode: StepMode, compact: bool) -> None:
    words = vocabulary(compact)
    model = built(vocab_size=words.n_rows)
    expected = single_steps(copy.deepcopy(model), vocabulary=words)
    steps = ahead(model, vocabulary=words)
    steps.speed_up(mode, starts()[0])
    assert_near(steps.take(0, starts()[:4], LRS[:4]) + steps.take(4, starts()[4:], LRS[4:]), expected, 1e-4)


@pytest.mark.parametrize("number_format", ["fp32", "bf16"])
def test_replaying_a_graph_draws_and_computes_what_the_step_outside_it_does(number_format: str) -> None:
    precision = precision_of(number_format)
    one, other = built(dropout=0.2), built(dropout=0.2)
    captured = ahead(one, precision=precision)
    captured.speed_up(StepMode(compiled=False, graph=True), starts()[0])
    found, expected = (steps.take(3, starts(), LRS) for steps in (captured, ahead(other, precision=precision)))
    assert_near(found, expected, NEAR[number_format] / 10)


@pytest.mark.parametrize("number_format", ["bf16", "fp16"])
def test_narrow_formats_train_as_fp32_does(number_format: str) -> None:
    model = built()
    expected = single_steps(copy.deepcopy(model))
    found = single_steps(model, precision=precision_of(number_format))
    applied = [(mine, other) for mine, other in zip(found, expected, strict=True) if mine.applied]
    assert len(applied) >= 4  # the scaler may find its scale first
    for mine, other in applied[:1]:
        assert mine.train_loss == pytest.approx(other.train_loss, rel=NEAR[number_format])


# --- whole stages -----------------------------------------------------------------------------------------------------


def stage_on(device: str, ladder: Ladder, **flags: Any) -> StageRun:
    return StageRun(ladder=ladder, stage=ladder.stage("tiny"), device=device, **flags)


def interrupting(at: int) -> Callable[[ModelConfig], GPT]:
    """Builds models that send this process SIGTERM when they are given weights to evaluate for the `at`-th time."""

    class Counted(GPT):
        evaluations = 0

        def eval(self) -> Any:
            Counted.evaluations += 1
            if Counted.evaluations == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().eval()

    return Counted


def losses(ladder: Ladder) -> list[tuple[str, int, float]]:
    records = read_records(files_of(ladder).record)
    return [
        (r["event"], r["step"], r.get("train_loss", r.get("val_loss")))
        for r in records
        if r["event"] in ("train", "evaluation")
    ]


@pytest.fixture
def gpu_ladder(toy_data: Ladder) -> Ladder:
    """Long enough for blocks of steps of many lengths, with dropout."""
    return with_stage(toy_data, max_steps=60, eval_interval=15, save_interval=25)


@pytest.mark.parametrize("long", [False, True], ids=["graph", "compiled"])
def test_interrupted_and_resumed_on_the_gpu_is_bit_for_bit_the_same(
    gpu_ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    from storyladder.stage import setup

    if long:
        monkeypatch.setattr(setup, "_STEPS_TO_COMPILE_FOR", 1)
    whole, parts = elsewhere(gpu_ladder, tmp_path, "whole"), elsewhere(gpu_ladder, tmp_path, "parts")
    train_stage(stage_on("cuda", whole), GPT)
    for evaluation in (2, 1):
        with pytest.raises(Interrupted):
            train_stage(stage_on("cuda", parts), interrupting(evaluation))
    train_stage(stage_on("cuda", parts), GPT)
    assert losses(parts) == losses(whole)
    results = [files_of(ladder).result for ladder in (whole, parts)]
    assert_equal(*(plain_state(path)["model"] for path in results))


@pytest.mark.parametrize("order", [("cpu", "cuda"), ("cuda", "cpu")], ids="-to-".join)
def test_a_checkpoint_continues_on_the_other_device(gpu_ladder: Ladder, tmp_path: Path, order: tuple[str, str]) -> None:
    ladder = replace(gpu_ladder, model=replace(gpu_ladder.model, dropout=0.0))  # whose draws are each device's own
    whole, parts = elsewhere(ladder, tmp_path, "whole"), elsewhere(ladder, tmp_path, "parts")
    train_stage(stage_on(order[0], whole), GPT)
    with pytest.raises(Interrupted):
        train_stage(stage_on(order[0], parts), interrupting(3))
    train_stage(stage_on(order[1], parts), GPT)
    for (event, step, loss), (_, _, other) in zip(losses(parts), losses(whole), strict=True):
        assert loss == pytest.approx(other, rel=NEAR["bf16"]), (event, step)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a gigabyte of the GPU, whatever it has; torch then really runs out."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5e9 / torch.cuda.get_device_properties(GPU).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_memory_that_really_runs_out_halves_the_micro_batch(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str], write_toy_tokens: Callable[..., Path]
) -> None:
    model = replace(toy_data.model, n_layer=4, n_embd=256, context_length=256)
    ladder = with_stage(
        replace(toy_data, model=model), batch_size=64, micro_batch_size=64, max_steps=4, eval_interval=4
    )
    write_toy_tokens(ladder.folder("data") / "train.bin", n_tokens=40_000)
    train_stage(stage_on("cuda", ladder), GPT)
    records = read_records(files_of(ladder).record)
    sizes = [record["micro_batch_size"] for record in records if record["event"] == "out of memory"]
    assert sizes and sizes[0] == 32 and len(losses(ladder)) >= 4, capsys.readouterr().out


def test_a_signal_in_a_run_of_graphs_saves_and_leaves_within_ten_seconds(gpu_ladder: Ladder, tmp_path: Path) -> None:
    config = tmp_path / "endless.py"
    config.write_text(
        "from dataclasses import replace\nfrom config import DEMO\nfrom storyladder.settings import Paths\n"
        "stages = tuple(replace(each, max_steps=10**6, eval_interval=10**5) for each in DEMO.stages)\n"
        f"PRESETS = (replace(DEMO, name='default', stages=stages, paths=Paths(root={str(tmp_path)!r})),)\n",
        encoding="utf-8",
    )
    called = command("train_tiny.py", "--config", config, "--device", "cuda")
    with subprocess.Popen(called, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "at a time on the GPU" in line:
                break
        time.sleep(5)
        tick = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said.append(process.stdout.read())
        process.wait(timeout=BUSY)
        seconds = time.monotonic() - tick
    words = "".join(said)
    assert "CUDA graph" in words and "saved at step" in words, words
    assert process.returncode == 128 + signal.SIGTERM and seconds < 10, (process.returncode, seconds)
    assert int(words.rpartition("saved at step ")[2].split(";")[0].replace(",", "")) > 200, words


# --- evaluation and generation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_format", FORMATS)
@pytest.mark.parametrize("compact", [False, True])
def test_evaluation_on_the_gpu_is_that_of_the_cpu(number_format: str, compact: bool) -> None:
    words = vocabulary(compact)
    model = built(vocab_size=words.n_rows)
    windows = ValidationWindows(
        IDS, context_length=64, limit=None, token_bytes_V=np.ones(MODEL.vocab_size, dtype=np.int64)
    )

    def measured(device: torch.device, name: str) -> float:
        return evaluate(
            model.to(device),
            windows,
            batch_size=8,
            device=device,
            precision=precision_of(name, device),
            vocabulary=words.to(device),
        ).val_loss

    found = measured(GPU, number_format)
    assert found == pytest.approx(measured(torch.device("cpu"), "fp32"), rel=NEAR[number_format])


def test_the_same_story_is_told_on_the_gpu() -> None:
    model = built(torch.device("cpu"), vocab_size=50_257).eval()
    settings = GenerateConfig(temperature=0.0, max_new_tokens=150)  # beyond the context, twice
    words = gpt2_tokenizer()
    prompt = words.encode("Once upon a time")

    def told(device: torch.device) -> list[int]:
        model.to(device)
        generator = torch.Generator().manual_seed(1)
        return list(story_tokens(model, words, prompt, settings=settings, generator=generator, device=device))

    assert told(GPU) == told(torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", *sys.argv[1:]]))
