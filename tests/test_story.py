"""Telling: equal to the slow way without a cache, beyond the context, to the end of the story, in whole characters."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import GPT
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.settings import GenerateConfig, ModelConfig
from storyladder.telling.sampling import next_token
from storyladder.telling.story import story_tokens, tell, text_pieces

CPU = torch.device("cpu")
GREEDY = GenerateConfig(temperature=0.0, max_new_tokens=26)
SAMPLED = GenerateConfig(temperature=1.0, top_k=100, max_new_tokens=26)


@pytest.fixture
def storyteller(small_gpt: Callable[..., GPT]) -> GPT:
    """A random GPT with GPT-2's vocabulary and a context of 16, in float64: no near ties."""
    return small_gpt(vocab_size=50257, dtype=torch.float64).eval()


def tokens_of(model: GPT, prompt: list[int], settings: GenerateConfig, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return list(story_tokens(model, gpt2_tokenizer(), prompt, settings=settings, generator=generator, device=CPU))


@torch.no_grad()
def tokens_without_a_cache(model: GPT, prompt: list[int], settings: GenerateConfig, seed: int = 0) -> list[int]:
    """The oracle: for every token all tokens in sight are read again."""
    context, generator, told = model.config.context_length, torch.Generator().manual_seed(seed), []
    sight = [EOT, *prompt][-context:]
    while len(told) < settings.max_new_tokens:
        if len(sight) > context:
            sight = sight[-(context // 2) :]
        scores_V = model(torch.tensor([sight]))[0, -1]
        token = next_token(scores_V, settings, generator)
        if token == EOT:
            break
        told.append(token)
        sight.append(token)
    return told


@pytest.mark.parametrize("length", [0, 1, 14, 15, 16, 40])
@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_telling_with_a_cache_tells_what_telling_without_tells(
    storyteller: GPT, length: int, settings: GenerateConfig
) -> None:
    prompt = torch.randint(50257, (length,), generator=torch.Generator().manual_seed(3)).tolist()
    told = tokens_of(storyteller, prompt, settings)
    assert len(told) == 26
    assert told == tokens_without_a_cache(storyteller, prompt, settings)


def test_an_odd_and_a_smallest_context_go_on_too(small_gpt: Callable[..., GPT]) -> None:
    for context_length in (2, 3, 5):
        model = small_gpt(vocab_size=50257, context_length=context_length, dtype=torch.float64).eval()
        assert tokens_of(model, [5, 6, 7], SAMPLED) == tokens_without_a_cache(model, [5, 6, 7], SAMPLED)


def test_a_seed_repeats_the_story_and_another_seed_tells_another(storyteller: GPT) -> None:
    assert tokens_of(storyteller, [1, 2], SAMPLED, seed=5) == tokens_of(storyteller, [1, 2], SAMPLED, seed=5)
    assert tokens_of(storyteller, [1, 2], SAMPLED, seed=5) != tokens_of(storyteller, [1, 2], SAMPLED, seed=6)


def test_rows_of_a_padded_vocabulary_are_never_told(small_gpt: Callable[..., GPT]) -> None:
    model = small_gpt(vocab_size=50304).eval()
    with torch.no_grad():
        model.transformer["ln_f"].bias.fill_(1.0)
        model.head_weight[50257:] = 100.0
    for settings in (GREEDY, SAMPLED):
        assert max(tokens_of(model, [], settings)) < 50257


class Reciter:
    """A network that recites given tokens, whatever it reads, and then the end of the story."""

    def __init__(self, tokens: list[int], context_length: int = 100) -> None:
        self.config = ModelConfig(n_layer=1, n_head=1, n_embd=len(tokens) + 1, context_length=context_length)
        self.head_weight = torch.zeros(50257, len(tokens) + 1)
        self.head_weight[torch.tensor([*tokens, EOT]), torch.arange(len(tokens) + 1)] = 1.0
        self.calls: list[list[int]] = []

    def hidden(self, idx_BT: Tensor, cache: list[list[Tensor]]) -> Tensor:
        self.calls.append(idx_BT[0].tolist())
        read = torch.cat([*cache[0], idx_BT[:, None, :, None].float()], dim=2)
        assert read.size(2) <= self.config.context_length
        cache[0][:] = [read]
        place = F.one_hot(torch.tensor(len(self.calls) - 1), self.config.n_embd).float()
        return place.expand(1, idx_BT.size(1), -1)


def test_a_story_ends_at_its_mark_which_is_not_told() -> None:
    reciter = Reciter([11, 22, 33])
    assert tokens_of(reciter, [1, 2], GREEDY) == [11, 22, 33]
    assert reciter.calls == [[EOT, 1, 2], [11], [22], [33]]


def test_an_empty_story_is_one() -> None:
    assert tokens_of(Reciter([]), [1], GREEDY) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_no_more_tokens_are_told_than_asked_for(limit: int) -> None:
    settings = GenerateConfig(temperature=0.0, max_new_tokens=limit)
    reciter = Reciter([11, 22, 33])
    assert tokens_of(reciter, [], settings) == [11, 22, 33][:limit]
    assert len(reciter.calls) == limit


def test_at_the_end_of_the_context_its_last_half_is_read_again() -> None:
    reciter = Reciter(list(range(100, 110)), context_length=6)
    assert tokens_of(reciter, [1, 2, 3], GREEDY) == list(range(100, 110))
    first, second = [[EOT, 1, 2, 3], [100], [101]], [[100, 101, 102], [103], [104], [105]]
    assert reciter.calls == [*first, *second, [104, 105, 106], [107], [108], [109]]


def test_of_a_long_prompt_the_end_is_read() -> None:
    reciter = Reciter([7], context_length=4)
    tokens_of(reciter, list(range(20)), GREEDY)
    assert reciter.calls[0] == [16, 17, 18, 19]


TEXT = "Zo\u00eb\u2019s \U0001f98a met a \U0001f409\U0001f469\u200d\U0001f680 \u2013 \u201ch\u00e9\u201d! \u65e5\u672c"


def test_text_comes_in_whole_characters() -> None:
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode(TEXT)
    assert len(tokenizer.encode("\N{FOX FACE}")) > 1  # its tokens are parts of a character
    pieces = list(text_pieces(iter(ids), tokenizer))
    assert "".join(pieces) == TEXT
    assert all(pieces)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert len(pieces) > len(TEXT.split())


def test_a_piece_is_there_as_soon_as_its_last_byte_is() -> None:
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode("a\N{FOX FACE}b")
    given: list[int] = []

    def giving() -> itertools.chain[int]:
        for token in ids:
            given.append(token)
            yield token

    when = {piece: len(given) for piece in text_pieces(giving(), tokenizer)}
    assert when == {"a": 1, "\N{FOX FACE}": len(ids) - 1, "b": len(ids)}


def test_a_story_cut_within_a_character_ends_with_the_replacement_character() -> None:
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode("a\N{FOX FACE}")[:-1]
    assert list(text_pieces(iter(ids), tokenizer)) == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_no_token_whatsoever_makes_the_text_fail() -> None:
    tokenizer = gpt2_tokenizer()
    for token in range(50257):
        told = "".join(text_pieces(iter([token]), tokenizer))
        assert told or token == EOT
    backwards = "".join(text_pieces(iter(range(50256, -1, -1)), tokenizer))
    assert len(backwards.encode("utf-8")) > 300_000


def test_a_tale_is_the_text_after_the_prompt() -> None:
    tokenizer = gpt2_tokenizer()
    reciter = Reciter(tokenizer.encode(" there was a \N{FOX FACE}."))
    pieces = list(tell(reciter, tokenizer, "Once", settings=GREEDY, seed=0, device=CPU))
    assert "".join(pieces) == " there was a \N{FOX FACE}."
    assert reciter.calls[0] == [EOT, *tokenizer.encode("Once")]


def test_a_marker_typed_into_the_prompt_is_ordinary_text() -> None:
    tokenizer = gpt2_tokenizer()
    reciter = Reciter([])
    list(tell(reciter, tokenizer, "<|endoftext|>", settings=GREEDY, seed=0, device=CPU))
    assert reciter.calls[0].count(EOT) == 1


def test_the_seed_of_a_tale_decides_it(storyteller: GPT) -> None:
    def tale(seed: int) -> str:
        return "".join(tell(storyteller, gpt2_tokenizer(), "Hi", settings=SAMPLED, seed=seed, device=CPU))

    assert tale(3) == tale(3) != tale(4)


def test_a_signal_ends_a_tale_between_two_pieces(storyteller: GPT) -> None:
    calls = itertools.count()

    def check_stop() -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    told = []
    with pytest.raises(KeyboardInterrupt):
        for piece in tell(
            storyteller, gpt2_tokenizer(), "Hi", settings=SAMPLED, seed=0, device=CPU, check_stop=check_stop
        ):
            told.append(piece)
    assert len(told) == 3
