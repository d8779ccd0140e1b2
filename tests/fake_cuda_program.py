"""What tests/test_fake_cuda.py starts: the GPU's step on a machine without one, with torch's fake tensors. Prints JSON.

Fake tensors have shapes, types and a device, and no values. What would make the host wait for a GPU (item, nonzero, a
condition) raises, and so does a CPU tensor that meets one of the GPU. A process of its own, since torch is told things
about this machine that are not so. Not a test itself. Usage: python tests/fake_cuda_program.py [--traffic]
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.library import Library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from model import GPT
from storyladder.command_line import load_ladder
from storyladder.learning import step
from storyladder.learning.device_steps import DeviceSteps
from storyladder.learning.loss import fused_entropy_
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.machine import Precision
from storyladder.settings import StageConfig

GPU = torch.device("cuda:0")
CUDA, META = 1, 14  # places of c10::DeviceType
LADDER = load_ladder(None, "default")
STAGE = LADDER.stages[0]
MUON = load_ladder(None, "swift").stages[0]
SEEN = 13_232  # token types of TinyStories' first 8.6 million tokens
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pretend_a_gpu() -> None:
    """Make torch take "cuda:0" for a device that does nothing, autocast and scaler for possible."""
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
    guards = (ctypes.c_void_p * 16).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA] = guards[CUDA] or guards[META]  # the meta device's guard does nothing
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True  # type: ignore[assignment]
    step._backward = backward
    LIBRARY.impl("_fused_adamw_.tensor_lr", lambda *_, **__: None, "Meta")  # which torch has for numbers only


def backward(loss: Tensor) -> None:
    """torch's engine wants streams of a real device; this one calls the same nodes in the same order, in one thread."""
    waiting: dict[Any, int] = {}
    found, seen = [loss.grad_fn], set()
    while found:
        node = found.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:  # type: ignore[union-attr]
            if following is not None:
                waiting[following] = waiting.get(following, 0) + 1
                found.append(following)
    grads: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready: list[Any] = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            given = grads.pop(node)
            call = node if callable(node) else node.apply
            results = call(*(given.get(place) for place in range(max(given) + 1)))
            results = results if isinstance(results, tuple) else (results,)
            for (following, place), grad in zip(
                node.next_functions, results, strict=False
            ):  # None for what is no tensor
                if following is None:
                    continue
                _add(grads.setdefault(following, {}), place, grad, following._input_metadata[place])
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)


def _add(slots: dict[int, Tensor], place: int, grad: Tensor, expected: Any) -> None:
    """Add a gradient in the shape and type of what it is the gradient of, as the engine does."""
    if grad.shape != expected.shape:
        grad = grad.sum_to_size(expected.shape)
    grad = grad.to(expected.dtype)
    slots[place] = slots[place] + grad if place in slots else grad


def parts(
    number_format: str, *, compact: bool, n_layer: int, stage: StageConfig = STAGE
) -> tuple[GPT, torch.optim.Optimizer, dict[str, Any]]:
    """Model, optimizer and the rest of a step on the fake GPU; to be called with fake tensors on."""
    seen = torch.zeros(LADDER.model.vocab_size, dtype=torch.bool)
    seen[:SEEN] = True
    vocabulary = CompactVocabulary(seen if compact else ~torch.zeros_like(seen))
    with FAKE:
        vocabulary.row_V = torch.zeros(len(seen), dtype=torch.int64, device=GPU)
        with GPU:
            model = GPT(dataclasses.replace(LADDER.model, vocab_size=vocabulary.n_rows, n_layer=n_layer))
        precision = Precision(FORMATS[number_format], "it is asked for", "cuda")
        optimizer = build_optimizer(model, stage, precision.matmul_dtype)
        return model, optimizer, {"precision": precision, "vocabulary": vocabulary}


def ahead(
    number_format: str,
    *,
    compact: bool,
    micro: int = STAGE.batch_size,
    n_layer: int = 2,
    stage: StageConfig = STAGE,
) -> DeviceSteps:
    """Steps that run ahead."""
    model, optimizer, rest = parts(number_format, compact=compact, n_layer=n_layer, stage=stage)
    with FAKE:
        stepper = step.Stepper(model, optimizer, stage, micro_batch_size=micro, **rest)
        return DeviceSteps(stepper, [np.zeros(3000, np.uint16)], LADDER.model.context_length, GPU)


