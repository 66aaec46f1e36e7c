"""Losses of the steps of an epoch: their means, and the stop when one is not finite."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from construction_panoptic.errors import UserError


class NonFiniteLossError(UserError, ArithmeticError):
    """A loss, a gradient or an output became NaN or infinite; the message names where."""


class LossWatch:
    """Collects each step's numbers on the device and reads them ``every`` so many steps, since CUDA then waits.

    ``stage`` and ``epoch``, from 1, are for messages; ``state`` is plain data of what has been read, ``begun`` that to
    go on from.
    """

    def __init__(self, stage: str, epoch: int, begun: Mapping[str, Any] | None = None, *, every: int) -> None:
        self._stage, self._epoch, self._every = stage, epoch, every
        self._pending: list[tuple[list[str], list[str], Tensor]] = []
        self.state: dict[str, Any] = deepcopy(dict(begun or {"sums": {}, "counts": {}, "steps": 0}))

    def add(self, file_names: list[str], values: Mapping[str, Tensor]) -> None:
        """Add the scalars of a step, and the names of its images; every so many steps they are read."""
        device = next(iter(values.values())).device
        stacked = torch.stack([value.detach().float().to(device) for value in values.values()])
        self._pending.append((file_names, list(values), stacked))
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Read the numbers that are waiting; `NonFiniteLossError` names the first step with one that is not finite."""
        if not self._pending:
            return
        numbers = iter(torch.cat([stacked for _, _, stacked in self._pending]).tolist())
        pending, self._pending = self._pending, []
        sums, counts = self.state["sums"], self.state["counts"]
        for file_names, names, _ in pending:
            self.state["steps"] += 1
            values = {name: next(numbers) for name in names}
            if not all(map(math.isfinite, values.values())):
                raise self._error(file_names, "; ".join(f"{name} {value:.4g}" for name, value in values.items()))
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1

    def failed_step(self, file_names: list[str], what: str) -> NonFiniteLossError:
        """The error of a step that could not be computed; an earlier cause that was not read yet is raised."""
        self.read()
        self.state["steps"] += 1
        return self._error(file_names, what)

    def means(self) -> dict[str, float]:
        """Mean of each number over the steps that have been read."""
        return {name: total / self.state["counts"][name] for name, total in self.state["sums"].items()}

    def _error(self, file_names: list[str], what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"{self._stage}: not a finite number in epoch {self._epoch}, step {self.state['steps']}, "
            f"images {', '.join(file_names)}: {what}. Look at these images and their annotations, lower optimizer.lr, "
            "or set on_non_finite: skip. The last checkpoint is from before, and training resumes from it."
        )
