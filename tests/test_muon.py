"""Muon against torch's own, its iteration against the singular value decomposition, and what it leaves to AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from conftest import MUON
from stages import run_of, with_stage
from steppers import everything
from torch import Tensor

from model import GPT
from storyladder.learning.muon import POLAR_EXPRESS, Muon, orthogonalized
from storyladder.learning.network import EMBEDDING, POSITIONS
from storyladder.learning.optimizer import build_optimizer, make_moments, set_rate
from storyladder.runtime.distributed import ALONE
from storyladder.runtime.machine import Precision
from storyladder.runtime.signals import StopRequest
from storyladder.settings import Ladder, StageConfig
from storyladder.stage.setup import set_up

BuildGPT = Callable[..., GPT]
STAGE = StageConfig(
    name="tiny",
    corpus="tiny",
    script="train_tiny.py",
    result_file="",
    optimizer="muon",
    max_lr=0.25,
    wte_lr=0.5,
    wpe_lr=0.125,
    vector_lr=0.0625,
    weight_decay=0.125,
    beta1=0.5,
    beta2=0.75,
    eps=1e-3,
    momentum=0.9,
)
A, B, C = 3.4445, -4.7750, 2.0315  # of torch.optim.Muon, which leaves no room of 2 % at the start
QUINTIC = [(1.02 * A, 1.02**3 * B, 1.02**5 * C), *[(A, B, C)] * 4]


def give_gradients(model: GPT, seed: int) -> None:
    """Random ones, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 10 ** (seed % 3)


def hidden_matrices(model: GPT) -> Iterator[tuple[str, Tensor]]:
    yield from (
        (name, parameter)
        for name, parameter in model.named_parameters()
        if ".h." in name and name.endswith("weight") and "ln_" not in name
    )


def apart(name: str, tensor: Tensor) -> list[Tensor]:
    """Queries, keys and values of c_attn; any other matrix as it is."""
    return list(tensor.chunk(3)) if "c_attn" in name else [tensor]


# --- the iteration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 96)])
def test_the_iteration_keeps_singular_vectors_and_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    core = U.mT @ orthogonalized(G, torch.float64) @ Vh.mT
    values = core.diagonal(dim1=-2, dim2=-1)
    off = core - torch.diag_embed(values)
    assert off.abs().max() < 1e-9
    assert (values - 1)[(S / S.max()) > 0.01].abs().max() < 0.15
    assert not torch.allclose(values, torch.ones_like(values), atol=1e-3)  # it is near, not there


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_changes_the_iteration_by_its_rounding_only(dtype: torch.dtype) -> None:
    G = torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(1))
    exact, found = orthogonalized(G.double(), torch.float64), orthogonalized(G, dtype)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < {torch.bfloat16: 0.03, torch.float32: 1e-5}[dtype] * exact.norm()


def test_the_iteration_knows_no_scale_and_leaves_zeros() -> None:
    G = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        orthogonalized(1e-4 * G, torch.float32), orthogonalized(G, torch.float32), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(orthogonalized(0 * G, torch.float32), 0 * G)


# --- the optimizer ----------------------------------------------------------------------------------------------------


def test_it_moves_hidden_matrices_as_torchs_own_does_with_queries_keys_and_values_apart(small_gpt: BuildGPT) -> None:
    model, twin = small_gpt(), small_gpt()
    ours = build_optimizer(model, STAGE, torch.bfloat16)
    assert isinstance(ours, Muon)
    ours._polynomials = QUINTIC
    split = {
        name: [torch.nn.Parameter(p.detach().clone()) for p in apart(name, q)] for name, q in hidden_matrices(twin)
    }
    theirs = torch.optim.Muon(
        [part for parts in split.values() for part in parts], lr=0.25, weight_decay=0.125, momentum=0.9
    )
    for step, lr in enumerate([0.25, 0.125, 0.5, 0.25]):
        give_gradients(model, step)
        for name, parameter in hidden_matrices(model):
            for part, grad in zip(split[name], apart(name, parameter.grad), strict=True):
                part.grad = grad.clone()
        set_rate(ours, lr)
        set_rate_of_torchs(theirs, lr)
        before = {name: parameter.detach().clone() for name, parameter in hidden_matrices(model)}
        ours.step()
        theirs.step()
        for name, parameter in hidden_matrices(model):
            expected = torch.cat([part.detach() for part in split[name]])
            moved = (expected - before[name]).norm()
            assert (parameter.detach() - expected).norm() < 0.04 * (step + 1) * moved, (step, name)
            momentum = torch.cat([theirs.state[part]["momentum_buffer"] for part in split[name]])
            torch.testing.assert_close(ours.state[parameter]["momentum"], momentum)


def set_rate_of_torchs(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def test_everything_else_moves_as_adamw_moves_it_each_part_by_its_own_rate(small_gpt: BuildGPT) -> None:
    model, twin = small_gpt(), small_gpt()
    ours = build_optimizer(model, STAGE)
    hidden = {name for name, _ in hidden_matrices(model)}
    assert len(hidden) == 8
    shares = {EMBEDDING: 2.0, POSITIONS: 0.5}
    alone = {
        name: torch.optim.AdamW(
            [parameter],
            lr=1.0,
            betas=(0.5, 0.75),
            eps=1e-3,
            weight_decay=0.125 if parameter.dim() > 1 else 0.0,
        )
        for name, parameter in twin.named_parameters()
        if name not in hidden
    }
    for step, lr in enumerate([0.25, 0.125, 0.5]):
        give_gradients(model, step)
        give_gradients(twin, step)
        set_rate(ours, lr)
        ours.step()
        for name, optimizer in alone.items():
            set_rate_of_torchs(optimizer, lr * shares.get(name, 0.25))
            optimizer.step()
            torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name), msg=name)


