"""The figures of a run for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from common.files import naming
from model.data import Array


class EventLog:
    """Event files in a folder; what an earlier run logged after ``step`` is superseded."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._open(step)

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def rewind(self, step: int) -> None:
        """Forget what was logged after a step."""
        self.close()
        self._open(step)

    def scalars(self, figures: dict[str, float], step: int) -> None:
        """Log one value a name."""
        with naming(self.folder):
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def picture(self, name: str, pixels: Array, step: int) -> None:
        """Log an image (H, W) or (H, W, 3) uint8."""
        with naming(self.folder):
            self._writer.add_image(name, pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")

    def close(self) -> None:
        """Write what is pending."""
        with naming(self.folder):
            self._writer.close()
