"""AdamW's groups, and clipping as it is seen in the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model import GPT
from storyladder.learning.network import EMBEDDING
from storyladder.learning.optimizer import build_optimizer, clip_gradients
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.settings import StageConfig

STAGE = StageConfig(
    name="tiny",
    corpus="tiny",
    script="train_tiny.py",
    result_file="",
    max_lr=0.25,
    weight_decay=0.125,
    beta1=0.5,
    beta2=0.75,
    eps=1e-3,
)
PLAIN = CompactVocabulary(torch.ones(40, dtype=torch.bool))


@pytest.fixture
def model(small_gpt: Callable[..., GPT]) -> GPT:
    """A model whose gradients are random numbers with a norm of 10."""
    model = small_gpt()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    norm = norm_of(model)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad *= 10 / norm
    return model


def norm_of(model: GPT) -> float:
    squares = [parameter.grad.double().square().sum() for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay(model: GPT) -> None:
    optimizer = build_optimizer(model, STAGE)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and "ln_" not in name
        assert decay[id(parameter)] == (0.125 if matrix else 0.0), name


def test_the_settings_of_the_stage_reach_adamw(model: GPT) -> None:
    for group in build_optimizer(model, STAGE).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.25, (0.5, 0.75), 1e-3)


def test_without_gradient_matrices_shrink_and_nothing_else_moves(model: GPT) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=False)
    build_optimizer(model, STAGE).step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.25 * 0.125 if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_a_gradient_above_the_limit_is_scaled_down_to_it(model: GPT) -> None:
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    norm = clip_gradients(model, 2.5, PLAIN)
    assert norm.item() == pytest.approx(10, rel=1e-5)
    assert norm_of(model) == pytest.approx(2.5, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name] / 4)


def test_a_gradient_below_the_limit_is_not_touched(model: GPT) -> None:
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert clip_gradients(model, 10.5, PLAIN).item() == pytest.approx(10, rel=1e-5)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_norm_that_is_not_finite_leaves_the_gradients_as_they_are(model: GPT, bad: float) -> None:
    model.get_parameter("transformer.ln_f.bias").grad[3] = bad
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert not clip_gradients(model, 2.5, PLAIN).isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad.numpy().tobytes() == before[name].numpy().tobytes()  # NaN is not equal to itself


def test_rows_that_a_compact_vocabulary_leaves_out_count_in_the_norm(model: GPT) -> None:
    seen_V = torch.ones(52, dtype=torch.bool)
    seen_V[20:33] = False  # 13 rows for which the last of 40 stands
    shared = model.get_parameter(EMBEDDING).grad[-1].square().sum().item()
    norm = clip_gradients(model, 2.5, CompactVocabulary(seen_V)).item()
    assert norm == pytest.approx((100 + 12 * shared) ** 0.5, rel=1e-5)
    assert norm_of(model) == pytest.approx(2.5 * 10 / norm, rel=1e-5)


def test_parameters_without_a_gradient_are_passed_over(model: GPT) -> None:
    model.get_parameter("transformer.ln_f.bias").grad = None
    expected = norm_of(model)
    assert clip_gradients(model, 100.0, PLAIN).item() == pytest.approx(expected, rel=1e-5)
