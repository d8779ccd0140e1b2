"""The contenders of the generation benchmark, each in its own process: ours, transformers, and no KV cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.peers import gpt2_of, load_our_weights
from benchmarks.turns import Entry, Racer, Reading
from model import GPT
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.machine import peak_memory, pick_device
from storyladder.settings import GenerateConfig, Ladder
from storyladder.telling.sampling import next_token
from storyladder.telling.story import story_tokens
from storyladder.telling.teller import load_teller, model_config

OURS, THEIRS, NO_CACHE = "Storyladder", "transformers generate, KV cache", "no KV cache"
SAME_TOKENS = 32  # all contenders must generate the same ones with greedy decoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Telling:
    """What every contender generates: weights, prompt and sampling settings."""

    ladder: Ladder
    checkpoint: Path
    device: str
    prompt: str
    settings: GenerateConfig


def entries_of(telling: Telling) -> list[Entry]:
    """One entry per contender."""
    return [Entry(name, build_teller, (name, telling)) for name in (OURS, THEIRS, NO_CACHE)]


def build_teller(spec: tuple[str, Telling]) -> Racer:
    """Build the contender in the calling process."""
    name, telling = spec
    builds: dict[str, type[_Teller]] = {OURS: Cached, THEIRS: Transformers, NO_CACHE: NoCache}
    return builds[name](telling)


class _Teller:
    """A turn is one story; its first token is timed separately."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        self.device = pick_device(telling.device)
        self.model = load_teller(telling.ladder, telling.checkpoint, GPT, self.device).model
        self.prompt = gpt2_tokenizer().encode(telling.prompt)
        greedy = dataclasses.replace(telling.settings, temperature=0.0, max_new_tokens=SAME_TOKENS)
        self.facts: dict[str, Any] = {"greedy": list(self.tokens(greedy, seed=0))}

    def tokens(self, settings: GenerateConfig, *, seed: int) -> Iterator[int]:
        """The token ids of a story, without the prompt."""
        raise NotImplementedError

    def turn(self, number: int) -> Reading:
        """Generate one story; seconds per token, and to the first one."""
        tick = time.perf_counter()
        tokens = self.tokens(self._telling.settings, seed=number)
        count = 1 if next(tokens, None) is not None else 0
        first = time.perf_counter() - tick
        count += sum(1 for _ in tokens)
        seconds = time.perf_counter() - tick
        return {"seconds": seconds / max(1, count), "first_token": first, "tokens": count}

    def final_facts(self) -> dict[str, Any]:
        """Peak memory of the process."""
        return {"peak_rss": peak_memory(torch.device("cpu"))}


class Cached(_Teller):
    """Storyladder."""

    def tokens(self, settings: GenerateConfig, *, seed: int) -> Iterator[int]:
        """Generate with Storyladder's KV cache."""
        generator = torch.Generator().manual_seed(seed)
        return story_tokens(
            self.model, gpt2_tokenizer(), self.prompt, settings=settings, generator=generator, device=self.device
        )


class NoCache(_Teller):
    """As the Python code of llama2.c and nanoGPT does it: every token runs the whole context again."""

    def tokens(self, settings: GenerateConfig, *, seed: int) -> Iterator[int]:
        """Sample the same way, without a KV cache."""
        generator = torch.Generator().manual_seed(seed)
        ids = [EOT, *self.prompt]
        for _ in range(settings.max_new_tokens):
            with torch.no_grad():
                idx_BT = torch.tensor([ids[-self.model.config.context_length :]], device=self.device)
                scores_V = F.linear(self.model.hidden(idx_BT)[0, -1], self.model.head_weight)
            token = next_token(scores_V, settings, generator)
            if token == EOT:
                return
            ids.append(token)
            yield token


class Transformers(_Teller):
    """transformers' GPT-2 with the same weights: `generate` with its KV cache."""

    def __init__(self, telling: Telling) -> None:
        payload = read_checkpoint(telling.checkpoint)
        self._gpt2 = gpt2_of(model_config(payload, telling.checkpoint))
        load_our_weights(self._gpt2, payload["model"])
        self._gpt2.to(pick_device(telling.device)).eval()
        super().__init__(telling)

    def tokens(self, settings: GenerateConfig, *, seed: int) -> Iterator[int]:
        """Yield all tokens at the end: `generate` returns nothing before."""
        yield from self._generate(settings, seed, settings.max_new_tokens)

    def turn(self, number: int) -> Reading:
        """Generate one story, then one of a single token: seconds per token, and to the first one."""
        settings = self._telling.settings
        ticks = [time.perf_counter()]
        count = len(self._generate(settings, number, settings.max_new_tokens))
        ticks.append(time.perf_counter())
        self._generate(settings, number, 1)
        ticks.append(time.perf_counter())
        return {"seconds": (ticks[1] - ticks[0]) / max(1, count), "first_token": ticks[2] - ticks[1], "tokens": count}

    def _generate(self, settings: GenerateConfig, seed: int, max_new_tokens: int) -> list[int]:
        torch.manual_seed(seed)
        idx_BT = torch.tensor([[EOT, *self.prompt]], device=self.device)
        choice: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            choice = {"do_sample": True, "temperature": settings.temperature, "top_k": settings.top_k or 0}
        with torch.no_grad():
            story_BT = self._gpt2.generate(
                idx_BT,
                attention_mask=torch.ones_like(idx_BT),
                max_new_tokens=max_new_tokens,
                use_cache=True,
                eos_token_id=EOT,
                pad_token_id=EOT,
                **choice,
            )
        story: list[int] = story_BT[0, idx_BT.size(1) :].tolist()
        return story[:-1] if story and story[-1] == EOT else story
