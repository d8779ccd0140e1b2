"""Many stories at once are the stories one by one, beyond the context too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model import GPT
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.measuring.telling_many import forced_choices, tell_many
from storyladder.settings import GenerateConfig
from storyladder.telling.story import story_tokens

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [], list(range(100, 115)), [9], [5, 6, 7], [1, 2, 3, 4]]


@pytest.fixture
def storyteller(small_gpt: Callable[..., GPT]) -> GPT:
    """A random GPT with GPT-2's vocabulary and a context of 16, in float64: no near ties. Ends a story now and then."""
    model = small_gpt(vocab_size=50257, dtype=torch.float64).eval()
    with torch.no_grad():
        model.head_weight[EOT] *= 2.5
    return model


def alone(model: GPT, prompt: list[int], settings: GenerateConfig, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return list(story_tokens(model, gpt2_tokenizer(), prompt, settings=settings, generator=generator, device=CPU))


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("limit", [1, 8, 40])
def test_each_story_is_the_one_that_it_is_alone(storyteller: GPT, temperature: float, limit: int) -> None:
    settings = GenerateConfig(temperature=temperature, top_k=3, max_new_tokens=limit)
    told = tell_many(storyteller, gpt2_tokenizer(), PROMPTS, settings=settings, seeds=range(20, 26), device=CPU)
    for number, (story, prompt) in enumerate(zip(told, PROMPTS, strict=True)):
        expected = alone(storyteller, prompt, settings, 20 + number)
        assert story.rest == expected
        assert story.ended is (len(expected) < limit)


def test_some_of_these_stories_end_by_themselves_and_some_do_not(storyteller: GPT) -> None:
    settings = GenerateConfig(temperature=1.0, top_k=3, max_new_tokens=40)
    told = tell_many(storyteller, gpt2_tokenizer(), PROMPTS, settings=settings, seeds=range(20, 26), device=CPU)
    assert {story.ended for story in told} == {True, False}
    assert max(len(story.rest) for story in told) > 32  # the context was rebuilt at least twice


def test_progress_counts_finished_stories(storyteller: GPT) -> None:
    shown: list[tuple[int, float]] = []
    settings = GenerateConfig(temperature=1.0, top_k=3, max_new_tokens=40)
    tell_many(
        storyteller,
        gpt2_tokenizer(),
        PROMPTS,
        settings=settings,
        seeds=range(20, 26),
        device=CPU,
        show=lambda *how: shown.append(how),
    )
    assert shown == sorted(shown) and shown[0] == (0, 0.0)
    assert 0 < shown[-1][0] < 6 and 0.5 < shown[-1][1] < 1.0


@pytest.mark.parametrize("length", [1, 5, 30])
def test_forced_choices_are_greedy_steps_with_the_real_tokens_before(storyteller: GPT, length: int) -> None:
    rest = torch.randint(50256, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt = [5, 6, 7]
    within = rest[: 16 - len(prompt)]
    expected = []
    for place in range(len(within)):
        with torch.no_grad():
            scores_V = storyteller(torch.tensor([[EOT, *prompt, *within[:place]]]))[0, -1]
        expected.append(int(scores_V.argmax()))
    chosen = forced_choices(storyteller, gpt2_tokenizer(), prompt, rest, CPU)
    assert chosen == [token for token in expected if token != EOT]
