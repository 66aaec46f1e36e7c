"""The recipe `panoptic_deeplab`: classes of pixels, centres of things and offsets to them are learnt in one stage."""

import logging
from typing import Any

import torch
from torch import Tensor

from construction_panoptic.config.training import PanopticDeeplabTrainingSettings
from construction_panoptic.models.detr.checkpoint import fetch_weights, of_backbone_alone, read_weights
from construction_panoptic.models.panoptic_deeplab import (
    PanopticDeeplab,
    PanopticDeeplabModel,
    Targets,
    build_panoptic_deeplab,
    deeplab_losses,
    load_weights,
    make_targets,
    normalisers,
)
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.protocol import Loss, TrainingTask

logger = logging.getLogger(__name__)


def build_network(num_classes: int, settings: PanopticDeeplabTrainingSettings) -> PanopticDeeplab:
    """Build the network with seeded random weights, or from those that the settings name.

    `ParameterError`: the backbone is unknown; `CheckpointError`: the weights cannot be had or do not fit.
    """
    weights, alone = settings.weights, of_backbone_alone(settings.weights, settings.model.backbone)
    with own_randomness(settings.seed):
        network = build_panoptic_deeplab(num_classes, settings.model, weights if alone else None)
    if weights is not None and not alone:
        logger.info("Weights: %s", load_weights(network, read_weights(fetch_weights(weights)), weights))
    return network


class PanopticDeeplabTask(TrainingTask):
    """Training of Panoptic-DeepLab; ``spec`` says its categories, and how segments are made in validation."""

    name, monitor = "panoptic_deeplab", "val/pq"
    model: PanopticDeeplab
    settings: PanopticDeeplabTrainingSettings

    def __init__(self, model: PanopticDeeplab, settings: PanopticDeeplabTrainingSettings, spec: ModelSpec) -> None:
        self.model, self.settings = model, settings
        self._segmenter = PanopticDeeplabModel(model, spec)
        self._is_thing = torch.tensor([spec.is_thing.get(category, False) for category in range(spec.num_classes)])
        self._made_of: list[int] = []

    def normalisers(self, batch: Batch) -> dict[str, float]:
        """See `models.panoptic_deeplab.losses.normalisers`."""
        return normalisers(self._targets(batch), self.settings.losses)

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """``loss_semantic``, ``loss_center``, ``loss_offset``."""
        return self._losses(self.model(batch.images, batch.padding_mask), batch)

    def predict(self, batch: Batch) -> tuple[dict[str, Loss], list[Any]]:
        """Losses, and the `Segmentation` of each image."""
        outputs = self.model(batch.images, batch.padding_mask)
        if not all(bool(output.isfinite().all()) for output in outputs.values()):
            raise FloatingPointError("the model's outputs are not finite")
        return self._losses(outputs, batch), self._segmenter.segment_outputs(outputs, batch.inputs())

    def _losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Loss]:
        sums = deeplab_losses(outputs, self._targets(batch), self.settings.losses)
        return {f"loss_{name}": Loss(value, name, getattr(self.settings.losses, name)) for name, value in sums.items()}

    def _targets(self, batch: Batch) -> Targets:
        """Make the targets of a batch once for both, its losses and what divides them."""
        height, width = batch.images.shape[-2:]
        key = [height, width, *(id(target["id_map"]) for target in batch.targets)]
        if key != self._made_of:
            is_thing = self._is_thing.to(batch.targets[0]["id_map"].device)
            self._targets_made = make_targets(batch.targets, (height, width), is_thing, self.settings.targets)
            self._made_of, self._kept_alive = key, batch.targets
        return self._targets_made
