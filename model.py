"""The network: GPT-2's decoder, token ids in, next-token scores out. It knows no files, devices, losses or sampling.

Tensor names carry their shape: B sequences, T tokens, C width (n_embd), H heads, D width of a head, V tokens of the
vocabulary. Bare `x` is the residual stream (B, T, C). Parameter names are GPT-2's; sizes stand in config.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyladder.learning.activation import gelu
from storyladder.learning.attention import causal_attention, merge_heads, split_heads
from storyladder.learning.dropout import Dropout
from storyladder.learning.layer_norm import LayerNorm
from storyladder.learning.linear import Linear
from storyladder.settings import ModelConfig


class Attention(nn.Module):
    """Causal self-attention: every token looks at itself and the tokens before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # queries, keys and values in one product
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        qkv_BTE = self.c_attn(x)
        if past is None:
            return self.c_proj(causal_attention(qkv_BTE, self.n_head))  # type: ignore[no-any-return]
        q_BHTD, k_BHTD, v_BHTD = split_heads(qkv_BTE, self.n_head)
        T = x.size(1)
        if past:
            assert T == 1, "after the first call a cached model reads one token at a time"
            k_BHTD = torch.cat((past[0], k_BHTD), dim=2)
            v_BHTD = torch.cat((past[1], v_BHTD), dim=2)
        past[:] = [k_BHTD, v_BHTD]
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=T > 1)
        return self.c_proj(merge_heads(y_BHTD))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Each token thinks for itself, four times as wide."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        x = self.drop(self.attn(self.ln_1(x), past), onto=x)
        return self.drop(self.mlp(self.ln_2(x)), onto=x)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """The whole decoder. The output head is the token embedding itself (tied), so it has no weights of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.context_length, config.n_embd),
                "drop": Dropout(config.dropout),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self._initialise()

    @property
    def head_weight(self) -> Tensor:
        """Weights of the output head, (V, C): the token embedding's."""
        weight = self.transformer["wte"].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, idx_BT: Tensor) -> Tensor:
        """Scores of the next token after every position, (B, T, V)."""
        return F.linear(self.hidden(idx_BT), self.head_weight)

    def hidden(self, idx_BT: Tensor, cache: list[list[Tensor]] | None = None) -> Tensor:
        """What stands before the output head, (B, T, C).

        With `cache` (a list of n_layer empty lists at first) keys and values are kept in it: the first call reads the
        prompt, every later call one token more.
        """
        T = idx_BT.size(1)
        start = cache[0][0].size(2) if cache and cache[0] else 0
        if start + T > self.config.context_length:
            raise ValueError(f"{start + T} tokens, but the context is {self.config.context_length}")
        positions_T = torch.arange(start, start + T, device=idx_BT.device)
        x = self.transformer["drop"](self.transformer["wte"](idx_BT) + self.transformer["wpe"](positions_T))
        blocks = self.transformer["h"]
        assert isinstance(blocks, nn.ModuleList)
        for layer, block in enumerate(blocks):
            x = block(x, None if cache is None else cache[layer])
        return self.transformer["ln_f"](x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _initialise(self) -> None:
        """GPT-2's: normal(0, 0.02), biases 0, and residual projections smaller by sqrt(2 n_layer)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(mean=0.0, std=residual_std if name.endswith("c_proj.weight") else 0.02)
