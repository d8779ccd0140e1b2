"""Dropout whose masks are cheap on a CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """nn.Dropout, with masks on the CPU from numpy's bits: two bytes an element, compared with a threshold.

    torch draws them there one by one and in one thread, which takes about three times as long (LOG.md).
    The probability is p to the nearest 1/65536. The seed comes from torch's generator, so torch.manual_seed rules both.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = round(self.p * _LEVELS)
        bits = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-x.numel() // 4))
        levels = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape)
        keep = (levels >= dropped - _LEVELS // 2).to(x.dtype)
        return x * keep.mul_(_LEVELS / (_LEVELS - dropped))
