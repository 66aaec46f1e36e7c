"""Progress of a training: a bar for people at a terminal, one log line an epoch for everyone."""

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

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
        on_cuda = device.type == "cuda"
        where = torch.cuda.get_device_name(device) if on_cuda else f"CPU, {torch.get_num_threads()} threads"
        logger.info("%s: %d epochs of %d steps on %s.", name, epochs - done, steps, where)
        self._name, self._device, self._epochs, self._first = name, device, epochs, done
        self._left = (epochs - done) * steps
        self._steps, self._warm = 0, 0.0
        self._began = time.monotonic()
        self._bar: Any = tqdm(
            total=epochs * steps, initial=done * steps, desc=name, unit="step", disable=collectives.rank() > 0 or None
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Show that an epoch (from 0) begins, or goes on after a step."""
        self._bar.update(step)
        self._left -= step
        self._bar.set_description(f"{self._name}: epoch {epoch + 1}/{self._epochs}", refresh=False)

    def step(self, losses: Mapping[str, float]) -> None:
        """Count a step and show the mean loss of the epoch so far; after the first steps, log how long all will take.

        ``losses`` may be empty.
        """
        if losses:
            self._bar.set_postfix_str(f"loss {losses['loss']:.4g}", refresh=False)
        self._bar.update()
        self._steps += 1
        if self._steps == _WARM_UP:
            self._warm = time.monotonic()
        elif self._steps == _WARM_UP + _MEASURED:
            seconds = (time.monotonic() - self._warm) / _MEASURED
            left = timedelta(seconds=round(seconds * (self._left - self._steps)))
            text = "%s: %.2g s a step: about %s of training, and validation%s."
            logger.info(text, self._name, seconds, left, self._memory())

    def end_epoch(self, epoch: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Log the epoch (from 0): its loss, its validation metrics, its time and the time left."""
        done = epoch + 1 - self._first
        left = (time.monotonic() - self._began) / done * (self._epochs - epoch - 1)
        shown = [name for name in metrics if name == "train/loss" or name.startswith("val/")][:6]
        logger.info(
            "%s: epoch %d/%d: %s (%.1f s, %s left)",
            self._name,
            epoch + 1,
            self._epochs,
            ", ".join(f"{name} {metrics[name]:.4g}" for name in shown),
            seconds,
            timedelta(seconds=round(left)),
        )

    def _memory(self) -> str:
        if self._device.type != "cuda":
            return ""
        peak = torch.cuda.max_memory_allocated(self._device)
        total = torch.cuda.get_device_properties(self._device).total_memory
        return f"; {peak / 2**30:.1f} of {total / 2**30:.1f} GiB of memory so far"
