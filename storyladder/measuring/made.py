"""When, how and with what numbers were made: the same stamp in every file of reports/."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

_PACKAGES = ("torch", "numpy", "tiktoken", "transformers", "sacrebleu", "textstat")


def made(*, command: str, machine: str) -> dict[str, Any]:
    """Date, command, machine, and the versions of the packages that are installed."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
