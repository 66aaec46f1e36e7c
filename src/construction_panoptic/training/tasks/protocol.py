"""What the training loop knows of what it trains: a model, its losses and its validation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from construction_panoptic.config.training import TrainingSettings
from construction_panoptic.parallel import collectives
from construction_panoptic.parallel.device import autocast
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.optimisation import backbone_and_rest
from construction_panoptic.training.watch import NonFiniteLossError

Measure = Callable[[Iterable[tuple[int, Any]]], Mapping[str, float]]
"""Turns this process's predictions, (image id, prediction), into the metrics of all processes' images."""


@dataclass(frozen=True)
class Loss:
    """One term of the loss: ``weight * sum / normaliser``, that one of `TrainingTask.normalisers`.

    ``sum`` is a scalar over the batch; ``weight`` is 0 for numbers that are only logged.
    """

    sum: Tensor
    normaliser: str
    weight: float = 1.0


def total_loss(losses: Mapping[str, Loss], normalisers: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Give the total, a scalar with gradient, and each term by its name, unweighted and without gradient."""
    terms = {name: loss.sum / (normalisers[loss.normaliser] or 1.0) for name, loss in losses.items()}
    total = torch.stack([losses[name].weight * term for name, term in terms.items()]).sum()
    return total, {name: term.detach() for name, term in terms.items()}


class TrainingTask(ABC):
    """A model, the losses by which it learns, and what it predicts in validation. Subclass it in a file of its own.

    ``name`` is the stage's, as in the catalog: ``detection``, ``mask_head``, …; ``monitor`` the metric by which the
    best epoch is chosen, larger is better; ``model`` is trained, its ``state_dict`` is what a checkpoint holds.
    """

    name: str
    monitor: str
    model: nn.Module
    settings: TrainingSettings

    @abstractmethod
    def normalisers(self, batch: Batch) -> dict[str, float]:
        """Count what the losses of a batch are divided by, from its targets alone; a count of 0 is taken as 1.

        The loop adds up the counts of all parts of a step and of all processes.
        """

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Compute the losses of a batch on the model's device, all of which are logged as ``train/<name>``.

        `FloatingPointError` if the model's outputs are not finite.
        """

    @abstractmethod
    def predict(self, batch: Batch) -> tuple[dict[str, Loss], list[Any]]:
        """Compute the losses of a validation batch and a prediction for each image, with one pass of the network.

        The node that trains has the `Measure` that understands the predictions.
        """

    def before_step(self, done: float) -> None:  # noqa: B027
        """Do what depends on the fraction of the training's steps that are done; nothing unless a task says so."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give the optimiser's groups, each with ``name``, ``params`` and ``lr``, without empty ones."""
        return backbone_and_rest(self.model, self.settings.optimizer)

    def validate(self, loader: Iterable[Batch], measure: Measure, stop: StopRequest | None = None) -> dict[str, float]:
        """Measure the validation set in one pass; the model is in eval mode and records no gradient.

        Gives ``val/…``: the metrics, ``loss`` and its terms, each over the images of all processes. `StoppedError` if
        ``stop`` is set in one of the processes, `NonFiniteLossError` if the model's outputs are not finite.
        """
        device: torch.device = next(self.model.parameters()).device
        losses: dict[str, Loss] = {}
        normalisers: dict[str, float] = {}

        def predictions() -> Iterable[tuple[int, Any]]:
            for loaded in collectives.until_stopped(loader, stop or StopRequest()):
                batch = loaded.to(device)
                try:
                    with autocast(device, self.settings.precision):
                        terms, predicted = self.predict(batch)
                except FloatingPointError as error:
                    images = ", ".join(batch.file_names)
                    raise NonFiniteLossError(f"{self.name}: in validation, images {images}: {error}") from error
                _add(losses, normalisers, terms, self.normalisers(batch))
                yield from zip([int(target["image_id"]) for target in batch.targets], predicted, strict=True)

        metrics = measure(predictions())
        everywhere, counts = dict[str, Loss](), dict[str, float]()
        on_cpu = {name: Loss(loss.sum.cpu(), loss.normaliser, loss.weight) for name, loss in losses.items()}
        for theirs in collectives.all_gather((on_cpu, normalisers)):
            _add(everywhere, counts, *theirs)
        total, terms = total_loss(everywhere, counts)
        values = {"loss": float(total), **{name: float(term) for name, term in terms.items()}, **metrics}
        return {f"val/{name}": value for name, value in values.items()}


def _add(
    losses: dict[str, Loss], counts: dict[str, float], terms: Mapping[str, Loss], more: Mapping[str, float]
) -> None:
    for name, loss in terms.items():
        so_far = losses[name].sum if name in losses else 0.0
        losses[name] = Loss(so_far + loss.sum.detach().double(), loss.normaliser, loss.weight)
    for name, count in more.items():
        counts[name] = counts.get(name, 0.0) + count
