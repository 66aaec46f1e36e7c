"""What one step of each training stage computes: the detector's losses, and the mask head's."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from construction_panoptic.config.training import DetectionSettings, LossSettings, MatchSettings
from construction_panoptic.models.detr.losses import (
    LossWeights,
    detection_losses,
    mask_losses,
    matched_target_masks,
    total_loss,
)
from construction_panoptic.models.detr.matcher import MatchCosts, Matches, match
from construction_panoptic.models.detr.model import Detr, DetrPanoptic, PanopticFeatures
from construction_panoptic.parallel import collectives as team
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.tasks.feature_cache import FeatureCache, pack, unpack

StepResult = tuple[Tensor, dict[str, Tensor]]


class Stage(Protocol):
    """A model and the loss by which it learns."""

    name: str
    model: nn.Module

    def step(self, batch: Batch) -> StepResult:
        """Loss of a batch (scalar with gradient) and the terms to log (scalars without).

        With ``batch.totals``, losses are such that those of the parts of a step add up to the step's, and their mean
        over the processes of a team is that of all.
        """
        ...

    def size(self, batch: Batch) -> tuple[float, float]:
        """What the losses of a batch are divided by: the targets, and the weights of the queries' classes."""
        ...


class DetectionStage:
    """Training of the detector: every query's class and box, after every decoder layer.

    Args:
        model: the detector.
        settings: loss weights and matching costs are read.
    """

    name = "detection"

    def __init__(self, model: Detr, settings: DetectionSettings) -> None:
        self.model: nn.Module = model
        self.num_classes = model.num_classes
        self.num_queries = model.num_queries
        self.costs = match_costs(settings.matching)
        self.weights = loss_weights(settings.losses)
        self.no_object_weight = settings.losses.no_object

    def step(self, batch: Batch) -> StepResult:
        """Loss of a batch on the model's device, and its terms: loss_ce, loss_bbox, loss_giou, ….

        Raises:
            FloatingPointError: the model's outputs are not finite.
        """
        outputs = self.model(batch.images, batch.padding_mask)
        losses = detection_losses(
            outputs,
            batch.targets,
            None,
            num_classes=self.num_classes,
            no_object_weight=self.no_object_weight,
            costs=self.costs,
        )
        losses = _shared(losses, self.size(batch), batch.totals)
        return total_loss(losses, self.weights), _terms(losses)

    def size(self, batch: Batch) -> tuple[float, float]:
        """The number of targets, and the sum of the weights that the queries have in the cross-entropy."""
        counts = [len(target["labels"]) for target in batch.targets]
        matched = sum(min(count, self.num_queries) for count in counts)
        return sum(counts), matched + self.no_object_weight * (self.num_queries * len(counts) - matched)


