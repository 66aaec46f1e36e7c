"""Progress of a training: a bar for people at a terminal, one log line an epoch for everyone."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Self

import torch
from tqdm import tqdm

from construction_panoptic.parallel import collectives

logger = logging.getLogger(__name__)

_WARM_UP, _MEASURED = 5, 10  # steps: the first ones are slower than the others


class Progress:
    """Progress over all epochs, with the time that is left; rank 0 shows a bar, on a terminal only.

    Of the ``epochs``, an earlier run has ``done`` some.
    """

    def __init__(self, name: str, *, epochs: int, steps: int, device: torch.device, done: int = 0) -> None:
        logger.info("%s: %d epochs of %d steps on %s.", name, epochs - done, steps, _described(device))
        self._name, self._device, self._epochs, self._first = name, device, epochs, done
        self._left = (epochs - done) * steps
        self._steps, self._warm = 0, 0.0
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
        self._left -= step
        self._bar.set_description(f"{self._name}: epoch {epoch + 1}/{self._epochs}", refresh=False)

    def step(self) -> None:
        """Count a step; after the first ones, log how long the training will take."""
        self._bar.update()
        self._steps += 1
        if self._steps == _WARM_UP:
            self._warm = time.monotonic()
        elif self._steps == _WARM_UP + _MEASURED:
            seconds = (time.monotonic() - self._warm) / _MEASURED
            logger.info(
                "%s: %.2g s a step: about %s of training, and validation%s.",
                self._name,
                seconds,
                timedelta(seconds=round(seconds * (self._left - self._steps))),
                _memory(self._device),
            )

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


def _described(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f"; {peak / 2**30:.1f} of {total / 2**30:.1f} GiB of memory so far"
