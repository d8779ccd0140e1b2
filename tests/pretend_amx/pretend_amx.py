"""Makes torch take any CPU for one that multiplies bf16 fast; the arithmetic stays that of this CPU, emulated.

Where this folder is on PYTHONPATH, `import torch` itself calls `install` (its entry points named torch.backends), so
that scripts which tests start choose what they would choose on a machine with AMX. Option --pretend-amx of pytest.
"""

from __future__ import annotations

import torch


def install() -> None:
    """For this process."""
    torch.cpu.get_capabilities = lambda: {"amx_bf16": True}
