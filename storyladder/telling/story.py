"""Telling a story: token by token with a KV cache, until the end-of-story token.

The text is yielded in pieces of whole characters: bytes are held back until a character is complete.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from storyladder.corpus.tokenizer import Tokenizer
from storyladder.learning.network import LanguageModel
from storyladder.settings import GenerateConfig
from storyladder.telling.sampling import next_token

Tokens = Iterator[int]


@torch.no_grad()
def story_tokens(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    *,
    settings: GenerateConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Tokens:
    """Ids after the prompt, at most max_new_tokens of them, without the end-of-story token.

    When the context is full, the cache is rebuilt from its last half: positions are learned, so it cannot slide.
    """
    context_length = model.config.context_length
    ids = [tokenizer.eot, *prompt]  # a story starts after the token that ended the previous one
    unread = ids[-context_length:]
    cache: list[list[torch.Tensor]] = [[] for _ in range(model.config.n_layer)]
    for _ in range(settings.max_new_tokens):
        cached = cache[0][0].size(2) if cache[0] else 0
        if cached + len(unread) > context_length:
            unread = ids[-(context_length // 2) :]
            cache = [[] for _ in range(model.config.n_layer)]
        idx_BT = torch.tensor([unread], device=device)
        hidden_C = model.hidden(idx_BT, cache)[0, -1]
        token = next_token(
            F.linear(hidden_C, model.head_weight[: tokenizer.vocab_size]),  # without the rows of a padded vocabulary
            settings,
            generator,
        )
        if token == tokenizer.eot:
            return
        ids.append(token)
        unread = [token]
        yield token


def text_pieces(tokens: Tokens, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of tokens as it becomes complete; invalid UTF-8 is replaced by the replacement character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if piece := decoder.decode(tokenizer.decode_bytes(token)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def tell(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    settings: GenerateConfig,
    seed: int,
    device: torch.device,
    check_stop: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """Tell one story: yields pieces of text, without the prompt. The model must be in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode(prompt)
    tokens = story_tokens(model, tokenizer, ids, settings=settings, generator=generator, device=device)
    for piece in text_pieces(tokens, tokenizer):
        check_stop()
        yield piece
