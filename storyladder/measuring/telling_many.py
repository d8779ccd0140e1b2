"""Telling many stories at once: each exactly as `storyladder.telling.story` tells it alone, with the same seed.

All stories start at position 0, and a story whose prompt is longer reads it while the others are being told already;
so every story has the same length at any time, and one cache serves all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from storyladder.corpus.tokenizer import Tokenizer
from storyladder.learning.network import LanguageModel
from storyladder.settings import GenerateConfig
from storyladder.telling.sampling import next_token


@dataclasses.dataclass
class Told:
    """A story while it is told."""

    ids: list[int]  # EOT, the prompt, what was told so far
    prompt_length: int  # with EOT
    generator: torch.Generator
    ended: bool = False  # by the end-of-story token

    @property
    def rest(self) -> list[int]:
        """The tokens after the prompt."""
        return self.ids[self.prompt_length :]


@torch.no_grad()
def tell_many(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    *,
    settings: GenerateConfig,
    seeds: Sequence[int],
    device: torch.device,
    show: Callable[[int, float], None] = lambda finished, read: None,
) -> list[Told]:
    """Continue each prompt with its own seed. A prompt and its EOT must fit in the context; the model in eval mode.

    Before each forward `show` gets the number of finished stories, and the part of the longest possible story that has
    been read, from 0 to 1.
    """
    context_length = model.config.context_length
    stories = [
        Told([tokenizer.eot, *prompt], 1 + len(prompt), torch.Generator().manual_seed(seed))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert all(story.prompt_length <= context_length for story in stories)
    longest = settings.max_new_tokens + max((story.prompt_length for story in stories), default=0)
    live, first, read = list(stories), 0, 0  # the cache holds tokens first to read of every live story
    cache: list[list[torch.Tensor]] = [[] for _ in range(model.config.n_layer)]
    while live:
        show(len(stories) - len(live), read / longest)
        end = max(read + 1, min(story.prompt_length for story in live)) if read == 0 else read + 1
        if end - first > context_length:  # as in story_tokens: the last half is read again
            first = read = end - context_length // 2
            cache = [[] for _ in range(model.config.n_layer)]
        idx_BT = torch.tensor([story.ids[read:end] for story in live], device=device)
        hidden_BC = model.hidden(idx_BT, cache)[:, -1]
        read = end
        scores_BV = F.linear(hidden_BC, model.head_weight[: tokenizer.vocab_size])
        going = [
            _tell_next(story, row, read, tokenizer.eot, settings) for story, row in zip(live, scores_BV, strict=True)
        ]
        if not all(going):
            kept = torch.tensor([place for place, goes in enumerate(going) if goes], dtype=torch.long, device=device)
            live = [story for story, goes in zip(live, going, strict=True) if goes]
            cache = [[part.index_select(0, kept) for part in layer] for layer in cache]
    return stories


def _tell_next(story: Told, scores_V: torch.Tensor, read: int, eot: int, settings: GenerateConfig) -> bool:
    """Append the next token unless the prompt is not read to its end yet; returns whether the story continues."""
    if read < story.prompt_length:
        return True
    token = next_token(scores_V, settings, story.generator)
    if token == eot:
        story.ended = True
        return False
    story.ids.append(token)
    return len(story.ids) - story.prompt_length < settings.max_new_tokens


@torch.no_grad()
def forced_choices(
    model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], rest: list[int], device: torch.device
) -> list[int]:
    """The likeliest token at each place of `rest`, with all real tokens before it in sight, as far as the context."""
    ids = [tokenizer.eot, *prompt, *rest][: model.config.context_length]
    hidden_TC = model.hidden(torch.tensor([ids], device=device))[0, len(prompt) :]
    choices_T = F.linear(hidden_TC, model.head_weight[: tokenizer.vocab_size]).argmax(dim=-1)
    return [token for token in choices_T.tolist()[: len(rest)] if token != tokenizer.eot]
