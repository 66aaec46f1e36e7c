"""What a training knows of what it trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from construction_panoptic.config.training import OptimizerSettings
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import Batch


@dataclass(frozen=True)
class Loss:
    """One term of a loss: ``weight * sum / normaliser``.

    Attributes:
        sum: scalar with gradient, over the batch.
        normaliser: what it is divided by, counted over this batch alone; the loop adds up those of all parts of a
            step and of all processes.
        weight: in the total; 0 for numbers that are only logged.
    """

    sum: Tensor
    normaliser: float
    weight: float = 1.0


class TrainingTask(Protocol):
    """A network, the losses by which it learns, and the metrics by which it is validated.

    Attributes:
        name: of the stage, as in the catalog: ``detection``, ``mask_head``, ….
        network: what is trained.
        monitor: the metric by which the best epoch is chosen, larger is better.
    """

    name: str
    network: nn.Module
    monitor: str

    def normalisers(self, batch: Batch) -> Mapping[str, float]:
        """Give the normaliser of each loss of a batch, from its targets alone."""
        ...

    def losses(self, batch: Batch) -> Mapping[str, Loss]:
        """Compute the losses of a batch on the network's device.

        Raises:
            FloatingPointError: the network's outputs are not finite.
        """
        ...

    def parameter_groups(self, settings: OptimizerSettings) -> list[dict[str, Any]]:
        """Give the optimiser's groups, each with ``name``, ``params`` and ``lr``."""
        ...

    def validate(self, batches: Iterable[Batch], stop: StopRequest) -> dict[str, float]:
        """Measure the validation set: ``val/…`` metrics, ``val/loss`` and its terms among them, in one pass."""
        ...
