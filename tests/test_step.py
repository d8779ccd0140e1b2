"""One step: gradients of the whole batch whatever the micro-batches, and nothing moves when a number is not finite."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from rounding import gradient_tolerance
from steppers import FP32, STAGE, STAGES, Batch, BuildGPT, everything, some_batch, stepper_of
from torch import Tensor
from torch.nn import functional as F

from model import GPT
from storyladder.layers.kernels import PARTS, Part, without_kernels
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.step import StepResult
from storyladder.runtime.machine import Precision
from storyladder.settings import StageConfig


def accumulated(
    model: GPT, batch: Batch, micro: int, seed: tuple[int, int] = (7, 0), **changes: Any
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one batch, starting from none; `seed` is that of the stage and the number of the step."""
    model.zero_grad()
    asked = {"micro_batch_size": micro, "scaler": FP32.scaler()} | changes
    stepper = stepper_of(model, stage=replace(STAGE, seed=seed[0]), **asked)
    loss = stepper.accumulate_gradients(batch, seed[1])
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def take_step(
    model: GPT, optimizer: torch.optim.Optimizer, batch: Batch, *, step: int = 0, lr: float = 1e-3, **changes: Any
) -> StepResult:
    return stepper_of(model, optimizer, **changes).step(batch, step, lr)


@pytest.mark.parametrize("off", [(), PARTS], ids=["kernels", "no kernels"])
def test_a_step_in_bf16_has_the_gradients_of_fp64_but_for_rounding(small_gpt: BuildGPT, off: tuple[Part, ...]) -> None:
    """Large enough for every kernel that a CPU with AMX uses; and without kernels, as where there is no compiler."""
    sizes = {"far": 0.1, "n_head": 4, "n_embd": 64, "context_length": 128}
    ids = torch.randint(40, (8, 129), generator=torch.Generator().manual_seed(1))
    batch, bf16 = (ids[:, :-1], ids[:, 1:]), Precision(torch.bfloat16, "a test wants it", "cpu")
    exact_loss, exact = accumulated(small_gpt(**sizes).double(), batch, 8)
    with without_kernels(*off):
        loss_there, found = accumulated(small_gpt(**sizes), batch, 8, precision=bf16)
    assert loss_there == pytest.approx(exact_loss, rel=2**-8)
    for name, gradient in found.items():
        error = (gradient.double() - exact[name]).norm() / exact[name].norm()
        assert 1e-4 < error < gradient_tolerance("bf16", n_layer=2), name


@pytest.mark.parametrize("micro", [1, 2, 3, 4, 9])
def test_the_gradient_is_that_of_the_mean_loss_of_the_whole_batch(small_gpt: BuildGPT, micro: int) -> None:
    model, (idx_BT, targets_BT) = small_gpt(dtype=torch.float64), some_batch()
    loss, grads = accumulated(model, (idx_BT, targets_BT), micro)
    model.zero_grad()
    expected = F.cross_entropy(model(idx_BT).flatten(0, 1), targets_BT.flatten())
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=0, atol=1e-12)


def test_gradients_are_added_to_those_that_are_there_and_a_step_starts_from_none(small_gpt: BuildGPT) -> None:
    model, batch = small_gpt(dtype=torch.float64), some_batch()
    _, once = accumulated(model, batch, 2)
    stepper_of(model).accumulate_gradients(batch, 0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=0, atol=1e-12)
    loose = {"stage": StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="", grad_clip=1e6)}
    take_step(model, build_optimizer(model, STAGE), batch, **loose)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, once[name], rtol=0, atol=1e-12)


def test_a_step_clips_tells_loss_and_norm_and_moves_by_the_rate(small_gpt: BuildGPT) -> None:
    model, batch = small_gpt(), some_batch()
    loss, grads = accumulated(model, batch, 2)
    norm = torch.cat([grad.flatten() for grad in grads.values()]).norm().item()
    optimizer, before = build_optimizer(model, STAGE), everything(model, build_optimizer(model, STAGE))
    stage = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="", grad_clip=norm / 4)
    result = take_step(model, optimizer, batch, stage=stage, lr=0.01)
    assert result.applied
    assert result.train_loss == pytest.approx(loss, rel=1e-6)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name] / 4, rtol=1e-4, atol=1e-9)
    # AdamW's first step is the rate times the sign of the gradient (with decay 0.1 on matrices).
    bias = "transformer.ln_f.bias"
    moved = before[bias] - model.get_parameter(bias).detach()
    torch.testing.assert_close(moved, 0.01 * grads[bias].sign(), rtol=1e-3, atol=1e-6)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}
    take_step(model, optimizer, batch, lr=0.0)
    after = everything(model, optimizer)
    take_step(model, optimizer, batch, lr=0.0)
    assert all(torch.equal(after[name], parameter) for name, parameter in model.named_parameters())


@STAGES
def test_steps_lower_the_loss(small_gpt: BuildGPT, stage: StageConfig) -> None:
    model, batch = small_gpt(), some_batch()
    optimizer = build_optimizer(model, stage)
    losses = [take_step(model, optimizer, batch, step=step, lr=3e-3).train_loss for step in range(30)]
    assert losses[-1] < losses[0] - 1


