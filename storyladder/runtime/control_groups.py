"""The Linux control groups of this process, which hold a container's limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def control_groups(controller: str) -> Iterator[Path]:
    """This process's control group folders for `memory` or `cpu`, innermost first; none on other systems."""
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):  # version 2, version 1
                top = CGROUPS / controllers
                own = top / path.lstrip("/")
                # In a container the path may be the host's, with the files at the top. Limits of all parents apply.
                yield from (group for group in (own, *own.parents) if group.is_relative_to(top))
