"""benchmarks/RESULTS.md, a section for every benchmark, and the line that says on what it was measured."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
_HEAD = "# Results\n\nWritten by the scripts of this folder; every section names its command, hardware and date.\n"
_VERSIONS_OF = ("torch", "numpy", "tiktoken")


def write_section(title: str, lines: list[str]) -> None:
    """Replace the section `## title` of RESULTS.md, or append it; all other sections stay as they are."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _HEAD
    head, *sections = ("\n" + text).split("\n## ")
    new = "\n".join([title, "", *lines]).rstrip() + "\n"
    places = [place for place, section in enumerate(sections) if section.partition("\n")[0].strip() == title]
    if places:
        sections[places[0]] = new
    else:
        sections.append(new)
    parts = [head.strip(), *(f"## {section.strip()}" for section in sections)]
    partial = RESULTS.with_suffix(".partial")
    partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    os.replace(partial, RESULTS)


def hardware_line() -> str:
    """CPU, cores, memory, the GPU if there is one, versions and date."""
    parts = [_cpu_name(), f"{os.cpu_count()} cores"]
    if (memory := _memory_bytes()) is not None:
        parts.append(f"{memory / 1e9:.0f} GB")
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            parts.append(torch.cuda.get_device_name())
    parts.append(f"Python {platform.python_version()}")
    for name in _VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join([*parts, datetime.date.today().isoformat()])


def _cpu_name() -> str:
    """As the system tells it, with the instructions that decide how fast bf16 is."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    name = values.get("model name") or platform.machine()
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    there = [flag for flag in known if flag in values.get("flags", "").split()]
    return f"{name} ({', '.join(there)})" if there else name


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
