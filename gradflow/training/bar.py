"""The bar that shows the progress within an epoch."""

from __future__ import annotations

from typing import Any

import gradflow as gf
from gradflow.environment import imported_extra


def tqdm() -> Any:
    """The class of bars. Raises ModuleNotFoundError, which says what to type, if it is not installed."""
    return imported_extra("tqdm", "tqdm", "train", "a progress bar").tqdm


class Bar:
    """A bar for epochs of so many batches, on stderr."""

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._bar: Any = None

    def open(self, epoch: int, batches: int) -> None:
        """Show the bar of this epoch, of which so many batches are done, unless it is shown."""
        if self._bar is None:
            title = f"epoch {epoch}"
            self._bar = tqdm()(total=self._batches, initial=batches, desc=title, unit="batch", leave=False)

    def show(self, batches: int, loss: gf.Tensor) -> None:
        """Show that so many batches are done. The loss is read only when the bar is drawn, some times per second."""
        if self._bar.update(batches - self._bar.n):
            self._bar.set_postfix(loss=f"{loss.item():.4g}", refresh=False)

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
