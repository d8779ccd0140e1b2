"""The contenders of the evaluation benchmark, each in its own process: evaluate.py's scoring and a plain loop."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.peers import gpt2_of, load_our_weights
from benchmarks.turns import Entry, Racer, Reading
from model import GPT
from storyladder.corpus.token_file import TokenFile, open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.measuring.candidates import of_file
from storyladder.measuring.scoring import score
from storyladder.measuring.texts import Text
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.machine import keep_freed_memory, peak_memory, pick_device, pick_precision
from storyladder.telling.teller import model_config

OURS = "Storyladder"
THEIRS = ("transformers, fp32", "transformers, bf16")
_WINDOWS = 8  # in a batch of the plain loop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """What every contender scores: the parts of a text, one a turn, with the same weights."""

    checkpoint: Path
    parts: tuple[Path, ...]
    device: str
    precision: str


def entries_of(scoring: Scoring) -> list[Entry]:
    """One entry per contender."""
    return [Entry(name, build_scorer, (name, scoring)) for name in (OURS, *THEIRS)]


def build_scorer(spec: tuple[str, Scoring]) -> Racer:
    """Build the contender in the calling process."""
    name, scoring = spec
    return Ours(scoring) if name == OURS else PlainLoop(scoring, bf16=name == THEIRS[1])


class _Scorer:
    """A turn is one part of the text."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self.device = pick_device(scoring.device)
        self.facts: dict[str, Any] = {"threads": torch.get_num_threads()}

    def total(self, file: TokenFile) -> float:
        """Nats of all targets."""
        raise NotImplementedError

    def turn(self, number: int) -> Reading:
        """Score one part; seconds per token, and nats per token."""
        path = self.scoring.parts[number % len(self.scoring.parts)]
        tokenizer = gpt2_tokenizer()
        file = open_token_file(path, tokenizer=tokenizer.fingerprint, vocab_size=tokenizer.vocab_size)
        tick = time.perf_counter()
        nats = self.total(file)
        seconds = time.perf_counter() - tick
        tokens = len(file.ids) - 1
        return {"seconds": seconds / tokens, "tokens": tokens, "loss": nats / tokens, "part": path.name}

    def final_facts(self) -> dict[str, Any]:
        """Peak memory of the process."""
        return {"peak_rss": peak_memory(torch.device("cpu"))}


class Ours(_Scorer):
    """What evaluate.py does."""

    def __init__(self, scoring: Scoring) -> None:
        super().__init__(scoring)
        keep_freed_memory()
        self._candidate = of_file(scoring.checkpoint, GPT, gpt2_tokenizer(), self.device)
        self._precision = pick_precision(self.device, scoring.precision)

    def total(self, file: TokenFile) -> float:
        """Nats of all targets, by disjoint windows."""
        text = Text("part", file, gpt2_tokenizer(), file.fingerprint)
        return score(self._candidate, text, "windows", device=self.device, precision=self._precision).nats


class PlainLoop(_Scorer):
    """The loop that everyone writes: windows by eights, all logits, F.cross_entropy."""

    def __init__(self, scoring: Scoring, *, bf16: bool) -> None:
        super().__init__(scoring)
        payload = read_checkpoint(scoring.checkpoint)
        self._config, self._bf16 = model_config(payload, scoring.checkpoint), bf16
        self._gpt2 = gpt2_of(self._config)
        load_our_weights(self._gpt2, payload["model"])
        self._gpt2.to(self.device).eval()

    @torch.inference_mode()
    def total(self, file: TokenFile) -> float:
        """Nats of all targets, by disjoint windows."""
        T, nats = self._config.context_length, 0.0
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16) if self._bf16 else contextlib.nullcontext()
        ids = torch.from_numpy(np.array(file.ids, dtype=np.int64)).to(self.device)
        windows = [(start, T) for start in range(0, len(ids) - T, T)]
        for first in range(0, len(windows), _WINDOWS):
            starts = [start for start, _ in windows[first : first + _WINDOWS]]
            nats += self._nats(torch.stack([ids[start : start + T + 1] for start in starts]), autocast)
        rest = len(windows) * T
        if rest < len(ids) - 1:
            nats += self._nats(ids[None, rest:], autocast)
        return nats

    def _nats(self, ids_BT: torch.Tensor, autocast: contextlib.AbstractContextManager[object]) -> float:
        with autocast:
            logits_BTV = self._gpt2(input_ids=ids_BT[:, :-1], use_cache=False).logits
            return F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum").item()
