"""The network: its size, its causality, its cache, and that it is GPT-2 to the last digit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from model import GPT, Attention
from storyladder.layers import Dropout, DropoutAdd
from storyladder.settings import ModelConfig

BuildGPT = Callable[..., GPT]


def some_ids(*shape: int, types: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randint(types, shape, generator=torch.Generator().manual_seed(seed))


def test_the_default_model_has_exactly_27846000_parameters() -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 27_846_000
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 27_846_000
    assert ModelConfig().n_params == 27_846_000


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2, 2), (3, 2, 6, 5, 7), (2, 4, 32, 16, 100), (5, 1, 10, 9, 11)])
def test_the_settings_know_the_number_of_parameters(sizes: tuple[int, ...]) -> None:
    names = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")
    config = ModelConfig(**dict(zip(names, sizes, strict=True)))
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GPT(config).parameters()) == config.n_params


@torch.no_grad()
def test_the_future_cannot_change_the_past(small_gpt: BuildGPT) -> None:
    model = small_gpt()
    idx_BT = some_ids(3, 16)
    before_BTV = model(idx_BT)
    for changed in range(16):
        other_BT = idx_BT.clone()
        other_BT[:, changed] = (other_BT[:, changed] + 1) % 40
        after_BTV = model(other_BT)
        assert torch.equal(after_BTV[:, :changed], before_BTV[:, :changed])
        different_BT = (after_BTV != before_BTV).any(dim=2)
        assert different_BT[:, changed:].all()


@torch.no_grad()
def test_one_story_does_not_see_its_neighbours(small_gpt: BuildGPT) -> None:
    model = small_gpt(dtype=torch.float64)
    idx_BT = some_ids(3, 16)
    alone = torch.cat([model(row[None]) for row in idx_BT])
    torch.testing.assert_close(model(idx_BT), alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_untrained_model_is_as_unsure_as_a_die_with_v_sides() -> None:
    torch.manual_seed(0)
    for vocab_size in (100, 50257):
        model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=vocab_size)).eval()
        idx_BT = some_ids(8, 17, types=vocab_size)
        loss = F.cross_entropy(model(idx_BT[:, :-1]).flatten(0, 1), idx_BT[:, 1:].flatten())
        assert loss.item() == pytest.approx(math.log(vocab_size), abs=0.03)


def test_the_head_is_the_embedding_and_stays_it_when_weights_are_loaded(small_gpt: BuildGPT) -> None:
    model, other = small_gpt(seed=0), small_gpt(seed=1)
    model.load_state_dict(other.state_dict())
    embedding = model.transformer["wte"].weight
    assert model.head_weight is embedding
    assert torch.equal(embedding, other.head_weight)
    assert embedding.data_ptr() != other.head_weight.data_ptr()
    idx_BT = some_ids(2, 5)
    assert torch.equal(model(idx_BT), F.linear(model.hidden(idx_BT), embedding))
    with torch.no_grad():
        embedding[39] = 0.0
    assert not model(idx_BT)[..., 39].any()


def test_weights_start_as_gpt2s_do() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=8, n_head=4, n_embd=128, context_length=256, vocab_size=500))
    kinds = set()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            kinds.add("bias")
            assert not parameter.any(), name
        elif "ln_" in name:
            kinds.add("norm")
            assert (parameter == 1).all(), name
        else:
            kinds.add("residual" if "c_proj" in name else "matrix")
            # sqrt(2 * 8 layers) is 4. A sample deviation of 16,384 or more numbers is off by more than 3 % never.
            assert parameter.std().item() == pytest.approx(0.005 if "c_proj" in name else 0.02, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.001, name
    assert kinds == {"bias", "norm", "residual", "matrix"}


def test_a_text_longer_than_the_context_is_refused(small_gpt: BuildGPT) -> None:
    model = small_gpt()
    assert model(some_ids(1, 16)).shape == (1, 16, 40)
    with pytest.raises(ValueError, match="17 tokens, but the context is 16"):
        model(some_ids(1, 17))


def naive_attention(attention: Attention, x_TC: torch.Tensor) -> torch.Tensor:
    """One sequence, one head and one position at a time, as the paper says it."""
    T, C = x_TC.shape
    D = C // attention.n_head
    qkv_T3C = x_TC @ attention.c_attn.weight.T + attention.c_attn.bias
    mixed_TC = torch.zeros_like(x_TC)
    for head in range(attention.n_head):
        q_TD, k_TD, v_TD = (qkv_T3C[:, part * C + head * D : part * C + (head + 1) * D] for part in range(3))
        for t in range(T):
            weights = torch.stack([torch.dot(q_TD[t], k_TD[s]) / math.sqrt(D) for s in range(t + 1)]).exp()
            mixed_TC[t, head * D : (head + 1) * D] = (weights / weights.sum()) @ v_TD[: t + 1]
    return mixed_TC @ attention.c_proj.weight.T + attention.c_proj.bias


@torch.no_grad()
@pytest.mark.parametrize("n_head", [1, 2, 4])
def test_attention_equals_a_naive_one(small_gpt: BuildGPT, n_head: int) -> None:
    attention = small_gpt(n_head=n_head, dtype=torch.float64).transformer["h"][1].attn
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    expected = torch.stack([naive_attention(attention, x_TC) for x_TC in x])
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 7, 16])
def test_the_cached_model_equals_the_uncached_at_every_position(small_gpt: BuildGPT, prompt: int) -> None:
    model = small_gpt(dtype=torch.float64, n_layer=3)
    idx_BT = some_ids(2, 16)
    cache: list[list[torch.Tensor]] = [[] for _ in range(3)]
    parts = [model.hidden(idx_BT[:, :prompt], cache)]
    parts += [model.hidden(idx_BT[:, t : t + 1], cache) for t in range(prompt, 16)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(idx_BT), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="17 tokens, but the context is 16"):
        model.hidden(idx_BT[:, :1], cache)


@torch.no_grad()
def test_a_filled_cache_takes_one_token_at_a_time(small_gpt: BuildGPT) -> None:
    model = small_gpt()
    cache: list[list[torch.Tensor]] = [[], []]
    model.hidden(some_ids(1, 3), cache)
    with pytest.raises(AssertionError, match="one token at a time"):
        model.hidden(some_ids(1, 2), cache)


def test_dropout_acts_on_the_embedding_and_on_both_branches_of_every_block(small_gpt: BuildGPT) -> None:
    model = small_gpt(n_layer=3, dropout=0.5)
    zeros: list[float] = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        unchanged = inputs[0] if isinstance(module, DropoutAdd) else 0
        zeros.append((out == unchanged).float().mean())

    for module in model.modules():
        if isinstance(module, (Dropout, DropoutAdd)):
            module.register_forward_hook(count)
    model(some_ids(4, 16))
    assert len(zeros) == 1 + 2 * 3
    assert all(0.4 < share < 0.6 for share in zeros)
    zeros.clear()
    model.eval()
    assert torch.equal(model(some_ids(4, 16)), model(some_ids(4, 16)))
    assert not any(zeros)


def test_it_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=40, dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    idx_BT = some_ids(4, 17)
    for _ in range(80):
        loss = F.cross_entropy(model(idx_BT[:, :-1]).flatten(0, 1), idx_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_it_is_gpt2_by_names_and_by_numbers(small_gpt: BuildGPT) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = small_gpt().eval()
    names = set(theirs.state_dict()) - {"lm_head.weight"}  # the tied head, once more
    assert names == set(ours.state_dict())
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # Conv1D keeps inputs first
    theirs.load_state_dict(
        {name: tensor.T if name.endswith(transposed) else tensor for name, tensor in ours.state_dict().items()},
        strict=False,
    )
    idx_BT = some_ids(3, 16)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        difference = theirs.to(dtype)(idx_BT).logits - ours.to(dtype)(idx_BT)
        assert difference.abs().max() < tolerance
