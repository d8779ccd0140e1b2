"""Write benchmarks/RESULTS.md, one section per benchmark, and describe the machine in one line.

Imports nothing heavy: its memory and time would be measured with the rest.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_DECIDING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # these decide how fast matmuls are
_HEAD = "# Benchmark results\n\nEach section is written by the command it quotes and replaced by the next run.\n"


def write_section(title: str, lines: list[str], path: Path = RESULTS) -> None:
    """Replace the section `## title` with these lines, or append it. The file is replaced atomically."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = _HEAD
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    new = f"## {title}\n\n" + "\n".join(lines).strip() + "\n"
    places = [place for place, section in enumerate(sections) if section.partition("\n")[0] == f"## {title}"]
    if places:
        sections[places[0]] = new
    else:
        sections.append(new)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n\n".join(part.strip() for part in [head, *sections]) + "\n", encoding="utf-8")
    os.replace(partial, path)


def hardware_line() -> str:
    """CPU, cores, memory, versions and date."""
    machine = [_cpu_model(), f"{os.cpu_count()} cores"]
    if (memory := _memory_bytes()) is not None:
        machine.append(f"{memory / 1e9:.0f} GB")
    machine.append(f"{platform.system()} {platform.machine()}")
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        machine.append(sys.modules["torch"].cuda.get_device_name())
    versions = [f"Python {platform.python_version()}", *map(_version, ("torch", "numpy", "tiktoken", "pyarrow"))]
    return f"{', '.join(machine)}; {', '.join(versions)}; {datetime.datetime.now().date().isoformat()}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        if model := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            there = [flag for flag in _DECIDING_FLAGS if re.search(rf"\b{flag}\b", text)]
            return f"{model[1]} ({', '.join(there)})"
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    """Physical memory, or None if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"
