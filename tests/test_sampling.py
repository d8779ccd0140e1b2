"""Choosing the next token: greedy, top-k, frequencies, and temperatures at both ends."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from storyladder.settings import GenerateConfig
from storyladder.telling.sampling import next_token

SCORES = torch.tensor([0.5, 2.0, -1.0, 1.5, 0.0, -30.0])


def draws(n: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [next_token(SCORES, GenerateConfig(temperature=temperature, top_k=top_k), generator) for _ in range(n)]


def test_temperature_zero_takes_the_likeliest_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert next_token(SCORES, GenerateConfig(temperature=0, top_k=3), generator) == 1
    assert torch.equal(generator.get_state(), state)


def test_one_candidate_is_the_likeliest_at_any_temperature() -> None:
    assert set(draws(20, top_k=1, temperature=100.0)) == {1}


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-46, 1e-40, 1e-9])
def test_a_tiny_temperature_is_greedy_and_does_not_overflow(temperature: float) -> None:
    assert set(draws(20, temperature=temperature)) == {1}
    assert set(draws(20, temperature=temperature, top_k=2)) == {1}


def test_a_tiny_temperature_chooses_among_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    equals = torch.tensor([3.0, 3.0, -1.0])
    chosen = {next_token(equals, GenerateConfig(temperature=1e-300, top_k=None), generator) for _ in range(50)}
    assert chosen == {0, 1}


@pytest.mark.parametrize(
    ("temperature", "top_k", "allowed"),
    [
        (1.0, None, {0, 1, 2, 3, 4, 5}),
        (0.5, None, {0, 1, 2, 3, 4, 5}),
        (2.0, 3, {0, 1, 3}),
        (1.0, 99, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_frequencies_are_those_of_softmax(temperature: float, top_k: int | None, allowed: set[int]) -> None:
    n = 5_000
    counts = Counter(draws(n, temperature=temperature, top_k=top_k))
    weights = {token: math.exp(SCORES[token].item() / temperature) for token in allowed}
    assert set(counts) <= allowed
    for token, weight in weights.items():
        p = weight / sum(weights.values())
        # 5 sigma: a false alarm for one seed in 1.7 million, for each of the 21 tokens; the seed is fixed.
        assert abs(counts[token] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-3, token


def test_a_generator_repeats_the_choice_and_another_seed_makes_another() -> None:
    assert draws(50, seed=1) == draws(50, seed=1)
    assert draws(50, seed=1) != draws(50, seed=2)


def test_torchs_own_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    draws(3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_scores_of_any_format_will_do(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    assert next_token(SCORES.to(dtype), GenerateConfig(temperature=1e-6, top_k=None), generator) == 1
