"""Stage one of the DETR recipe: the detector learns every query's class and box."""

from dataclasses import replace
from typing import Any

from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.models.detr.checkpoint import load_weights, of_backbone_alone
from construction_panoptic.models.detr.losses import detection_losses, normalisers
from construction_panoptic.models.detr.model import Detr, build_detr, compile_detector
from construction_panoptic.models.detr.panoptic_model import DetrModel
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.protocol import Loss, TrainingTask


def build_detector(num_classes: int, architecture: DetrSettings, settings: DetectionSettings) -> Detr:
    """Build the detector with seeded random weights, or from those that the settings name.

    `ParameterError` and `CheckpointError` as of `build_timm_backbone` and `load_weights`.
    """
    weights, alone = settings.weights, of_backbone_alone(settings.weights, architecture.backbone)
    with own_randomness(settings.seed):
        model = build_detr(num_classes, backbone_weights=weights if alone else None, **architecture.model_dump())
    if weights is not None and not alone:
        load_weights(model, weights)
    if settings.compile:
        compile_detector(model)
    return model


class DetectionTask(TrainingTask):
    """Training of the detector, with losses after every decoder layer; boxes may have the categories of ``spec``."""

    name, monitor = "detection", "val/ap"
    model: Detr

    def __init__(self, model: Detr, settings: DetectionSettings, spec: ModelSpec) -> None:
        self.model, self.settings = model, settings
        self._matching, self._weights = settings.matching, settings.losses
        self._detector = DetrModel(model, spec)

    def normalisers(self, batch: Batch) -> dict[str, float]:
        """See `models.detr.losses.normalisers`."""
        return normalisers(batch.targets, self.model.num_queries, self._weights.no_object)

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """``loss_ce``, ``loss_bbox``, ``loss_giou``; with ``_aux`` those of the earlier layers, summed; and errors."""
        return self._losses(self.model(batch.images, batch.padding_mask), batch)

    def predict(self, batch: Batch) -> tuple[dict[str, Loss], list[Any]]:
        """Losses, of all layers as in training; and the boxes of each image: ``category_id``, ``bbox``, ``score``."""
        features = self.model.features(batch.images, batch.padding_mask, all_layers=True)
        return self._losses(features.outputs, batch), self._detector.boxes_of(features, batch.inputs())

    def _losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Loss]:
        no_object, costs = self._weights.no_object, self._matching
        last, *auxiliary = detection_losses(outputs, batch.targets, no_object_weight=no_object, costs=costs)
        losses = {
            "loss_ce": Loss(last["loss_ce"], "queries", self._weights.ce),
            "loss_bbox": Loss(last["loss_bbox"], "boxes", self._weights.bbox),
            "loss_giou": Loss(last["loss_giou"], "boxes", self._weights.giou),
        }
        if auxiliary:
            losses |= {
                f"{name}_aux": replace(loss, sum=sum((layer[name] for layer in auxiliary[1:]), auxiliary[0][name]))
                for name, loss in losses.items()
            }
        return losses | {
            "class_error": Loss(last["class_error"], "matched", 0.0),
            "cardinality_error": Loss(last["cardinality_error"], "images", 0.0),
        }
