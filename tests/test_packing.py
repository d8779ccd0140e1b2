"""Weights and optimizer state in and out of a checkpoint, with a compact vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from conftest import BOTH_OPTIMIZERS

from model import GPT
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.packing import pack_optimizer, pack_weights, unpack_optimizer, unpack_weights
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.settings import Ladder


def small_model(ladder: Ladder, vocabulary: CompactVocabulary) -> GPT:
    return GPT(replace(ladder.model, vocab_size=vocabulary.n_rows))


@BOTH_OPTIMIZERS
def test_weights_and_moments_survive_packing_into_the_whole_vocabulary(
    toy_ladder: Ladder, changes: dict[str, Any]
) -> None:
    seen = torch.zeros(toy_ladder.model.vocab_size, dtype=torch.bool)
    seen[[1, 5, 9, 50256]] = True
    vocabulary = CompactVocabulary(seen)
    model = small_model(toy_ladder, vocabulary)
    stage = replace(toy_ladder.stage("tiny"), **changes)
    optimizer = build_optimizer(model, stage)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randint(0, vocabulary.n_rows, (2, 8))).square().mean().backward()
        optimizer.step()
    weights, moments = pack_weights(model, vocabulary), pack_optimizer(model, optimizer, vocabulary)
    assert weights["transformer.wte.weight"].shape == (50257, 16) == moments["exp_avg"]["transformer.wte.weight"].shape
    assert moments["updates"] == 3
    other = small_model(toy_ladder, vocabulary)
    other_optimizer = build_optimizer(other, stage)
    unpack_weights(other, weights, vocabulary)
    unpack_optimizer(other, other_optimizer, moments, vocabulary)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert optimizer.state[a].keys() == other_optimizer.state[b].keys(), name
        assert all(torch.equal(value, other_optimizer.state[b][key]) for key, value in optimizer.state[a].items()), name


def test_a_smaller_compact_vocabulary_unfolds_the_tokens_that_a_later_stage_meets(toy_ladder: Ladder) -> None:
    few = torch.zeros(50257, dtype=torch.bool)
    few[:4] = True
    more = few.clone()
    more[100:110] = True
    weights = GPT(toy_ladder.model).state_dict()
    start_rows_equal(weights["transformer.wte.weight"], few)
    vocabulary = CompactVocabulary(more)
    model = small_model(toy_ladder, vocabulary)
    unpack_weights(model, weights, vocabulary)
    assert torch.equal(pack_weights(model, vocabulary)["transformer.wte.weight"], weights["transformer.wte.weight"])