def run_ahead(number_format: str, *, compact: bool, micro: int = STAGE.batch_size, stage: StageConfig = STAGE) -> str:
    """One update between two looks at the losses."""
    steps = ahead(number_format, compact=compact, micro=micro, stage=stage)
    with FAKE:
        steps._step()
    return f"ran on {steps._results.device}"


def rows_of_chunks() -> str:
    """Rows of scores that exist at a time: a compiler makes kernels for each number."""
    steps = ahead("bf16", compact=False)
    rows: list[int] = []
    real = steps._entropy

    def watched(scores_RV: Tensor, *rest: Any) -> Tensor:
        rows.append(len(scores_RV))
        return real(scores_RV, *rest)

    steps._entropy = watched
    with FAKE:
        steps._step()
    return f"{rows}"


def stops_at(number_format: str) -> str:
    """A single step, up to where the host asks for its loss: the line that it stops at."""
    model, optimizer, rest = parts(number_format, compact=True, n_layer=2)
    scaler = rest["precision"].scaler()
    assert scaler.is_enabled() == (number_format == "fp16")
    with FAKE:
        idx_BT = torch.zeros(STAGE.batch_size, LADDER.model.context_length, dtype=torch.int64, device=GPU)
        try:
            step.Stepper(model, optimizer, STAGE, micro_batch_size=16, **rest).step((idx_BT, idx_BT), 0, 1e-3)
        except DataDependentOutputException as error:
            frames = traceback.extract_tb(error.__traceback__)
            return next(str(frame.line) for frame in reversed(frames) if frame.filename == step.__file__)
    return "it never asks"


def graphs_of_compiled() -> str:
    """How many graphs the compiler makes of what it is given on a GPU; it raises where it had to break one."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model, _, rest = parts("bf16", compact=False, n_layer=2)
    with FAKE:
        hidden = torch.compile(model.hidden, dynamic=False, fullgraph=True, backend=keep)
        with rest["precision"].autocast():
            hidden(torch.zeros(2, LADDER.model.context_length, dtype=torch.int64, device=GPU))
        entropy = torch.compile(fused_entropy_, dynamic=False, fullgraph=True, backend=keep)
        with torch.no_grad():
            scores = torch.zeros(64, 50_304, dtype=torch.bfloat16, device=GPU)
            entropy(scores[:, :50_257], torch.zeros(64, dtype=torch.int64, device=GPU), 1.0, True)
    return f"{len(graphs)} graphs"


class Traffic(TorchDispatchMode):
    """Adds up the bytes that operations read and write, as if no two were ever made one."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view and "empty" not in str(func) and "view" not in str(func):
            flat = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.bytes += sum(each.numel() * each.element_size() for each in flat if isinstance(each, Tensor))
        return out


def traffic() -> dict[str, dict[str, float]]:
    """FLOPs of the products of a whole default step in bf16, and bytes that it moves, operation by operation."""
    found = {}
    for name, compact in (("whole vocabulary", False), ("compact vocabulary", True)):
        steps = ahead("bf16", compact=compact, n_layer=LADDER.model.n_layer)
        with FAKE, FlopCounterMode(display=False) as flops, Traffic() as moved:
            steps._step()
        found[name] = {"flops": flops.get_total_flops(), "bytes": moved.bytes}
    return found


FAKE = FakeTensorMode()
LIBRARY = Library("aten", "IMPL")

if __name__ == "__main__":
    pretend_a_gpu()
    if "--traffic" in sys.argv:
        print(json.dumps(traffic()))
        sys.exit()
    cases: dict[str, Callable[[], str]] = {
        "bf16, compact": lambda: run_ahead("bf16", compact=True),
        "bf16, whole": lambda: run_ahead("bf16", compact=False),
        "bf16, compact, two micro-batches": lambda: run_ahead("bf16", compact=True, micro=16),
        "bf16, compact, Muon": lambda: run_ahead("bf16", compact=True, stage=MUON),
        "fp32, compact": lambda: run_ahead("fp32", compact=True),
        "fp32, whole": lambda: run_ahead("fp32", compact=False),
        "fp16, single": lambda: stops_at("fp16"),
        "bf16, single": lambda: stops_at("bf16"),
        "chunks": rows_of_chunks,
        "compiled": graphs_of_compiled,
    }
    answers = {}
    for name, case in cases.items():
        try:
            answers[name] = case()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in where if "site-packages" not in frame.filename]
            answers[name] = f"{type(error).__name__} at {Path(ours[-1].filename).name}: {ours[-1].line}: {error}"[:400]
    print(json.dumps(answers))