def test_every_parameter_is_moved_once(small_gpt: BuildGPT) -> None:
    model = small_gpt()
    optimizer = build_optimizer(model, STAGE)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    (muon,) = (group for group in optimizer.param_groups if "parts" in group)
    assert {id(parameter) for parameter in muon["params"]} == {id(p) for _, p in hidden_matrices(model)}
    assert sorted(muon["parts"]) == [1] * 6 + [3] * 2


def test_matrices_of_all_layers_go_together_and_none_touches_another(small_gpt: BuildGPT) -> None:
    """A layer's update is the same whatever stands in the others, also to the last digit."""
    model, other = small_gpt(), small_gpt()
    for each in (model, other):
        give_gradients(each, 0)
    other.get_parameter("transformer.h.1.attn.c_proj.weight").grad *= -3  # type: ignore[operator]
    for each in (model, other):
        build_optimizer(each, STAGE).step()
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, other.get_parameter(name))
        assert same == (name != "transformer.h.1.attn.c_proj.weight"), name


@pytest.mark.parametrize("made_before", [False, True])
def test_where_found_inf_is_one_nothing_moves_and_nothing_is_remembered(small_gpt: BuildGPT, made_before: bool) -> None:
    model = small_gpt()
    optimizer = build_optimizer(model, STAGE)
    assert isinstance(optimizer, Muon)
    give_gradients(model, 0)
    if made_before:
        optimizer.step()
    make_moments(optimizer)
    give_gradients(model, 1)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = float("nan")
    before = everything(model, optimizer)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in everything(model, optimizer).items())
    optimizer.found_inf = torch.zeros(())
    give_gradients(model, 1)
    optimizer.step()
    after = everything(model, optimizer)
    assert all(not torch.equal(tensor, before[name]) and tensor.isfinite().all() for name, tensor in after.items())


def test_a_rate_on_the_device_moves_as_a_number_does(small_gpt: BuildGPT) -> None:
    models = [small_gpt(), small_gpt()]
    for model, lr in zip(models, (0.375, torch.tensor(0.375)), strict=True):
        give_gradients(model, 0)
        optimizer = build_optimizer(model, STAGE)
        set_rate(optimizer, lr)
        optimizer.step()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_moments_made_ahead_are_those_of_the_first_update_and_move_nothing(small_gpt: BuildGPT) -> None:
    model, twin = small_gpt(), small_gpt()
    for each in (model, twin):
        give_gradients(each, 0)
    optimizer, plain = build_optimizer(model, STAGE), build_optimizer(twin, STAGE)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    make_moments(optimizer)
    made = everything(model, optimizer)
    assert all(torch.equal(made[name], tensor) for name, tensor in start.items())
    assert not any(tensor.any() for name, tensor in made.items() if " of " in name)
    for _ in range(2):
        optimizer.step()
        plain.step()
        make_moments(optimizer)  # those that are there stay
        expected = everything(twin, plain)
        assert made.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in everything(model, optimizer).items())


def test_float64_is_multiplied_in_float64(small_gpt: BuildGPT) -> None:
    exact, rounded = small_gpt(dtype=torch.float64), small_gpt(dtype=torch.float64)
    for model, dtype in ((exact, torch.float32), (rounded, torch.bfloat16)):
        give_gradients(model, 0)
        build_optimizer(model, STAGE, dtype).step()
    assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), rounded.parameters(), strict=True))


def test_adamw_stays_what_it_was_and_takes_rates_of_its_own_too(small_gpt: BuildGPT) -> None:
    plain = build_optimizer(small_gpt(), replace(STAGE, optimizer="adamw", wte_lr=None, wpe_lr=None, vector_lr=None))
    assert type(plain) is torch.optim.AdamW and len(plain.param_groups) == 2
    assert {group["lr_share"] for group in plain.param_groups} == {1.0}
    parts = build_optimizer(small_gpt(), replace(STAGE, optimizer="adamw"))
    assert type(parts) is torch.optim.AdamW
    assert sorted(group["lr_share"] for group in parts.param_groups) == [0.25, 0.5, 1.0, 2.0]


def test_a_stage_beyond_its_horizon_decays_less(small_gpt: BuildGPT) -> None:
    stage = replace(STAGE, max_steps=3200, lr_horizon=100)
    decays = {group["weight_decay"] for group in build_optimizer(small_gpt(), stage).param_groups}
    assert sorted(decays) == pytest.approx([0.0, 0.125 * 0.0947322854])


def test_a_stage_multiplies_in_its_precision(toy_data: Ladder) -> None:
    run = run_of(with_stage(toy_data, **MUON), precision="bf16")
    stage, _ = set_up(run, GPT, StopRequest(), ALONE)
    assert isinstance(stage.learner.optimizer, Muon) and stage.learner.optimizer._matmul_dtype == torch.bfloat16
    formats = [Precision(dtype, "", "cpu").matmul_dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)]
    assert formats == [torch.bfloat16, torch.float32, torch.float32]


def test_the_polynomials_are_those_of_the_paper() -> None:
    """Applied one after the other to numbers: what a singular value becomes."""
    x = torch.logspace(-3, 0, 500, dtype=torch.float64) / 1.02
    for a, b, c in POLAR_EXPRESS:
        x = a * x + b * x**3 + c * x**5
    assert x.min() > 0.84 and x.max() < 1.16
