"""The scrapbook of a stage: the same beginnings, continued with the same seed at every evaluation.

reports/STAGE/samples.json for programs, samples.md for people: how one story grew up while the model learned.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyladder.corpus.tokenizer import Tokenizer
from storyladder.learning.network import BuildModel
from storyladder.measuring.telling_many import tell_many
from storyladder.runtime.errors import SaveFailed, report
from storyladder.runtime.files import replace_text
from storyladder.runtime.machine import is_out_of_memory
from storyladder.settings import GenerateConfig, ModelConfig

_FORMAT = 1


class Scrapbook:
    """Tells a story for each prompt and keeps it. What cannot be told or written costs a line, never the training."""

    def __init__(
        self,
        folder: Path,
        prompts: tuple[str, ...],
        *,
        seed: int,
        max_new_tokens: int,
        settings: GenerateConfig,
        tokenizer: Tokenizer,
        build_model: BuildModel,
        model: ModelConfig,
        device: torch.device,
    ) -> None:
        self._path = folder / "samples.json"
        self._prompts, self._seed = prompts, seed
        self._settings = dataclasses.replace(settings, max_new_tokens=max(1, max_new_tokens))
        self._tokenizer, self._build_model, self._model, self._device = tokenizer, build_model, model, device
        self._entries: list[dict[str, Any]] = []
        self._refused = False

    def continue_from(self, evaluated_at: int) -> None:
        """Keep the entries on disk up to that step: the training that followed them is taken again."""
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            if (saved["prompts"], saved["seed"]) == (list(self._prompts), self._seed):
                self._entries = [entry for entry in saved["entries"] if entry["step"] <= evaluated_at]
        except (OSError, ValueError, KeyError, TypeError):
            self._entries = []  # the first run, or a file that somebody has edited

    def set_aside(self, stamp: str) -> None:
        """Rename the scrapbook of earlier training, with `stamp` in its new name."""
        for path in (self._path, self._path.with_suffix(".md")):
            try:
                if path.exists():
                    os.replace(path, path.with_suffix(f".before-{stamp}{path.suffix}"))
            except OSError as error:
                report(f"warning: the stories of earlier training in {path} will be lost ({error.strerror})")

    def add(self, weights: dict[str, Tensor], *, step: int, tokens: int, val_loss: float) -> None:
        """Tell the stories with these weights, of the whole vocabulary, after `tokens` tokens of training."""
        if self._model.vocab_size < self._tokenizer.vocab_size:
            return  # its token files are no text of this tokenizer, so it has no words to tell with
        try:
            stories = self._stories(weights)
            self._entries.append({"step": step, "tokens": tokens, "val_loss": val_loss, "stories": stories})
            content = {"format": _FORMAT, "prompts": self._prompts, "seed": self._seed, "entries": self._entries}
            replace_text(self._path, json.dumps(content, indent=1) + "\n")
            replace_text(self._path.with_suffix(".md"), "\n".join(self._markdown()) + "\n")
        except (SaveFailed, MemoryError, RuntimeError) as error:
            if not isinstance(error, SaveFailed) and not is_out_of_memory(error):
                raise
            if not self._refused:
                report(f"warning: no sample stories in {self._path.parent} ({error}); training continues")
            self._refused = True

    def _stories(self, weights: dict[str, Tensor]) -> list[str]:
        with torch.random.fork_rng(devices=[]):  # a new network draws its first weights
            model = self._build_model(self._model)
        model.load_state_dict(weights)
        model.to(self._device).eval()
        half = self._model.context_length // 2  # room for the story
        prompts = [self._tokenizer.encode(prompt)[:half] for prompt in self._prompts]
        told = tell_many(
            model,
            self._tokenizer,
            prompts,
            settings=self._settings,
            seeds=range(self._seed, self._seed + len(prompts)),
            device=self._device,
        )
        return [self._tokenizer.decode(story.ids[1:]) for story in told]

    def _markdown(self) -> list[str]:
        """The latest stories first within each prompt: what grew is read from the bottom up."""
        lines = [
            "# How the stories grew up",
            "",
            f"The same {len(self._prompts)} beginnings, told at every evaluation with seed {self._seed}, temperature "
            f"{self._settings.temperature:g} and at most {self._settings.max_new_tokens} tokens; nothing is corrected.",
        ]
        for place, prompt in enumerate(self._prompts):
            lines += ["", f"## {prompt}"]
            for entry in reversed(self._entries):
                story = entry["stories"][place].replace("\n", "\n> ")
                loss = f"val_loss {entry['val_loss']:.3f}"
                lines += ["", f"**Step {entry['step']:,}** ({entry['tokens']:,} tokens, {loss})", "", f"> {story}"]
        return lines
