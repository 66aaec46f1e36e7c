"""Progress of a training: a bar for people at a terminal, one log line an epoch for everyone."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Self

from tqdm import tqdm

from construction_panoptic.parallel import collectives

logger = logging.getLogger(__name__)


class Progress:
    """Progress over all epochs, with the time that is left; rank 0 shows a bar, on a terminal only.

    ``done`` is the number of epochs that an earlier run has done.
    """

    def __init__(self, name: str, *, epochs: int, steps: int, done: int = 0) -> None:
        self._name, self._epochs, self._first = name, epochs, done
        self._began = time.monotonic()
        self._bar: Any = tqdm(
            total=epochs * steps, initial=done * steps, desc=name, unit="step", disable=collectives.rank() > 0 or None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Show that an epoch (from 0) begins, or goes on after a step."""
        self._bar.update(step)
        self._bar.set_description(f"{self._name}: epoch {epoch + 1}/{self._epochs}", refresh=False)

    def step(self) -> None:
        """Count a step."""
        self._bar.update()

    def show_loss(self, loss: float) -> None:
        """Show the mean loss of the epoch so far."""
        self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)

    def end_epoch(self, epoch: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Log the epoch (from 0): its loss, its validation metrics, its time and the time left."""
        done = epoch + 1 - self._first
        left = (time.monotonic() - self._began) / done * (self._epochs - epoch - 1)
        shown = {name: value for name, value in metrics.items() if name == "train/loss" or name.startswith("val/")}
        logger.info(
            "%s: epoch %d/%d: %s (%.1f s, %s left)",
            self._name,
            epoch + 1,
            self._epochs,
            ", ".join(f"{name} {value:.4g}" for name, value in list(shown.items())[:6]),
            seconds,
            timedelta(seconds=round(left)),
        )
