"""Validation loss: the mean over every token that was read, the same every time, and leaving no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import GPT
from storyladder.corpus.token_file import ValidationWindows
from storyladder.learning.evaluation import Evaluation, evaluate
from storyladder.learning.network import EMBEDDING
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.runtime.machine import Precision
from storyladder.settings import ModelConfig

BuildGPT = Callable[..., GPT]
IDS = np.random.default_rng(0).integers(0, 40, 16 * 5 + 1 + 7).astype(np.uint16)  # five windows and a rest of 7
TOKEN_BYTES = np.arange(40)
PLAIN = CompactVocabulary(torch.ones(40, dtype=torch.bool))


def windows_of(limit: int | None = None) -> ValidationWindows:
    return ValidationWindows(IDS, context_length=16, limit=limit, token_bytes_V=TOKEN_BYTES)


def measured(model: GPT, precision: Precision, limit: int | None = None, **changes: Any) -> Evaluation:
    asked: dict[str, Any] = {"batch_size": 2, "device": torch.device("cpu"), "vocabulary": PLAIN, **changes}
    return evaluate(model, windows_of(limit), precision=precision, **asked)


@torch.no_grad()
def nats_by_hand(model: GPT) -> list[float]:
    """The nats of every token of the file after the first: windows do not overlap."""
    nats: list[float] = []
    for start in range(0, len(IDS) - 1, 16):
        window = torch.from_numpy(IDS[start : start + 17].astype(np.int64))
        log_probabilities_TV = model(window[None, :-1])[0].log_softmax(dim=1)
        nats += [-log_probabilities_TV[t, target].item() for t, target in enumerate(window[1:])]
    return nats


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_loss_is_the_mean_over_all_tokens_with_the_short_rest(
    small_gpt: BuildGPT, full_precision: Precision, batch_size: int
) -> None:
    model = small_gpt(dtype=torch.float64)
    nats = nats_by_hand(model)
    assert len(nats) == 16 * 5 + 7
    result = measured(model, full_precision, batch_size=batch_size)
    assert result.tokens == 87
    assert result.val_loss == pytest.approx(sum(nats) / 87, abs=1e-12)
    assert result.text_bytes == int(IDS[1:].sum())  # token 7 has 7 bytes here


def test_a_limit_counts_only_the_windows_that_it_leaves(small_gpt: BuildGPT, full_precision: Precision) -> None:
    model = small_gpt(dtype=torch.float64)
    nats = nats_by_hand(model)
    first_and_last = nats[:16] + nats[4 * 16 : 5 * 16]
    result = measured(model, full_precision, limit=2)
    assert result.tokens == 32
    assert result.val_loss == pytest.approx(sum(first_and_last) / 32, abs=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_it_drops_nothing_repeats_itself_and_leaves_no_trace(
    small_gpt: BuildGPT, full_precision: Precision, training: bool
) -> None:
    model = small_gpt(dropout=0.5)
    model.train(training)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = measured(model, full_precision), measured(model, full_precision)
    assert first == second
    assert first.val_loss == pytest.approx(sum(nats_by_hand(model.eval())) / 87, abs=1e-5)
    model.train(training)
    measured(model, full_precision)
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_signal_in_the_middle_leaves_the_model_training(small_gpt: BuildGPT, full_precision: Precision) -> None:
    model = small_gpt(dropout=0.5).train()
    calls = iter([None, None, KeyboardInterrupt()])

    def check_stop() -> None:
        if (error := next(calls)) is not None:
            raise error

    with pytest.raises(KeyboardInterrupt):
        measured(model, full_precision, check_stop=check_stop)
    assert model.training
    assert next(calls, "asked three times") == "asked three times"


def test_half_precision_measures_nearly_the_same(small_gpt: BuildGPT, full_precision: Precision) -> None:
    model = small_gpt()
    exact, half = measured(model, full_precision), measured(model, Precision(torch.bfloat16, "", "cpu"))
    assert half.val_loss == pytest.approx(exact.val_loss, rel=0.01)
    assert half.val_loss != exact.val_loss


@pytest.mark.parametrize("n_seen", [0, 13, 37])
def test_tokens_that_training_never_saw_cost_what_the_whole_model_says(
    small_gpt: BuildGPT, full_precision: Precision, n_seen: int
) -> None:
    seen_V = torch.arange(40) * 7 % 40 < n_seen
    whole = small_gpt(dtype=torch.float64)
    weights = dict(whole.state_dict())
    start_rows_equal(weights[EMBEDDING], seen_V)
    with torch.no_grad():
        weights[EMBEDDING][~seen_V] += 0.5
    vocabulary = CompactVocabulary(seen_V)
    compact = small_gpt(dtype=torch.float64, vocab_size=vocabulary.n_rows, seed=1)
    compact.load_state_dict(weights | {EMBEDDING: vocabulary.compress(weights[EMBEDDING])})
    assert (~seen_V[IDS.astype(np.int64)]).sum() > 0
    expected = measured(whole, full_precision)
    assert measured(compact, full_precision, vocabulary=vocabulary).val_loss == pytest.approx(
        expected.val_loss, abs=1e-12
    )


def test_perplexity_and_bits_per_byte_are_as_defined() -> None:
    measured = Evaluation(val_loss=2 * math.log(2), tokens=300, text_bytes=1200)
    assert measured.bits_per_byte == pytest.approx(0.5)  # 2 bits a token, 4 bytes a token
    assert measured.perplexity == pytest.approx(4)


def test_a_loss_beyond_all_measure_still_has_a_perplexity() -> None:
    assert Evaluation(val_loss=1e6, tokens=1, text_bytes=0).perplexity > 1e300
    assert math.isnan(Evaluation(val_loss=float("nan"), tokens=1, text_bytes=0).bits_per_byte)


def test_an_untrained_models_bits_per_byte_follow_from_the_vocabulary(full_precision: Precision) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=16, vocab_size=40))
    result = measured(model, full_precision)
    bytes_a_token = result.text_bytes / result.tokens
    assert result.bits_per_byte == pytest.approx(math.log2(40) / bytes_a_token, rel=0.01)
    assert result.val_loss == pytest.approx(F.cross_entropy(torch.zeros(1, 40), torch.tensor([3])).item(), rel=0.01)
