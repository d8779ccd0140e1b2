"""What Storyladder is compared with: transformers' GPT-2 of the same shape, and a plain training loop on it."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.corpus.token_file import TrainBatches
from storyladder.learning.schedule import lr_at
from storyladder.runtime.errors import UserError
from storyladder.settings import ModelConfig, StageConfig

_INPUTS_FIRST = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # transformers' Conv1D stores these transposed


def gpt2_of(model: ModelConfig) -> Any:
    """transformers' GPT2LMHeadModel of this shape, with dropout at all four places of GPT-2, randomly initialized."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        install = "python -m pip install -c constraints.txt -r requirements-dev.txt"
        raise UserError(f"the comparison needs transformers, which is not installed; run {install}") from None
    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=model.context_length,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        embd_pdrop=model.dropout,
        resid_pdrop=model.dropout,
        attn_pdrop=model.dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def load_our_weights(gpt2: Any, weights: dict[str, Tensor]) -> None:
    """Load the weights of one of our models into transformers' GPT-2."""
    theirs = {name: tensor.T if name.endswith(_INPUTS_FIRST) else tensor for name, tensor in weights.items()}
    wrong = gpt2.load_state_dict(theirs, strict=False)
    assert not wrong.unexpected_keys and set(wrong.missing_keys) <= {"lm_head.weight"}, wrong


class PlainLoop:
    """One forward for the whole batch, F.cross_entropy on all logits, clip_grad_norm_, AdamW with its defaults."""

    def __init__(
        self,
        model: ModelConfig,
        stage: StageConfig,
        batches: TrainBatches,
        *,
        device: torch.device,
        bf16: bool,
        compiled: bool = False,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self._stage, self._batches, self._device, self._bf16 = stage, batches, device, bf16
        torch.manual_seed(stage.seed)
        self._gpt2 = gpt2_of(model)
        if weights is not None:
            load_our_weights(self._gpt2, weights)
        self._gpt2.to(device).train()
        self._forward = torch.compile(self._gpt2) if compiled else self._gpt2
        parameters = list(self._gpt2.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": stage.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=stage.max_lr, betas=(stage.beta1, stage.beta2), eps=stage.eps)

    def step(self, number: int) -> Tensor:
        """Take one update on batch `number`; returns the loss before it, a scalar in nats per token."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr_at(number, self._stage)
        idx_BT, targets_BT = (torch.from_numpy(part).to(self._device) for part in self._batches.batch(number))
        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16) if self._bf16 else contextlib.nullcontext()
        with autocast:
            logits_BTV = self._forward(input_ids=idx_BT, use_cache=False).logits
            loss: Tensor = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._gpt2.parameters(), self._stage.grad_clip)
        self._optimizer.step()
        return loss.detach()
