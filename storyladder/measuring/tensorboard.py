"""TensorBoard event files of a stage, for those who watch several runs in one window; needs the package tensorboard."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from storyladder.runtime.errors import report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes scalars into an event file below `folder`; does nothing, after one line, if tensorboard is missing.

    A resumed stage opens a new file that tells TensorBoard to forget what earlier files hold from `first_step` on
    (SummaryWriter's purge_step), so no step is shown twice. Used with `with`.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        self._writer: SummaryWriter | None = None
        if importlib.util.find_spec("tensorboard") is None:
            report("no TensorBoard files: the package is missing; install it with python -m pip install tensorboard")
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            self._writer = SummaryWriter(str(folder), purge_step=first_step)
        except OSError as error:
            report(f"warning: no TensorBoard files in {folder} ({error.strerror}); training continues")

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per name, such as "val_loss", at a step (updates done), and bring them to the disk."""
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            report(f"warning: TensorBoard files end at step {step:,} ({error.strerror}); training continues")
            self._writer = None

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
