"""The arithmetic: a model that is uniform over bytes has 8 bits per byte, whatever its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hugging_face import small_tokenizer

from storyladder.corpus.sample_stories import sample_stories
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.measuring.candidates import Candidate
from storyladder.measuring.protocols import Row, batches, padded, rows_of
from storyladder.measuring.scoring import foreign_rows
from storyladder.measuring.tally import Tally
from storyladder.measuring.texts import Text, text_of_file
from storyladder.settings import CorpusConfig

STORIES = [*sample_stories("tiny", 40), "Zo\u00eb saw \u2603 and \U0001f600!"]
BITS_OF_EOT = 3.0


@pytest.fixture
def text(tmp_path: Path) -> Text:
    path = tmp_path / "stories.txt"
    path.write_text("<|endoftext|>".join(STORIES), encoding="utf-8")
    return text_of_file(path, CorpusConfig(), gpt2_tokenizer(), tmp_path)


def byte_uniform(bytes_of: Callable[[int], int], eot: int) -> Callable[[np.ndarray], np.ndarray]:
    """Nats of targets where every byte costs 8 bits and EOT costs three."""
    return lambda targets_N: np.array(
        [math.log(2) * (BITS_OF_EOT if token == eot else 8 * bytes_of(token)) for token in targets_N]
    )


def check(tally: Tally, stories: int) -> None:
    record = tally.record()
    assert record["bits_per_byte_text"] == pytest.approx(8, abs=1e-9)
    assert record["bits_per_byte"] == pytest.approx(8 + BITS_OF_EOT * stories / tally.text_bytes, abs=1e-9)
    assert (record["eot_targets"], record["stories"]) == (stories, stories)
    assert record["bytes"] == sum(len(story.encode()) for story in STORIES)


def test_a_model_that_is_uniform_over_bytes_has_8_bits_per_byte_under_two_tokenizers(text: Text) -> None:
    ours, tokens = Tally.of(text.n_stories), gpt2_tokenizer().token_bytes_V
    nats_of = byte_uniform(lambda token: int(tokens[token]), EOT)
    for batch in batches(rows_of("stories", text.ids, text.ends, context=64, prefix=EOT), 512):
        targets_N = ours.add(batch, nats_of(batch.targets_BT[batch.scored_BT]), eot=EOT, one_story=True)
        ours.text_bytes += int(tokens[targets_N].sum())
    check(ours, len(STORIES))

    small = small_tokenizer(STORIES)
    eos = small.token_to_id("</s>")
    other = Candidate(
        name="other",
        stage=None,
        step=None,
        context=64,
        vocab_size=400,
        prefix=eos,
        eot=eos,
        hidden=torch.nn.Identity(),
        head_weight=torch.zeros(400, 1),
        weights_sha256="",
        encode=lambda stories: [small.encode(story).ids for story in stories],
    )
    theirs = Tally.of(text.n_stories)
    nats_of = byte_uniform(lambda token: len(small.id_to_token(token)), eos)  # byte-level: a character a byte
    for batch in batches(foreign_rows(other, text, theirs), 512):
        theirs.add(batch, nats_of(batch.targets_BT[batch.scored_BT]), eot=eos, one_story=True)
    check(theirs, len(STORIES))
    assert theirs.tokens > 1.2 * ours.tokens, "the tokenizers differ"
    assert theirs.story_nats == pytest.approx(ours.story_nats), "story by story"


def test_windows_charge_each_story_with_its_own_targets() -> None:
    ids = np.array([1, 2, EOT, 3, 4, EOT, 5])
    tally = Tally.of(3)
    tally.add(
        padded([Row(ids[:4], 0, 0), Row(ids[3:], 0, 1)]), np.array([1, 2, 4, 8, 16, 32]), eot=EOT, one_story=False
    )
    assert tally.story_nats.tolist() == [1 + 2, 4 + 8 + 16, 32]
    assert (tally.eot_nats, tally.eot_targets, tally.tokens, tally.nats) == (2 + 16, 2, 6, 63)


def test_skipped_targets_still_tell_where_a_story_ends() -> None:
    tally = Tally.of(2)
    tally.add(padded([Row(np.array([1, EOT, 3, 4]), 2, 0)]), np.array([5.0]), eot=EOT, one_story=False)
    assert tally.story_nats.tolist() == [0, 5]


def test_the_numbers_are_as_defined() -> None:
    tally = Tally(np.array([2 * math.log(2), 6 * math.log(2)]), 2 * math.log(2), tokens=4, eot_targets=2, text_bytes=16)
    assert tally.record() == {
        "loss": pytest.approx(2 * math.log(2)),
        "nats": pytest.approx(8 * math.log(2)),
        "perplexity": pytest.approx(4),
        "bits_per_byte": pytest.approx(8 / 16),
        "bits_per_byte_text": pytest.approx(6 / 16),
        "tokens": 4,
        "bytes": 16,
        "eot_targets": 2,
        "stories": 2,
    }
