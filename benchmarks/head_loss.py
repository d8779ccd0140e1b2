"""Forward and backward of head and cross-entropy in several variants: our chunks, torch, liger-kernel.

    python benchmarks/head_loss.py            print a table, update RESULTS.md
    python benchmarks/head_loss.py --json     the same, with one JSON object as the last line

8,192 tokens (512 on a CPU) of width 336 against all 50,257 rows, in bf16 on a GPU, as in a step of the default model.
The variants take turns; times are medians. Peak memory does not count the inputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from storyladder.runtime.errors import user_errors

_TOKENS = {"cuda": 8192, "cpu": 512}  # a whole step on a GPU, part of one on a CPU
_WIDTH, _ROWS = 336, 50_257
_WARMUPS, _TURNS = 3, 12


def forms(device_type: str) -> dict[str, Callable[..., Any]]:
    """Functions by name, from (hidden_NC, weight_VC, targets_N) to the mean loss; only what is installed."""
    import torch
    from torch.nn import functional as F

    from storyladder.learning.loss import fused_entropy_, next_token_loss

    def ours(hidden: Any, weight: Any, targets: Any, entropy: Any = None) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=device_type == "cuda"):
            return next_token_loss(hidden[None], weight, targets[None], entropy=entropy) / len(targets)

    def plain(hidden: Any, weight: Any, targets: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=device_type == "cuda"):
            return F.cross_entropy(F.linear(hidden, weight), targets)

    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    found: dict[str, Callable[..., Any]] = {"chunks (ours), plain ops": ours, "F.cross_entropy": plain}
    if device_type == "cuda":
        fused = torch.compile(fused_entropy_, dynamic=False)
        found["chunks (ours), compiled"] = lambda hidden, weight, targets: ours(hidden, weight, targets, fused)
        found["F.cross_entropy, compiled"] = torch.compile(plain, dynamic=False)
    if hasattr(F, "linear_cross_entropy"):
        fused_form = F.linear_cross_entropy
        found["F.linear_cross_entropy"] = lambda hidden, weight, targets: fused_form(
            hidden.to(dtype), weight.to(dtype), targets
        )
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return found
    found["liger-kernel"] = lambda hidden, weight, targets: liger_fused_linear_cross_entropy(
        hidden.to(dtype), weight.to(dtype), targets
    )
    return found


def measure(device: Any) -> list[dict[str, Any]]:
    """One row per variant, measured in turns."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = _TOKENS.get(device.type, 512)
    hidden = torch.randn(tokens, _WIDTH, generator=generator).to(device).requires_grad_()
    weight = (0.02 * torch.randn(_ROWS, _WIDTH, generator=generator)).to(device).requires_grad_()
    targets = torch.randint(_ROWS, (tokens,), generator=generator).to(device)
    calls = forms(device.type)
    rows: list[dict[str, Any]] = [{"form": name, "seconds": [], "note": ""} for name in calls]
    for turn in range(_WARMUPS + _TURNS):
        for row in rows:
            if row["note"]:
                continue
            try:
                reading = _timed(calls[row["form"]], hidden, weight, targets)
            except Exception as error:  # a kernel that fails on this GPU is a result too
                row["note"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
                continue
            row |= {key: reading[key] for key in ("loss", "peak_gb", "norm")}
            if turn >= _WARMUPS:
                row["seconds"].append(reading["seconds"])
    return rows


def _timed(form: Callable[..., Any], hidden: Any, weight: Any, targets: Any) -> dict[str, Any]:
    """Time forward and backward in seconds; loss, gradient norm of the weight and peak memory in GB."""
    import torch

    hidden.grad = weight.grad = None
    on_gpu = hidden.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    tick = time.perf_counter()
    loss = form(hidden, weight, targets)
    loss.backward()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - tick
    peak = (torch.cuda.max_memory_allocated() - before) / 1e9 if on_gpu else None
    return {"seconds": seconds, "loss": float(loss.detach()), "norm": float(weight.grad.norm()), "peak_gb": peak}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a Markdown table."""
    lines = ["| variant | ms (min to max) | n | loss | grad norm | peak GB |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        if row["note"] or not row["seconds"]:
            lines.append(f"| {row['form']} | not measured: {row['note']} | | | | |")
            continue
        times = [1e3 * value for value in row["seconds"]]
        peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.2f}"
        spread = f"{statistics.median(times):.3g} ({min(times):.3g} to {max(times):.3g})"
        lines.append(f"| {row['form']} | {spread} | {len(times)} | {row['loss']:.5f} | {row['norm']:.5f} | {peak} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors():
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
        parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
        parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
        flags = parser.parse_args(argv)
        from storyladder.runtime.machine import pick_device

        rows = measure(pick_device(flags.device))
        lines = [hardware_line() + ".", "", "    python benchmarks/head_loss.py", "", *table(rows)]
        print("\n".join(lines))
        if not flags.no_results:
            write_section("Head and cross-entropy", lines)
        if flags.json:
            print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
