"""The interface of a network. model.py's GPT has it; any other network that has it can replace GPT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from storyladder.settings import ModelConfig


class LanguageModel(Protocol):
    """A decoder whose head is tied to its embedding `transformer.wte`."""

    config: ModelConfig

    @property
    def head_weight(self) -> Tensor:
        """Weights of the output head, (V, C)."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""

    def hidden(self, idx_BT: Tensor, cache: list[list[Tensor]] | None = None) -> Tensor:
        """The input of the output head, (B, T, C)."""

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def to(self, device: torch.device) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


BuildModel = Callable[[ModelConfig], LanguageModel]
EMBEDDING = "transformer.wte.weight"  # one row per token
POSITIONS = "transformer.wpe.weight"  # one row per position
