"""The scorecard from checkpoints and token files to JSON and table, without a network."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import payload_of

from model import GPT
from storyladder.corpus.corpora import token_files
from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.token_file import TokenWriter, open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.measuring.metrics import METRICS
from storyladder.measuring.real_stories import choose_real_stories, training_text
from storyladder.measuring.scorecard import write_scorecard
from storyladder.results import StageFiles
from storyladder.runtime.checkpoint import save_checkpoint
from storyladder.runtime.errors import DataError, UserError
from storyladder.settings import GenerateConfig, Ladder
from storyladder.telling.story import tell

CPU = torch.device("cpu")
N = 5


def write_stories(path: Path, stories: Sequence[str]) -> None:
    tokenizer = gpt2_tokenizer()
    with TokenWriter(path, tokenizer.fingerprint) as writer:
        writer.add(tokenizer.encode_stories(stories), stories=len(stories), text_bytes=sum(map(len, stories)))
        writer.finish(sources=["made in a test"], cleaning={})


def write_result(ladder: Ladder, name: str) -> None:
    torch.manual_seed(len(name))
    model = GPT(ladder.model)
    payload = {**payload_of(ladder, name), "model": model.state_dict()}
    files = StageFiles.of(ladder, ladder.stage(name))
    files.result.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(files.result, payload, keep_previous=False)


@pytest.fixture
def ladder(toy_ladder: Ladder) -> Ladder:
    """Stages tiny and children with results, and a corpus of the user's own for the third, which has none yet."""
    stages = (*toy_ladder.stages[:2], replace(toy_ladder.stages[2], corpus="mine"))
    ladder = replace(
        toy_ladder,
        stages=stages,
        model=replace(toy_ladder.model, context_length=64, n_layer=1),
        generate=GenerateConfig(temperature=1.0, top_k=20, max_new_tokens=80),
    )
    for number, stage in enumerate(stages):
        train, val = token_files(ladder, stage)
        texts = list(sample_stories(("tiny", "children", "simple")[number], 140))
        write_stories(train, texts[:120])
        write_stories(val, texts[120:])
    for name in ("tiny", "children"):
        write_result(ladder, name)
    return ladder


