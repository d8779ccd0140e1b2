"""The scrapbook: stories from the same prompts and seeds at every evaluation, which a resumed stage continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import GPT
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.measuring.scrapbook import Scrapbook
from storyladder.runtime.errors import SaveFailed
from storyladder.settings import GenerateConfig, ModelConfig
from storyladder.telling.story import tell

CONFIG = ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, dropout=0.1)
PROMPTS = ("Once upon a time", "The bear")
SETTINGS = GenerateConfig(top_k=20)


def scrapbook(folder: Path, **changes: Any) -> Scrapbook:
    asked: dict[str, Any] = {
        "seed": 3,
        "max_new_tokens": 12,
        "settings": SETTINGS,
        "tokenizer": gpt2_tokenizer(),
        "build_model": GPT,
        "model": CONFIG,
        "device": torch.device("cpu"),
    }
    return Scrapbook(folder, PROMPTS, **asked | changes)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return GPT(CONFIG).state_dict()


def entries(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "samples.json").read_text(encoding="utf-8"))["entries"])


def test_each_story_is_what_generate_tells_with_that_seed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    scrapbook(tmp_path).add(weights, step=7, tokens=56, val_loss=2.5)
    model = GPT(CONFIG)
    model.load_state_dict(weights)
    model.eval()
    settings = GenerateConfig(top_k=20, max_new_tokens=12)
    expected = [
        prompt
        + "".join(tell(model, gpt2_tokenizer(), prompt, settings=settings, seed=seed, device=torch.device("cpu")))
        for prompt, seed in zip(PROMPTS, (3, 4), strict=True)
    ]
    assert entries(tmp_path) == [{"step": 7, "tokens": 56, "val_loss": 2.5, "stories": expected}]
    text = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert "## The bear" in text and "**Step 7** (56 tokens, val_loss 2.500)" in text
    assert f"> {expected[1]}".replace("\n", "\n> ") in text


def test_telling_does_not_move_the_random_numbers_of_training(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    scrapbook(tmp_path).add(weights, step=0, tokens=0, val_loss=1.0)
    assert torch.equal(torch.rand(3), expected)


def test_it_continues_from_where_the_stage_continues(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    book = scrapbook(tmp_path)
    for step in (0, 3, 6):
        book.add(weights, step=step, tokens=step, val_loss=1.0)
    again = scrapbook(tmp_path)
    again.continue_from(3)
    again.add(weights, step=5, tokens=5, val_loss=1.0)
    assert [entry["step"] for entry in entries(tmp_path)] == [0, 3, 5]
    other = scrapbook(tmp_path, seed=4)
    other.continue_from(5)
    other.add(weights, step=9, tokens=9, val_loss=1.0)
    assert [entry["step"] for entry in entries(tmp_path)] == [9], "told with other seeds, they cannot be compared"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"prompts": 3, "seed": 3, "entries": 4}'])
def test_a_file_that_is_not_a_scrapbook_is_written_anew(
    tmp_path: Path, weights: dict[str, torch.Tensor], content: str
) -> None:
    (tmp_path / "samples.json").write_text(content, encoding="utf-8")
    book = scrapbook(tmp_path)
    book.continue_from(100)
    book.add(weights, step=1, tokens=1, val_loss=1.0)
    assert len(entries(tmp_path)) == 1


def test_an_old_scrapbook_is_renamed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    book = scrapbook(tmp_path)
    book.set_aside("never")  # nothing there
    book.add(weights, step=0, tokens=0, val_loss=1.0)
    book.set_aside("monday")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "samples.before-monday.json",
        "samples.before-monday.md",
    ]


@pytest.mark.parametrize("error", [SaveFailed("cannot write it"), MemoryError()])
def test_what_fails_is_told_once_and_costs_no_training(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def failing(config: ModelConfig) -> GPT:
        raise error

    book = scrapbook(tmp_path, build_model=failing)
    for step in range(2):
        book.add(weights, step=step, tokens=0, val_loss=1.0)
    told = capsys.readouterr()
    assert (told.out + told.err).count("no sample stories") == 1
    assert not list(tmp_path.iterdir())


def test_what_is_our_mistake_is_raised(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        scrapbook(tmp_path, model=ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=32)).add(
            weights, step=0, tokens=0, val_loss=1.0
        )


def test_a_model_of_fewer_tokens_than_the_tokenizer_tells_nothing(tmp_path: Path) -> None:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=32, vocab_size=64)
    scrapbook(tmp_path, model=config).add(GPT(config).state_dict(), step=0, tokens=0, val_loss=1.0)
    assert not list(tmp_path.iterdir())


def test_a_long_prompt_leaves_half_of_the_context_for_the_story(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    build: Callable[..., Scrapbook] = scrapbook
    book = build(tmp_path)
    book._prompts = ("once " * 100, "The bear")
    book.add(weights, step=0, tokens=0, val_loss=1.0)
    assert entries(tmp_path)[0]["stories"][0].startswith("once " * 15)
