"""Losses of the steps of an epoch: their means, and the stop when one is not finite."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from construction_panoptic.errors import UserError


class NonFiniteLossError(UserError, ArithmeticError):
    """A loss, a gradient or an output became NaN or infinite; the message names where."""


class LossWatch:
    """Collects each step's numbers on the device and reads them ``every`` so many steps, since CUDA then waits.

    ``stage`` and ``epoch``, from 1, are for messages; ``begun`` is the `state` to go on from.
    """

    def __init__(self, stage: str, epoch: int, begun: Mapping[str, Any] | None = None, *, every: int) -> None:
        self._stage, self._epoch, self._every = stage, epoch, every
        self._pending: list[tuple[list[str], list[str], Tensor]] = []
        begun = begun or {"sums": {}, "counts": {}, "steps": 0}
        self._sums: dict[str, float] = dict(begun["sums"])
        self._counts: dict[str, int] = dict(begun["counts"])
        self._steps: int = begun["steps"]

    def add(self, file_names: list[str], values: Mapping[str, Tensor]) -> bool:
        """Add the scalars of a step, and the names of its images; whether the numbers up to this step were read.

        `NonFiniteLossError` if a number of a step not read before is not finite.
        """
        device = next(iter(values.values())).device
        stacked = torch.stack([value.detach().float().to(device) for value in values.values()])
        self._pending.append((file_names, list(values), stacked))
        if len(self._pending) < self._every:
            return False
        self.read()
        return True

    def read(self) -> None:
        """Read the numbers that are waiting; `NonFiniteLossError` names the first step with one that is not finite."""
        if not self._pending:
            return
        numbers = iter(torch.cat([stacked for _, _, stacked in self._pending]).tolist())
        pending, self._pending = self._pending, []
        for file_names, names, _ in pending:
            self._steps += 1
            values = {name: next(numbers) for name in names}
            if not all(map(math.isfinite, values.values())):
                raise self.error(file_names, "; ".join(f"{name} {value:.4g}" for name, value in values.items()))
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1

    def state(self) -> dict[str, Any]:
        """What has been read, as plain data."""
        return {"sums": dict(self._sums), "counts": dict(self._counts), "steps": self._steps}

    def error(self, file_names: list[str], what: str) -> NonFiniteLossError:
        """The error of the step after those read, for a batch of the images named."""
        step = max(1, self._steps)
        return NonFiniteLossError(
            f"{self._stage}: not a finite number in epoch {self._epoch}, step {step}, "
            f"images {', '.join(file_names)}: {what}. Look at these images and their annotations, lower optimizer.lr, "
            "or set on_non_finite: skip. The last checkpoint is from before, and training resumes from it."
        )

    def failed_step(self, file_names: list[str], what: str) -> NonFiniteLossError:
        """The error of a step that could not be computed; an earlier cause that was not read yet is raised."""
        self.read()
        self._steps += 1
        return self.error(file_names, what)

    def means(self) -> dict[str, float]:
        """Mean of each number over the steps that have been read."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}