class MaskHeadStage:
    """Training of the mask head behind a frozen detector.

    Queries are matched with the segments first; masks are computed for the matched queries alone, the only
    ones that the loss reads.

    Args:
        model: the panoptic model, its detector frozen.
        settings: loss weights and matching costs are read.
        cache: keeps the detector's outputs of training images, which must be the same in every epoch.
    """

    name = "mask_head"

    def __init__(self, model: DetrPanoptic, settings: DetectionSettings, cache: FeatureCache | None = None) -> None:
        self.model: nn.Module = model
        self._panoptic = model
        self._cache = cache
        self.costs = match_costs(settings.matching)
        self.weights = loss_weights(settings.losses)

    def step(self, batch: Batch) -> StepResult:
        """Loss of a batch on the model's device, and its terms: loss_mask, loss_dice.

        The loss of a batch without a segment is 0.

        Raises:
            FloatingPointError: the model's outputs are not finite.
            ValueError: the batch has no id maps.
        """
        if any("id_map" not in target for target in batch.targets):
            raise ValueError("the mask head learns from panoptic samples; this batch has no id maps")
        features, matched = self._detect(batch) if self._cache is None else self._detect_once(batch, self._cache)
        device = batch.images.device
        images = [torch.full_like(queries, index) for index, (queries, _) in enumerate(matched)]
        batch_index = torch.cat(images).to(device)
        query_index = torch.cat([queries for queries, _ in matched]).to(device)
        truth = matched_target_masks(batch.targets, matched, batch.images.shape[-2:])
        masks = self._panoptic.masks(features, batch_index, query_index)
        size = self.size(batch)
        losses = _shared(mask_losses(masks, truth, size[0]), size, batch.totals)
        return total_loss(losses, self.weights), _terms(losses)

    def size(self, batch: Batch) -> tuple[float, float]:
        """The number of targets; masks have no classes."""
        return float(sum(len(target["labels"]) for target in batch.targets)), 0.0

    def _detect(self, batch: Batch) -> tuple[PanopticFeatures, Matches]:
        features = self._panoptic.features(batch.images, batch.padding_mask)
        return features, match(features.pred_logits, features.pred_boxes, batch.targets, self.costs)

    def _detect_once(self, batch: Batch, cache: FeatureCache) -> tuple[PanopticFeatures, Matches]:
        """Run the detector for the images that are not in the cache, one at a time, padded as the batch is."""
        height, width = batch.images.shape[-2:]
        entries = []
        for index, file_name in enumerate(batch.file_names):
            name = f"{file_name} {height} {width} {batch.padding_mask is not None}"
            entry = cache.get(name, batch.images.device)
            if entry is None:
                features, matched = self._detect(batch.select(index))
                entry = pack(features, matched[0])
                cache.put(name, entry)
            entries.append(entry)
        return unpack(entries)


@torch.no_grad()
def evaluate_losses(
    stage: Stage, batches: Iterable[Batch], device: torch.device, precision: str = "auto"
) -> dict[str, float]:
    """Mean loss and loss terms over validation batches, with the model in eval mode.

    Args:
        stage: the stage; its model must be on ``device``. The model's mode is left as it was.
        batches: the validation set.
        device: where to compute.
        precision: ``auto``, ``float32`` or ``bfloat16``.

    Returns:
        ``loss``, ``loss_ce``, … ; empty if there is no batch. In eval mode a detector has no auxiliary
        outputs, so its ``loss`` is that of the last decoder layer.
    """
    was_training = stage.model.training
    stage.model.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        with autocast(device, precision):
            loss, terms = stage.step(batch.to(device))
        for name, value in {"loss": loss, **terms}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        count += 1
    stage.model.train(was_training)
    return {name: float(value) / count for name, value in sums.items()}


def match_costs(settings: MatchSettings) -> MatchCosts:
    """Matching costs of the settings."""
    return MatchCosts(class_=settings.category, bbox=settings.bbox, giou=settings.giou)


def loss_weights(settings: LossSettings) -> LossWeights:
    """Loss weights of the settings."""
    return LossWeights(ce=settings.ce, bbox=settings.bbox, giou=settings.giou, mask=settings.mask, dice=settings.dice)


def _shared(
    losses: dict[str, Tensor], size: tuple[float, float], totals: tuple[float, float] | None
) -> dict[str, Tensor]:
    """The losses of a part of a step, such that those of all parts, and processes, make up the step's.

    Each loss is a sum divided by the number of targets, the cross-entropy by the sum of the queries' weights; a
    part knows its own. (DETR shares the number of targets in the same way, not the weights.)
    """
    if totals is None:
        return losses
    boxes = team.size() * max(size[0], 1.0) / max(totals[0], 1.0)
    classes = team.size() * size[1] / totals[1] if totals[1] else 1.0

    def factor(name: str) -> float:
        return 1.0 if not name.startswith("loss_") else classes if name.startswith("loss_ce") else boxes

    return {name: value * factor(name) for name, value in losses.items()}


def _terms(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last layer's terms; those of the auxiliary layers end in the layer's number."""
    return {name: value.detach() for name, value in losses.items() if not name.rpartition("_")[2].isdigit()}
