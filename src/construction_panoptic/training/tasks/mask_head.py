"""Stage two of the DETR recipe: the mask head learns behind the frozen detector."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings, MaskHeadSettings
from construction_panoptic.models.detr.checkpoint import load_weights
from construction_panoptic.models.detr.losses import mask_losses, matched_target_masks
from construction_panoptic.models.detr.matcher import Matches, match
from construction_panoptic.models.detr.model import (
    DetrPanoptic,
    PanopticFeatures,
    build_detr_panoptic,
    compile_detector,
)
from construction_panoptic.models.detr.panoptic_model import DetrModel
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.feature_cache import FeatureCache, pack, unpack
from construction_panoptic.training.tasks.protocol import Loss, TrainingTask


def build_panoptic(
    num_classes: int, architecture: DetrSettings, settings: MaskHeadSettings, detector: Mapping[str, Tensor]
) -> DetrPanoptic:
    """Build the panoptic model: the trained detector, and a mask head with seeded random weights or given ones."""
    with own_randomness(settings.seed):
        model = build_detr_panoptic(num_classes, attention_gain=settings.attention_gain, **architecture.model_dump())
    if settings.weights is not None:
        load_weights(model, settings.weights)
    model.detr.load_state_dict(detector)
    if settings.compile:
        compile_detector(model.detr)
    return model


class MaskHeadTask(TrainingTask):
    """Training of the mask head, behind a frozen detector.

    Queries are matched with the segments first; masks are computed for the matched queries alone, the only ones that
    the loss reads. ``spec`` says how masks are merged in validation. ``cache`` keeps the detector's outputs of training
    images, which must be the same in every epoch.
    """

    name, monitor = "mask_head", "val/pq"
    model: DetrPanoptic

    def __init__(
        self, model: DetrPanoptic, settings: DetectionSettings, spec: ModelSpec, cache: FeatureCache | None = None
    ) -> None:
        self.model, self.settings = model, settings
        self._matching, self._weights = settings.matching, settings.losses
        self._segmenter = DetrModel(model, spec)
        self._cache = cache

    def normalisers(self, batch: Batch) -> dict[str, float]:
        """``segments``: the number of targets."""
        return {"segments": sum(len(target["labels"]) for target in batch.targets)}

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """``loss_mask`` and ``loss_dice``; both are 0 for a batch without a segment."""
        detected = self._detect(batch) if self._cache is None else self._detect_once(batch, self._cache)
        return self._losses(batch, *detected)

    def predict(self, batch: Batch) -> tuple[dict[str, Loss], list[Any]]:
        """Losses, and the `Segmentation` of each image."""
        features, matched = self._detect(batch)
        return self._losses(batch, features, matched), self._segmenter.segment_outputs(features, batch.inputs())

    def _losses(self, batch: Batch, features: PanopticFeatures, matched: Matches) -> dict[str, Loss]:
        device = batch.images.device
        batch_index = torch.cat([torch.full_like(queries, index) for index, (queries, _) in enumerate(matched)])
        query_index = torch.cat([queries for queries, _ in matched])
        truth = matched_target_masks(batch.targets, matched, batch.images.shape[-2:])
        losses = mask_losses(self.model.masks(features, batch_index.to(device), query_index.to(device)), truth)
        return {
            "loss_mask": Loss(losses["loss_mask"], "segments", self._weights.mask),
            "loss_dice": Loss(losses["loss_dice"], "segments", self._weights.dice),
        }

    def _detect(self, batch: Batch) -> tuple[PanopticFeatures, Matches]:
        features = self.model.features(batch.images, batch.padding_mask)
        return features, match(features.pred_logits, features.pred_boxes, batch.targets, self._matching)

    def _detect_once(self, batch: Batch, cache: FeatureCache) -> tuple[PanopticFeatures, Matches]:
        """Run the detector for the images that are not in the cache, one at a time, padded as the batch is."""
        height, width = batch.images.shape[-2:]
        entries = []
        for image in batch.parts(len(batch)):
            name = f"{image.file_names[0]} {height} {width} {batch.padding_mask is not None}"
            entry = cache.get(name, batch.images.device)
            if entry is None:
                features, matched = self._detect(image)
                entry = pack(features, matched[0])
                cache.put(name, entry)
            entries.append(entry)
        return unpack(entries)
