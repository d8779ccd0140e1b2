"""Other people's models stand in the same table: their own tokenizer, the same bytes, one prefix token."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hugging_face import gpt2_folder, llama_folder, write_json
from torch.nn import functional as F

from model import GPT
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.measuring.candidates import of_file
from storyladder.measuring.foreign import load_foreign
from storyladder.measuring.scoring import score
from storyladder.measuring.tally import Tally
from storyladder.measuring.texts import Text, text_of_file
from storyladder.results import plain_settings
from storyladder.runtime.checkpoint import save_checkpoint
from storyladder.runtime.errors import CheckpointError, UserError
from storyladder.runtime.machine import Precision
from storyladder.settings import CorpusConfig, Ladder, ModelConfig

CPU = torch.device("cpu")
STORIES = [*sample_stories("tiny", 12), "Zo\u00eb wrote </s> and <|endoftext|> on the wall.", "\n x  y\t\U0001f600"]


@pytest.fixture
def text(tmp_path: Path) -> Text:
    """Stories that hold names of special tokens, which are text there."""
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES), encoding="utf-8")
    return text_of_file(path, CorpusConfig(), gpt2_tokenizer(), tmp_path)


def scored(folder: Path, text: Text, precision: Precision) -> Tally:
    return score(load_foreign(folder, text.stories(), CPU), text, "stories", device=CPU, precision=precision)


@pytest.mark.slow
def test_a_gpt2_folder_and_our_checkpoint_agree(
    toy_ladder: Ladder, text: Text, tmp_path: Path, full_precision: Precision
) -> None:
    config = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=64)
    torch.manual_seed(0)
    model = GPT(config)
    weights = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    settings = plain_settings(toy_ladder, toy_ladder.stages[0], []) | {"model": dict(vars(config))}
    payload = {"stage": "tiny", "step": 1, "val_loss": 1.0, "settings": settings, "model": weights}
    save_checkpoint(tmp_path / "ours.pt", payload, keep_previous=False)
    own = of_file(tmp_path / "ours.pt", GPT, gpt2_tokenizer(), CPU)
    ours = score(own, text, "stories", device=CPU, precision=full_precision)
    folder = gpt2_folder(tmp_path / "gpt2", config, weights)
    foreign = load_foreign(folder, text.stories(), CPU)
    assert (foreign.prefix, foreign.eot, foreign.context, foreign.notes) == (EOT, EOT, 64, ())
    theirs = score(foreign, text, "stories", device=CPU, precision=full_precision)
    assert (theirs.tokens, theirs.text_bytes, theirs.eot_targets) == (ours.tokens, ours.text_bytes, ours.eot_targets)
    assert theirs.story_nats == pytest.approx(ours.story_nats, rel=1e-5)
    assert theirs.loss == pytest.approx(ours.loss, abs=1e-4)
    assert theirs.text_bytes == sum(len(story.strip().encode()) for story in STORIES)


def test_a_llama_with_its_own_tokenizer_equals_a_plain_loop(
    text: Text, tmp_path: Path, full_precision: Precision
) -> None:
    folder = llama_folder(tmp_path / "llama", STORIES, context=512)
    tally = scored(folder, text, full_precision)
    llama = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    nats, tokens = [], 0
    for story in text.stories():
        pieces = tokenizer.backend_tokenizer
        pieces.encode_special_tokens = True
        ids = torch.tensor([[0, *pieces.encode(story, add_special_tokens=False).ids, 1]])
        with torch.no_grad():
            nats.append(F.cross_entropy(llama(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum").item())
        tokens += ids.shape[1] - 1
    assert tally.story_nats.tolist() == pytest.approx(nats, rel=1e-5)
    assert (tally.tokens, tally.eot_targets) == (tokens, len(STORIES)), "</s> in a story is text"
    assert tally.text_bytes == sum(len(story.encode()) for story in text.stories())


def test_a_story_longer_than_the_context_slides(text: Text, tmp_path: Path, full_precision: Precision) -> None:
    folder = llama_folder(tmp_path / "llama", STORIES, context=32)
    candidate = load_foreign(folder, text.stories(), CPU)
    assert candidate.context == 32
    tally = score(candidate, text, "stories", device=CPU, precision=full_precision)
    assert tally.tokens == scored(llama_folder(tmp_path / "long", STORIES, context=512), text, full_precision).tokens
    assert candidate.encode is not None
    (story,) = [story for story in text.stories() if "Zo" in story]
    number = list(text.stories()).index(story)
    ids, last = [0, *candidate.encode([story])[0], 1], len(candidate.encode([story])[0]) + 1
    assert last > 32
    llama, nats = transformers.LlamaForCausalLM.from_pretrained(folder).eval(), 0.0
    for target in range(1, last + 1):
        stop = 32 if target <= 32 else min(last, 32 + 16 * -(-(target - 32) // 16))
        with torch.no_grad():
            logits_V = llama(torch.tensor([ids[max(0, stop - 32) : target]])).logits[0, -1]
        nats -= float(logits_V.log_softmax(dim=0)[ids[target]])
    assert tally.story_nats[number] == pytest.approx(nats, rel=1e-5)


def test_a_tokenizer_that_changes_the_text_is_named_and_buys_nothing(
    text: Text, tmp_path: Path, full_precision: Precision
) -> None:
    folder = llama_folder(tmp_path / "lower", STORIES, context=512, lowercase=True)
    (note,) = load_foreign(folder, text.stories(), CPU).notes
    assert f"{folder} changes the text (13 of 14 stories do not" in note and "bytes of the original text" in note
    assert scored(folder, text, full_precision).text_bytes == sum(len(story.encode()) for story in text.stories())
    assert load_foreign(llama_folder(tmp_path / "same", STORIES), text.stories(), CPU).notes == ()


def test_the_prefix_is_bos_or_else_eos(text: Text, tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "llama", STORIES)
    both = load_foreign(folder, text.stories(), CPU)
    assert (both.prefix, both.eot) == (0, 1)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {key: value for key, value in config.items() if "token_id" not in key})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    only_eos = load_foreign(folder, text.stories(), CPU)
    assert (only_eos.prefix, only_eos.eot) == (1, 1)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="names neither bos_token nor eos_token; add one to its tokenizer_config"):
        load_foreign(folder, text.stories(), CPU)
    write_json(folder / "config.json", config)
    assert load_foreign(folder, text.stories(), CPU).prefix == 0, "config.json names it"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_foreign(folder, STORIES, CPU)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


def test_folders_that_cannot_be_scored_are_refused(tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "llama", STORIES, rows=399)
    assert "its tokenizer has 400 tokens, but its embedding only 399 rows" in refusal(folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "cannot be loaded" in refusal(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "cannot be loaded" in refusal(folder)
    write_json(folder / "config.json", {"model_type": "bert"})
    assert "holds a model of type 'bert'; expected one of gpt2, llama" in refusal(folder)
    (folder / "config.json").write_text("[")
    assert "config.json cannot be read" in refusal(folder)
    (folder / "config.json").unlink()
    assert "is a folder without config.json" in refusal(folder)


def test_without_transformers_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "gpt2"})
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "the package transformers, which reads it, is not installed here; run python -m pip" in refusal(folder)