def test_dropout_is_a_function_of_seed_step_and_micro_batch_alone(small_gpt: BuildGPT) -> None:
    model, batch = small_gpt(dropout=0.3), some_batch()
    model.train()
    torch.manual_seed(1)
    loss, grads = accumulated(model, batch, 2, seed=(7, 5))
    torch.manual_seed(2)
    torch.rand(3)
    again_loss, again = accumulated(model, batch, 2, seed=(7, 5))
    assert (loss, True) == (again_loss, same(grads, again))
    for other in ((7, 6), (8, 5), (5, 7)):
        assert not same(grads, accumulated(model, batch, 2, seed=other)[1])
    twins = tuple(part[:1].repeat(2, 1) for part in batch)
    alone = tuple(part[:1] for part in batch)
    assert accumulated(model, twins, 1)[0] != pytest.approx(accumulated(model, alone, 1)[0], abs=1e-6)


def test_a_step_draws_dropout_by_the_seed_of_the_stage_and_its_own_number(small_gpt: BuildGPT) -> None:
    model, batch = small_gpt(dropout=0.3), some_batch()
    start = copy.deepcopy(model.state_dict())
    losses = {}
    for seed, step in ((7, 0), (7, 1), (8, 0)):
        model.load_state_dict(start)
        stage = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="", seed=seed)
        losses[seed, step] = take_step(model, build_optimizer(model, stage), batch, stage=stage, step=step).train_loss
        assert losses[seed, step] == pytest.approx(accumulated_from(model, start, batch, (seed, step)), abs=1e-6)
    assert len(set(losses.values())) == 3


def accumulated_from(model: GPT, weights: dict[str, Tensor], batch: Batch, seed: tuple[int, int]) -> float:
    model.load_state_dict(weights)
    return accumulated(model, batch, 2, seed=seed)[0]


def broken_weight(model: GPT) -> None:
    with torch.no_grad():
        model.get_parameter("transformer.h.0.mlp.c_fc.bias")[0] = float("nan")


def infinite_gradient(model: GPT) -> None:
    model.get_parameter("transformer.h.0.ln_1.bias").register_hook(lambda grad: grad * float("inf"))


def gradient_whose_norm_overflows(model: GPT) -> None:
    model.get_parameter("transformer.h.0.ln_1.bias").register_hook(lambda grad: grad.sign() * 1e30)


@pytest.mark.parametrize("fault", [broken_weight, infinite_gradient, gradient_whose_norm_overflows])
@pytest.mark.parametrize("scaling", [False, True])
@STAGES
def test_a_number_that_is_not_finite_moves_nothing(
    small_gpt: BuildGPT, fault: Callable[[GPT], None], scaling: bool, stage: StageConfig
) -> None:
    model = small_gpt()
    optimizer, scaler = build_optimizer(model, stage), torch.amp.GradScaler("cpu", enabled=scaling, init_scale=8.0)
    for step in range(2):
        assert take_step(model, optimizer, some_batch(seed=step), step=step, scaler=scaler).applied
    fault(model)
    before = everything(model, optimizer)
    result = take_step(model, optimizer, some_batch(seed=3), step=3, scaler=scaler)
    assert not result.applied
    after = everything(model, optimizer)
    assert after.keys() == before.keys()
    assert all(tensor.numpy().tobytes() == after[name].numpy().tobytes() for name, tensor in before.items())


def test_the_step_after_a_skipped_one_is_like_any_other(small_gpt: BuildGPT) -> None:
    model = small_gpt()
    optimizer = build_optimizer(model, STAGE)
    hook = model.get_parameter("transformer.ln_f.bias").register_hook(lambda grad: grad * float("nan"))
    assert not take_step(model, optimizer, some_batch()).applied
    hook.remove()
    result = take_step(model, optimizer, some_batch())
    assert result.applied
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def scaled_steps(model: GPT, scaler: torch.amp.GradScaler, stage: StageConfig = STAGE) -> Iterator[StepResult]:
    optimizer = build_optimizer(model, stage)
    for step in range(6):
        yield take_step(model, optimizer, some_batch(seed=step), stage=stage, step=step, scaler=scaler)


@STAGES
def test_loss_scaling_changes_no_digit_of_what_is_learned(small_gpt: BuildGPT, stage: StageConfig) -> None:
    plain, scaled = small_gpt(), small_gpt()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of two: exact
    results = list(scaled_steps(scaled, scaler, stage))
    assert results == list(scaled_steps(plain, FP32.scaler(), stage))
    assert same(scaled.state_dict(), plain.state_dict())
    assert scaler.get_scale() == 1024.0


def test_a_scale_that_is_too_large_is_halved_until_steps_are_taken(small_gpt: BuildGPT) -> None:
    scaler, model = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-20), small_gpt()
    model.get_parameter("transformer.ln_f.bias").register_hook(lambda grad: grad * 1000)
    results = list(scaled_steps(model, scaler))
    assert [result.applied for result in results] == [False, True, True, True, True, True]
    assert scaler.get_scale() == 2.0**107
    assert all(result.train_loss < 100 for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_nearly_the_same(small_gpt: BuildGPT, dtype: torch.dtype) -> None:
    half, batch = Precision(dtype, "a test wants it", "cpu"), some_batch()
    model = small_gpt()
    loss, grads = accumulated(model, batch, 2)
    half_loss, half_grads = accumulated(model, batch, 2, precision=half)
    assert half_loss == pytest.approx(loss, rel=0.01)
    assert half_loss != loss
    for name, grad in grads.items():
        assert half_grads[name].dtype == torch.float32
        assert (half_grads[name] - grad).norm() < 0.05 * grad.norm() + 1e-4, name
    optimizer, scaler = build_optimizer(model, STAGE), half.scaler()
    assert scaler.is_enabled() == (dtype == torch.float16)
    results = [take_step(model, optimizer, batch, step=s, lr=3e-3, precision=half, scaler=scaler) for s in range(20)]
    assert results[-1].applied
    assert results[-1].train_loss < results[0].train_loss - 0.5
