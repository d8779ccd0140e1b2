"""The functions of kernels.c. They are compiled for this CPU at first use (about a second), and loaded in later runs.

Where that is not possible, cpu_kernels() is None and the layers use torch operations: the same mathematics in more
passes through memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from storyladder.layers.compiling import NotCompiled, load_compiled

_SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math: it would hide NaN, which a step must see. Wide vectors: a third faster here on CPUs with AVX-512.
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math"]
_FLAGS += ["-fno-signed-zeros", "-freciprocal-math"]
_WIDE = "-mprefer-vector-width=512"
_DTYPES = (torch.float32, torch.bfloat16)
Part = Literal["attention", "dropout", "gelu", "layer_norm", "loss"]
PARTS: tuple[Part, ...] = get_args(Part)
_switched_off: set[Part] = set()
_LEVELS = 1 << 32
_ROWS = 128  # ROWS in kernels.c: rows per partial sum


class DropoutKey(ctypes.Structure):
    """Chooses which elements are dropped: those whose hash is below the threshold. `Dropout` in kernels.c."""

    _fields_ = (
        ("first", ctypes.c_uint32),
        ("second", ctypes.c_uint32),
        ("threshold", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    )

    @classmethod
    def of(cls, p: float, seed: int) -> DropoutKey:
        """The key for a probability (rounded to a multiple of 2**-32) and a seed of 64 bits."""
        threshold = round(p * _LEVELS)
        return cls(seed % _LEVELS, seed >> 32, threshold, _LEVELS / (_LEVELS - threshold))


class Kernels:
    """The functions of kernels.c for contiguous CPU tensors of float32 or bfloat16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, real, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
        signatures = {
            "gelu": (pointer, pointer, pointer, size, flag),
            "causal_softmax": (pointer, size, size, real, flag),
            "causal_softmax_backward": (pointer, pointer, size, size, real, flag),
            "move_heads": (pointer, pointer, size, size, size, size, size, flag),
            "layer_norm": (pointer, pointer, pointer, pointer, pointer, size, size, real, flag),
            "layer_norm_backward": (pointer, pointer, pointer, pointer, pointer, pointer, size, size, flag),
            "add_dropped": (pointer, pointer, pointer, size, pointer, flag),
            "dropped": (pointer, pointer, size, pointer, flag),
            "cross_entropy": (pointer, pointer, pointer, size, size, real, flag, flag),
        }
        for name, argument_types in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = argument_types, None
        self._library = library

    def gelu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """GELU (tanh form) of x and its derivative there, both of x's shape and dtype."""
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        self._library.gelu(x.data_ptr(), y.data_ptr(), slope.data_ptr(), x.numel(), _is_bf16(x))
        return y, slope

    def causal_softmax_(self, scores_NTT: Tensor, scale: float) -> Tensor:
        """Softmax of scale * scores, in place. Row i covers columns 0 to i; later columns become 0."""
        T = scores_NTT.size(-1)
        self._library.causal_softmax(scores_NTT.data_ptr(), scores_NTT.numel() // T, T, scale, _is_bf16(scores_NTT))
        return scores_NTT

    def causal_softmax_backward_(self, probs_NTT: Tensor, grad_NTT: Tensor, scale: float) -> Tensor:
        """Turn the gradient of the probabilities into that of the scores, in place."""
        T, rows = probs_NTT.size(-1), probs_NTT.numel() // probs_NTT.size(-1)
        pointers = probs_NTT.data_ptr(), grad_NTT.data_ptr()
        self._library.causal_softmax_backward(*pointers, rows, T, scale, _is_bf16(probs_NTT))
        return grad_NTT

    def split_heads(self, x_BTE: Tensor, parts: int, n_head: int) -> Tensor:
        """(B, T, parts * H * D) to (parts, B * H, T, D)."""
        B, T, E = x_BTE.shape
        D = E // parts // n_head
        x_BTE, out = x_BTE.contiguous(), x_BTE.new_empty(parts, B * n_head, T, D)
        pointers = x_BTE.data_ptr(), out.data_ptr()
        self._library.move_heads(*pointers, B, T, parts, n_head, D * out.element_size(), False)
        return out

    def merge_heads(self, x_PNTD: Tensor, n_head: int) -> Tensor:
        """The inverse of split_heads: (parts, B * H, T, D) to (B, T, parts * H * D)."""
        parts, N, T, D = x_PNTD.shape
        x_PNTD, out = x_PNTD.contiguous(), x_PNTD.new_empty(N // n_head, T, parts * n_head * D)
        pointers = x_PNTD.data_ptr(), out.data_ptr()
        self._library.move_heads(*pointers, N // n_head, T, parts, n_head, D * out.element_size(), True)
        return out

    def layer_norm(
        self, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """LayerNorm of float32 x over its last dimension, as `dtype`; and mean and 1 / std of each row, (N, 2)."""
        x, C = x.contiguous(), x.size(-1)
        y, moments_N2 = torch.empty_like(x, dtype=dtype), torch.empty(x.numel() // C, 2)
        pointers = (t.data_ptr() for t in (x, weight_C, bias_C, y, moments_N2))
        self._library.layer_norm(*pointers, len(moments_N2), C, eps, _is_bf16(y))
        return y, moments_N2

    def layer_norm_backward(
        self, grad: Tensor, x: Tensor, weight_C: Tensor, moments_N2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, weight and bias, float32; `grad` is the output's, `moments_N2` comes from layer_norm."""
        grad, x, C, N = grad.contiguous(), x.contiguous(), x.size(-1), len(moments_N2)
        grad_x, partials = torch.empty_like(x), torch.empty(-(-N // _ROWS), 2, C)
        pointers = (t.data_ptr() for t in (grad, x, weight_C, moments_N2, grad_x, partials))
        self._library.layer_norm_backward(*pointers, N, C, _is_bf16(grad))
        grad_weight_C, grad_bias_C = partials.sum(0)
        return grad_x, grad_weight_C, grad_bias_C

    def add_dropped(self, x: Tensor, y: Tensor, key: DropoutKey) -> Tensor:
        """x + dropout(y), for x in float32."""
        x, y = x.contiguous(), y.contiguous()
        out = torch.empty_like(x)
        pointers = x.data_ptr(), y.data_ptr(), out.data_ptr()
        self._library.add_dropped(*pointers, x.numel(), ctypes.byref(key), _is_bf16(y))
        return out

    def dropped(self, y: Tensor, key: DropoutKey, dtype: torch.dtype) -> Tensor:
        """dropout(y) of y in float32, as `dtype`."""
        y = y.contiguous()
        out = torch.empty_like(y, dtype=dtype)
        self._library.dropped(y.data_ptr(), out.data_ptr(), y.numel(), ctypes.byref(key), _is_bf16(out))
        return out

    def cross_entropy_(self, scores_NV: Tensor, targets_N: Tensor, *, last_offset: float, gradient: bool) -> Tensor:
        """Losses in nats, (N,). `last_offset` is added to the last column, except where that is the target.

        With `gradient`, the scores are overwritten with the gradient of the summed losses.
        """
        losses_N = torch.empty(len(scores_NV), dtype=torch.float32)
        pointers = scores_NV.data_ptr(), targets_N.contiguous().data_ptr(), losses_N.data_ptr()
        self._library.cross_entropy(*pointers, *scores_NV.shape, last_offset, gradient, _is_bf16(scores_NV))
        return losses_N


def kernels_for(x: Tensor, part: Part) -> Kernels | None:
    """The kernels, if they can take this tensor (on a CPU, float32 or bfloat16) and `part` of the step uses them.

    None inside torch.compile, which cannot trace them.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in _DTYPES or part in _switched_off:
        return None
    return cpu_kernels()


@contextlib.contextmanager
def without_kernels(*parts: Part) -> Iterator[None]:
    """Inside this `with`, these parts of a step use torch operations: for tests, and to measure what a kernel gains."""
    unknown = set(parts) - set(PARTS)
    assert not unknown, f"no part of a step is called {unknown}"
    added = set(parts) - _switched_off
    _switched_off.update(added)
    try:
        yield
    finally:
        _switched_off.difference_update(added)


def cpu_kernels() -> Kernels | None:
    """The kernels, compiled if necessary; None where that is not possible."""
    return _kernels_or_reason()[0]


def why_no_kernels() -> str:
    """The reason why cpu_kernels() is None, for the user; empty if there are kernels."""
    return _kernels_or_reason()[1]


@functools.cache
def _kernels_or_reason() -> tuple[Kernels | None, str]:
    try:
        # Not every compiler knows the option for wide vectors.
        return Kernels(load_compiled(_SOURCE, ([*_FLAGS, _WIDE], _FLAGS), also=torch.__version__)), ""
    except NotCompiled as error:
        return None, str(error)


def _is_bf16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16
