"""The network: GPT-2's decoder, token ids in, next-token scores out. It knows no files, devices, losses or sampling.

Tensor names carry their shape: B sequences, T tokens, C width (n_embd), H heads, D width of a head, V tokens of the
vocabulary. Bare `x` is the residual stream (B, T, C). Parameter names are GPT-2's; sizes are set in config.py.

What comes from storyladder.layers computes the formula in the comment next to it, on a CPU faster than torch does.
Linear layers and embeddings are torch's: a linear layer of our own gained 3 % of a step at most.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyladder.layers import Dropout, DropoutAdd, LayerNorm, causal_attention, gelu, merge_heads, split_heads
from storyladder.settings import ModelConfig


class Attention(nn.Module):
    """Causal self-attention: every token looks at itself and the tokens before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # queries, keys and values in one matmul
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        qkv_BTE = self.c_attn(x)
        # In every head: softmax(q @ k.T / sqrt(D) + causal mask) @ v
        y_BTC: Tensor = causal_attention(qkv_BTE, self.n_head) if past is None else self._with_cache(qkv_BTE, past)
        y_BTC = self.c_proj(y_BTC)
        return y_BTC

    def _with_cache(self, qkv_BTE: Tensor, past: list[Tensor]) -> Tensor:
        """The same, with the keys and values of earlier calls in `past`, to which new ones are added."""
        q_BHTD, k_BHTD, v_BHTD = split_heads(qkv_BTE, self.n_head)
        T = qkv_BTE.size(1)
        if past:
            assert T == 1, "after the first call a cached model reads one token at a time"
            k_BHTD = torch.cat((past[0], k_BHTD), dim=2)
            v_BHTD = torch.cat((past[1], v_BHTD), dim=2)
        past[:] = [k_BHTD, v_BHTD]
        return merge_heads(F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=T > 1))


class MLP(nn.Module):
    """Each token on its own, four times as wide."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_fc(x)
        y = gelu(y)  # y / 2 * (1 + tanh(sqrt(2 / pi) * (y + 0.044715 * y**3)))
        y = self.c_proj(y)
        return y


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd)  # (x - mean) / sqrt(variance + 1e-5) * weight + bias for every token
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd)
        self.mlp = MLP(config)
        self.residual = DropoutAdd(config.dropout)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        x = self.residual(x, self.attn(self.ln_1(x), past))  # x = x + dropout(attn(ln_1(x)))
        x = self.residual(x, self.mlp(self.ln_2(x)))  # x = x + dropout(mlp(ln_2(x)))
        return x


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
                "ln_f": nn.LayerNorm(config.n_embd),  # torch's: the loss wants float32, ours would round to bf16
            }
        )
        self._initialize()

    @property
    def head_weight(self) -> Tensor:
        """Weights of the output head, (V, C): the token embedding's."""
        weight = self.transformer["wte"].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, idx_BT: Tensor) -> Tensor:
        """Scores of the next token after every position, (B, T, V). Training calls `hidden` and fuses head and loss."""
        return F.linear(self.hidden(idx_BT), self.head_weight)

    def hidden(self, idx_BT: Tensor, cache: list[list[Tensor]] | None = None) -> Tensor:
        """The input of the output head, (B, T, C); ValueError for more tokens than the context has.

        `cache` (at first a list of n_layer empty lists) stores keys and values: the first call reads the prompt, every
        later call one more token.
        """
        T = idx_BT.size(1)
        start = cache[0][0].size(2) if cache and cache[0] else 0
        if start + T > self.config.context_length:
            raise ValueError(f"{start + T} tokens, but the context is {self.config.context_length}")
        positions_T = torch.arange(start, start + T, device=idx_BT.device)
        x: Tensor = self.transformer["wte"](idx_BT) + self.transformer["wpe"](positions_T)
        x = self.transformer["drop"](x)
        for layer, block in enumerate(self.transformer["h"].children()):
            x = block(x, None if cache is None else cache[layer])
        x = self.transformer["ln_f"](x)
        return x

    @torch.no_grad()
    def _initialize(self) -> None:
        """As in GPT-2: normal(0, 0.02), biases 0, and residual projections smaller by sqrt(2 n_layer)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(mean=0.0, std=residual_std if name.endswith("c_proj.weight") else 0.02)