def scorecard(ladder: Ladder, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    lines = write_scorecard(ladder, GPT, **{"n": N, "seed": 3, "device": CPU, **changes})
    return json.loads((ladder.folder("reports") / "scorecard.json").read_text(encoding="utf-8")), lines


def test_the_scorecard_of_a_ladder_without_a_network(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbid)
    content, lines = scorecard(ladder)
    assert content["format"] == 1 and (content["n"], content["seed"]) == (N, 3)
    assert {"date", "command", "machine", "versions"} <= content["made"].keys()
    assert [(row["who"], row["corpus"], row["stories"]) for row in content["rows"]] == [
        ("tiny", "tiny", N),
        ("real", "tiny", N),
        ("children", "children", N),
        ("real", "children", N),
    ]
    for row in content["rows"]:
        assert list(row["metrics"]) == [metric.name for metric in METRICS]
    real = content["rows"][1]["metrics"]
    assert real["finished"]["value"] < 1.0 and real["sentence_length"]["value"] > 4
    garbled = content["rows"][0]["metrics"]  # random weights
    assert garbled["finished"]["value"] == 0.0 and garbled["unknown_words"]["value"] > real["unknown_words"]["value"]
    assert content["corpora"]["tiny"]["tokens_read_for_words"] == content["corpora"]["tiny"]["training_tokens"]
    table = "\n".join(lines)
    for metric in METRICS:
        assert re.search(rf"^{metric.name} +\S", table, re.MULTILINE)
    assert "real children" in table and lines[-1].endswith("scorecard.json")
    assert not list(ladder.folder("reports").glob("*.partial"))


def test_a_sample_is_the_story_that_generate_tells_with_its_seed(ladder: Ladder) -> None:
    content, _ = scorecard(ladder)
    torch.manual_seed(len("tiny"))
    model = GPT(ladder.model).eval()
    assert [sample["seed"] for sample in content["samples"]["tiny"]] == list(range(3, 3 + N))
    for sample in content["samples"]["tiny"]:
        pieces = tell(
            model, gpt2_tokenizer(), sample["prompt"], settings=ladder.generate, seed=sample["seed"], device=CPU
        )
        assert sample["story"] == sample["prompt"] + "".join(pieces)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(ladder: Ladder) -> None:
    first, again, other = (scorecard(ladder, n=2, seed=seed)[0] for seed in (1, 1, 2))
    assert first["rows"] == again["rows"] and first["samples"] == again["samples"]
    assert first["samples"] != other["samples"]


def test_copies_of_the_training_text_are_found(ladder: Ladder) -> None:
    """The validation stories stand in the training text too."""
    train, _ = token_files(ladder, ladder.stage("tiny"))
    texts = list(sample_stories("tiny", 140))
    write_stories(train, texts)
    content, _ = scorecard(ladder)
    told, real = (content["rows"][place]["metrics"] for place in (0, 1))
    assert real["long_copies"]["value"] == 1.0 and real["longest_copy"]["value"] > 40
    assert told["long_copies"]["value"] == 0.0 and told["longest_copy"]["value"] < 5


def test_a_corpus_of_the_users_own_has_a_row(ladder: Ladder) -> None:
    write_result(ladder, "simple")
    content, _ = scorecard(ladder)
    assert [(row["who"], row["corpus"]) for row in content["rows"][-2:]] == [("simple", "mine"), ("real", "mine")]


def test_fewer_real_stories_than_asked_for_are_named(ladder: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    content, _ = scorecard(ladder, n=30)
    assert content["rows"][0]["stories"] == 20 and len(content["samples"]["tiny"]) == 20
    assert "val.bin has only 20 different stories to start from, not 30" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused(ladder: Ladder) -> None:
    with pytest.raises(UserError, match=r"a scorecard of 1 stories .* at least 2"):
        write_scorecard(ladder, GPT, n=1, seed=0, device=CPU)
    _, val = token_files(ladder, ladder.stage("tiny"))
    write_stories(val, ["Once upon a time.", "Once upon a time. They ran home.", "Hi."])
    with pytest.raises(DataError, match=r"val\.bin has 1 stories with words after their opening"):
        write_scorecard(ladder, GPT, n=4, seed=0, device=CPU)
    for name in ("tiny", "children"):
        StageFiles.of(ladder, ladder.stage(name)).result.unlink()
    with pytest.raises(UserError, match=r"no stage has a result in .*; train one: python .*train_tiny\.py"):
        write_scorecard(ladder, GPT, n=4, seed=0, device=CPU)


def test_a_missing_package_is_named(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyladder.measuring.scorecard._EXTRAS", ("sacrebleu", "no_such_package"))
    with pytest.raises(UserError, match=r"needs the package no_such_package; run python -m pip install .*report\.txt"):
        write_scorecard(ladder, GPT, n=4, seed=0, device=CPU)


def test_a_stop_is_heard_while_stories_are_told(ladder: Ladder) -> None:
    heard = iter(range(5))

    def check_stop() -> None:
        if next(heard, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scorecard(ladder, GPT, n=4, seed=0, device=CPU, check_stop=check_stop)
    assert not (ladder.folder("reports") / "scorecard.json").exists()


def test_real_stories_are_chosen_by_seed_once_each_and_cut_at_the_opening(tmp_path: Path) -> None:
    tokenizer = gpt2_tokenizer()
    texts = list(sample_stories("tiny", 30))
    write_stories(tmp_path / "val.bin", [*texts, *texts, "x" * 3000 + " y. A dog ran."])
    file = open_token_file(tmp_path / "val.bin", tokenizer=tokenizer.fingerprint, vocab_size=50257)
    chosen = choose_real_stories(file, tokenizer, n=40, seed=0, longest_prompt=30)
    assert sorted(story.prompt + story.rest for story in chosen) == sorted(texts)
    assert all(tokenizer.decode(story.rest_ids) == story.rest for story in chosen)
    again, other = (choose_real_stories(file, tokenizer, n=5, seed=seed, longest_prompt=30) for seed in (0, 1))
    assert again == chosen[:5] != other
    story = chosen[0]
    assert story.cut(len(story.rest_ids) + 1, tokenizer) == (story.rest, story.rest_ids, True)
    assert story.cut(len(story.rest_ids), tokenizer)[2] is False  # a model has no token left for the end
    text, ids, ended = story.cut(10, tokenizer)
    assert (text, ids, ended) == (tokenizer.decode(story.rest_ids[:10]), story.rest_ids[:10], False)


@pytest.mark.parametrize("part", [256, 1 << 19])
def test_training_text_comes_in_whole_stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr("storyladder.measuring.real_stories._PART", part)
    tokenizer = gpt2_tokenizer()
    texts = list(sample_stories("tiny", 50))
    write_stories(tmp_path / "train.bin", texts)
    file = open_token_file(tmp_path / "train.bin", tokenizer=tokenizer.fingerprint, vocab_size=50257)
    whole = "".join(training_text(file, tokenizer, check_stop=lambda: None))
    assert whole.split("\n\n") != texts and whole == "".join(f"{text}\n\n" for text in texts)
    some = "".join(training_text(file, tokenizer, most_tokens=len(file.ids) // 4, check_stop=lambda: None))
    if part == 256:
        kept = [text for text in texts if f"{text}\n\n" in some]
        assert 5 < len(kept) < 40 and "".join(f"{text}\n\n" for text in kept) == some
        assert texts.index(kept[-1]) > 35  # from all over the file
