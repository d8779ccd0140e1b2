"""How much a step takes, and the micro-batch that fits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from storyladder.learning.memory import fitting_micro_batch, predicted_memory, useful_threads
from storyladder.settings import ModelConfig, StageConfig

MODEL = ModelConfig()
STAGE = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="", batch_size=24)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def fitting(free_bytes: float | None, device: torch.device = CUDA, stage: StageConfig = STAGE, **model: int) -> int:
    free = None if free_bytes is None else int(free_bytes)
    return fitting_micro_batch(dataclasses.replace(MODEL, **model), stage, device, n_rows=50257, free_bytes=free)


def test_the_prediction_grows_with_everything_that_takes_memory() -> None:
    def predicted(n_rows: int = 10_000, micro_batch_size: int = 4, **model: int) -> float:
        config = dataclasses.replace(MODEL, **model)
        return predicted_memory(config, n_rows=n_rows, micro_batch_size=micro_batch_size, device_type="cpu")

    least = predicted()
    assert least > 16 * (MODEL.n_params - 40_257 * 336)
    larger = [predicted(n_rows=20_000), predicted(micro_batch_size=8), predicted(n_layer=9)]
    larger += [predicted(n_embd=672), predicted(context_length=512)]
    assert all(prediction > least for prediction in larger)


def test_without_a_limit_the_whole_batch_is_one_forward() -> None:
    assert fitting(None) == fitting(1e15) == 24


def test_less_memory_means_smaller_divisors_of_the_batch_that_fit() -> None:
    sizes = [fitting(free) for free in (100e9, 9e9, 7e9, 6e9, 5e9, 4e9, 3e9, 2e9, 1e9, 0)]
    assert sizes == sorted(sizes, reverse=True)
    assert {sizes[0], sizes[-1]} == {24, 1}
    assert len(set(sizes)) > 4
    assert all(24 % size == 0 for size in sizes)
    exactly = predicted_memory(MODEL, n_rows=50257, micro_batch_size=8, device_type="cuda") / 0.6
    assert (fitting(exactly + 2), fitting(exactly - 2)) == (8, 6)


def test_a_cpu_reads_at_most_2048_tokens_in_a_forward() -> None:
    assert fitting(None, CPU) == 8
    assert fitting(None, CPU, context_length=128) == 12
    assert fitting(None, CPU, context_length=4096) == 1


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_the_settings_say_goes(device: torch.device) -> None:
    assert fitting(0, device, dataclasses.replace(STAGE, micro_batch_size=12)) == 12


@pytest.mark.parametrize(
    ("sizes", "rows", "micro", "cores", "threads"),
    [
        ({"n_layer": 1, "n_embd": 32, "context_length": 32}, 1145, 8, 64, 1),
        ({"n_layer": 2, "n_embd": 64, "context_length": 64}, 1145, 4, 64, 2),
        ({"n_layer": 2, "n_embd": 128, "context_length": 256}, 1145, 4, 64, 7),
        ({"n_layer": 2, "n_embd": 128, "context_length": 256}, 1145, 4, 2, 2),
        ({}, 13_313, 8, 32, 32),
    ],
)
def test_small_models_get_few_threads(sizes: dict[str, int], rows: int, micro: int, cores: int, threads: int) -> None:
    """The first two are where a second thread began to pay when it was measured."""
    model = ModelConfig(**{"n_head": 2, **sizes})
    assert useful_threads(model, n_rows=rows, micro_batch_size=micro, cores=cores) == threads
