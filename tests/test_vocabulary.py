"""The compact vocabulary is the whole one with less work: same losses, gradients, clipping, weights, AdamW states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import BOTH_OPTIMIZERS
from torch import Tensor

from model import GPT
from storyladder.learning.network import EMBEDDING
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.step import Stepper, StepResult
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.runtime.machine import Precision
from storyladder.settings import StageConfig

V, SEEN = 40, torch.tensor([0, 2, 3, 7, 8, 11, 19, 20, 21, 30, 33, 38, 39])


def thirteen_of_forty() -> Tensor:
    seen_V = torch.zeros(V, dtype=torch.bool)
    seen_V[SEEN] = True
    return seen_V


def test_seen_tokens_are_numbered_in_order_and_all_others_are_the_last_row() -> None:
    vocabulary = CompactVocabulary(torch.tensor([False, True, False, True, True, False]))
    assert (vocabulary.vocab_size, vocabulary.n_unseen, vocabulary.n_rows) == (6, 3, 4)
    assert vocabulary.rows_of(torch.arange(6).view(2, 3)).tolist() == [[3, 0, 3], [1, 2, 3]]
    assert vocabulary.log_unseen == math.log(3)


def test_what_was_compressed_expands_to_itself() -> None:
    vocabulary = CompactVocabulary(thirteen_of_forty())
    weight_VC = torch.randn(V, 3)
    weight_VC[~thirteen_of_forty()] = torch.randn(3)
    compact_RC = vocabulary.compress(weight_VC)
    assert compact_RC.shape == (14, 3)
    assert torch.equal(vocabulary.expand(compact_RC), weight_VC)
    assert torch.equal(vocabulary.compress(vocabulary.expand(compact_RC)), compact_RC)


def test_rows_that_differ_are_not_shared() -> None:
    vocabulary = CompactVocabulary(thirteen_of_forty())
    weight_VC = torch.randn(V, 3)
    assert not vocabulary.can_share(weight_VC)
    with pytest.raises(AssertionError, match="rows to share differ"):
        vocabulary.compress(weight_VC)
    start_rows_equal(weight_VC, thirteen_of_forty())
    assert vocabulary.can_share(weight_VC)
    weight_VC[37, 2] = 1e-30  # one number of one row
    assert not vocabulary.can_share(weight_VC)
    weight_VC[37, 2] = float("nan")
    assert not vocabulary.can_share(weight_VC)


def test_unseen_rows_start_at_zero_and_seen_ones_are_left_alone() -> None:
    weight_VC = torch.randn(V, 3)
    before_VC = weight_VC.clone()
    start_rows_equal(weight_VC, thirteen_of_forty())
    assert torch.equal(weight_VC[SEEN], before_VC[SEEN])
    assert weight_VC.count_nonzero() == 13 * 3


@pytest.mark.parametrize(
    "plain",
    [CompactVocabulary(torch.ones(V, dtype=torch.bool)), CompactVocabulary(thirteen_of_forty(), compact=False)],
    ids=["everything seen", "compact=False"],
)
def test_the_plain_vocabulary_changes_nothing(plain: CompactVocabulary) -> None:
    weight_VC, idx_BT = torch.randn(V, 3), torch.arange(V).view(2, 20)
    before_VC = weight_VC.clone()
    assert (plain.n_rows, plain.log_unseen) == (V, 0.0)
    assert torch.equal(plain.rows_of(idx_BT), idx_BT)
    assert torch.equal(plain.compress(weight_VC), before_VC)
    assert torch.equal(plain.expand(weight_VC), before_VC)
    assert plain.hidden_squares(weight_VC) == 0.0
    plain.share_gradient(weight_VC)
    assert torch.equal(weight_VC, before_VC)


def test_a_single_unseen_token_has_a_row_of_its_own() -> None:
    seen_V = torch.ones(V, dtype=torch.bool)
    seen_V[5] = False
    vocabulary = CompactVocabulary(seen_V)
    weight_VC = torch.randn(V, 3)
    assert (vocabulary.n_rows, vocabulary.log_unseen) == (V, 0.0)
    assert torch.equal(vocabulary.expand(vocabulary.compress(weight_VC)), weight_VC)


class Trained:
    """A model with its optimizer and vocabulary, in float64."""

    def __init__(
        self,
        small_gpt: Callable[..., GPT],
        weights: dict[str, Tensor],
        vocabulary: CompactVocabulary,
        changes: dict[str, Any],
    ) -> None:
        self.vocabulary = vocabulary
        self.model = small_gpt(vocab_size=vocabulary.n_rows, n_layer=1, context_length=8, dtype=torch.float64)
        self.model.load_state_dict(weights | {EMBEDDING: vocabulary.compress(weights[EMBEDDING])})
        self.stage = StageConfig(
            name="tiny", corpus="tiny", script="train_tiny.py", result_file="", grad_clip=0.5, **changes
        )
        self.optimizer = build_optimizer(self.model, self.stage)

    def step(self, number: int, batch: tuple[Tensor, Tensor], precision: Precision) -> StepResult:
        asked: dict[str, Any] = {"vocabulary": self.vocabulary, "precision": precision, "micro_batch_size": 2}
        return Stepper(self.model, self.optimizer, self.stage, **asked).step(batch, number, 3e-3)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, gradients and moments, all with the whole vocabulary."""
        found = {}
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            state = self.optimizer.state[parameter]
            parts = {"weight": parameter, "grad": parameter.grad, **state}
            parts.pop("step", None)
            assert len(parts) > 2
            for part, tensor in parts.items():
                found[f"{part} of {name}"] = self.vocabulary.expand(tensor) if name == EMBEDDING else tensor
        return found


@pytest.mark.slow
@BOTH_OPTIMIZERS
def test_training_with_a_compact_vocabulary_is_training_with_the_whole_one(
    small_gpt: Callable[..., GPT], full_precision: Precision, changes: dict[str, Any]
) -> None:
    weights = dict(small_gpt(n_layer=1, context_length=8, dtype=torch.float64).state_dict())
    start_rows_equal(weights[EMBEDDING], thirteen_of_forty())
    whole = Trained(small_gpt, weights, CompactVocabulary(thirteen_of_forty(), compact=False), changes)
    compact = Trained(small_gpt, weights, CompactVocabulary(thirteen_of_forty()), changes)
    assert whole.model.head_weight.shape == (40, 16)
    assert compact.model.head_weight.shape == (14, 16)
    generator = torch.Generator().manual_seed(5)
    clipped = 0
    for number in range(200):
        ids = SEEN[torch.randint(len(SEEN), (4, 9), generator=generator)]
        batch = ids[:, :-1], ids[:, 1:]
        expected, got = whole.step(number, batch, full_precision), compact.step(number, batch, full_precision)
        assert got.train_loss == pytest.approx(expected.train_loss, abs=1e-9)
        assert got.grad_norm == pytest.approx(expected.grad_norm, abs=1e-9)
        clipped += got.grad_norm > 0.5
        if number % 20 == 0 or number == 199:
            theirs = whole.tensors()
            for name, tensor in compact.tensors().items():
                assert (tensor - theirs[name]).abs().max() < 1e-9, name
    assert clipped > 100
    unseen_UC = whole.model.head_weight[~thirteen_of_forty()]
    assert unseen_UC.norm() > 0.1  # they were pushed away from zero, all alike
    assert whole.vocabulary.can_share(whole.model.head_weight.round(decimals=9))
