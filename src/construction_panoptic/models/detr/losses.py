"""The training losses of DETR: classes, boxes and masks (DETR, sections 3.1 and 4.4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.models.detr.boxes import centers_to_corners, generalized_iou
from construction_panoptic.models.detr.focal_dice import FocalDice
from construction_panoptic.models.detr.matcher import MatchCosts, Matches, Targets, match_layers

FOCAL_ALPHA = 0.25


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the training loss; the defaults are DETR's.

    Attributes:
        ce: cross-entropy of the classes.
        bbox: L1 distance of the boxes.
        giou: generalised IoU of the boxes.
        mask: sigmoid focal loss of the masks.
        dice: dice loss of the masks.
    """

    ce: float = 1.0
    bbox: float = 5.0
    giou: float = 2.0
    mask: float = 1.0
    dice: float = 1.0


def total_loss(losses: Mapping[str, Tensor], weights: LossWeights | None = None) -> Tensor:
    """Weighted sum of the loss terms, those of the auxiliary layers (``loss_ce_0``, …) with the same weights.

    Args:
        losses: scalars by name, from `detection_losses` and `mask_losses`; what is no ``loss_…`` is left out.
        weights: a weight for each kind of term; DETR's where None.

    Returns:
        A scalar to call ``backward()`` on.

    Raises:
        ValueError: there is no term, or one that has no weight.
    """
    weights = weights or LossWeights()
    terms = []
    for name, value in losses.items():
        kind = re.fullmatch(r"loss_([a-z]+)(?:_\d+)?", name)
        if kind is None:
            continue
        if not hasattr(weights, kind[1]):
            raise ValueError(f"The loss term {name} has no weight")
        terms.append(getattr(weights, kind[1]) * value)
    if not terms:
        raise ValueError(f"There is no loss term in {sorted(losses)}")
    return torch.stack(terms).sum()


def detection_losses(
    outputs: Mapping[str, Any],
    targets: Targets,
    indices: Matches | None = None,
    *,
    num_classes: int,
    no_object_weight: float = 0.1,
    costs: MatchCosts | None = None,
    num_boxes: float | None = None,
) -> dict[str, Tensor]:
    """Losses of classes and boxes, for the last decoder layer and for each auxiliary one.

    Args:
        outputs: ``pred_logits`` float [B, Q, C + 1], ``pred_boxes`` float [B, Q, 4] (centre x, centre y,
            width, height; relative to the image) and, optional, ``aux_outputs``, a list of the same two for
            each layer.
        targets: one mapping an image with ``labels`` int64 [N] and ``boxes`` float [N, 4]; N may be 0.
        indices: the matching of the last layer, where it is known; computed where None. The auxiliary layers
            are always matched here, each by itself.
        num_classes: C, the number of classes without no-object.
        no_object_weight: weight of the no-object class in the cross-entropy.
        costs: weights of the matching cost; DETR's where None.
        num_boxes: what the box losses are divided by; the number of targets in the batch where None. In
            distributed training pass the number averaged over the processes. Below 1 it counts as 1.

    Returns:
        float32 scalars ``loss_ce``, ``loss_bbox``, ``loss_giou``, ``class_error`` (percent of the matched
        queries with a wrong class; 100 where nothing is matched), ``cardinality_error`` (mean over images of
        the absolute difference of the numbers of predicted objects and of targets); and with ``_0``, ``_1``,
        … at the end those of the auxiliary layers, ``class_error`` excepted. Only the ``loss_…`` carry
        gradients.

    Raises:
        NonFiniteError: there are targets, and they or the predictions contain NaN or infinity.
        ValueError: the shape of ``pred_logits`` does not fit ``num_classes`` or ``targets``.
    """
    layers: list[Mapping[str, Tensor]] = [outputs, *outputs.get("aux_outputs", [])]
    if outputs["pred_logits"].shape[-1] != num_classes + 1:
        raise ValueError(
            f"pred_logits has {outputs['pred_logits'].shape[-1]} columns; "
            f"{num_classes} classes and no-object need {num_classes + 1}"
        )
    num_boxes = max(float(sum(len(t["labels"]) for t in targets) if num_boxes is None else num_boxes), 1.0)
    matched = _matched_pairs(layers, targets, indices, costs)
    labels = torch.cat([target["labels"] for target in targets])
    boxes = torch.cat([target["boxes"] for target in targets]).float()
    counts = torch.tensor([len(target["labels"]) for target in targets], device=labels.device)

    losses: dict[str, Tensor] = {}
    for number, (layer, pairs) in enumerate(zip(layers, matched, strict=True)):
        logits, predicted = layer["pred_logits"].float(), layer["pred_boxes"].float()
        image_index, query_index, target_index = pairs
        queries = (image_index, query_index)
        terms = {
            "loss_ce": _classification_loss(logits, queries, labels[target_index], no_object_weight),
            "cardinality_error": _cardinality_error(logits, counts),
            **_box_losses(predicted[queries], boxes[target_index], num_boxes),
        }
        if number == 0:
            terms["class_error"] = _class_error(logits[queries], labels[target_index])
        suffix = f"_{number - 1}" if number else ""
        losses |= {name + suffix: value for name, value in terms.items()}
    return losses


def mask_losses(pred_masks: Tensor, target_masks: Tensor, num_boxes: float) -> dict[str, Tensor]:
    """Focal loss and dice loss of matched masks.

    The logits are upsampled to the size of the targets, bilinear. The focal loss is averaged over a mask's
    pixels, padding included, then both are summed over the masks and divided by ``num_boxes``. Sources: Lin
    et al., "Focal Loss for Dense Object Detection", ICCV 2017 (α = 0.25, γ = 2); Milletari et al., "V-Net",
    3DV 2016 (dice, with 1 added to numerator and denominator).

    Args:
        pred_masks: float [M, h, w], logits.
        target_masks: bool [M, H, W], see `matched_target_masks`.
        num_boxes: number of targets in the batch (averaged over the processes); below 1 it counts as 1.

    Returns:
        float32 scalars ``loss_mask`` and ``loss_dice``; 0 where M is 0.
    """
    num_boxes = max(float(num_boxes), 1.0)
    focal, overlap, areas = FocalDice.apply(pred_masks.float(), target_masks, FOCAL_ALPHA)
    dice = 1 - (2 * overlap + 1) / (areas + 1)
    pixels = target_masks.shape[-2] * target_masks.shape[-1]
    return {"loss_mask": focal.sum() / (pixels * num_boxes), "loss_dice": dice.sum() / num_boxes}


def target_masks(id_map: Tensor, segment_ids: Tensor) -> Tensor:
    """Masks bool [M, H, W] of the segments with the ids ``segment_ids`` int [M] in ``id_map`` int [H, W]."""
    return id_map[None] == segment_ids[:, None, None]


def matched_target_masks(targets: Targets, indices: Matches, size: Sequence[int]) -> Tensor:
    """Masks of the matched targets of a batch, in the order of the matches, images one after the other.

    Args:
        targets: one mapping an image with either ``masks`` bool [N, H, W], or ``id_map`` int [H, W] and
            ``segment_ids`` int [N].
        indices: the matching, from `match`.
        size: (height, width) of the padded batch, at least as large as each image's; the padding is False.

    Returns:
        bool [M, height, width], on the targets' device.
    """
    height, width = size
    padded = []
    for target, (_, target_index) in zip(targets, indices, strict=True):
        if "masks" in target:
            masks = target["masks"][target_index.to(target["masks"].device)]
        else:
            ids = target["segment_ids"]
            masks = target_masks(target["id_map"], ids[target_index.to(ids.device)])
        padded.append(F.pad(masks.bool(), (0, width - masks.shape[-1], 0, height - masks.shape[-2])))
    return torch.cat(padded)


def _matched_pairs(
    layers: Sequence[Mapping[str, Tensor]],
    targets: Targets,
    indices: Matches | None,
    costs: MatchCosts | None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Image, query and target index of every match for each layer; targets count through the whole batch.

    One copy of the costs to the host and one of the indices back, whatever the number of layers.
    """
    unmatched = layers if indices is None else layers[1:]
    matches = [] if indices is None else [indices]
    if unmatched:
        logits = torch.stack([layer["pred_logits"].detach() for layer in unmatched])
        boxes = torch.stack([layer["pred_boxes"].detach() for layer in unmatched])
        matches += match_layers(logits, boxes, targets, costs)

    flat = []
    for layer in matches:
        first, parts = 0, []
        for image, (target, (query_index, target_index)) in enumerate(zip(targets, layer, strict=True)):
            image_index = torch.full_like(query_index, image)
            parts.append(torch.stack([image_index, query_index, target_index + first]).cpu())
            first += len(target["labels"])
        flat.append(torch.cat(parts, dim=1))
    device = layers[0]["pred_logits"].device
    on_device = torch.cat(flat, dim=1).to(device).split([pairs.shape[1] for pairs in flat], dim=1)
    return [(pairs[0], pairs[1], pairs[2]) for pairs in on_device]


def _classification_loss(
    logits: Tensor, queries: tuple[Tensor, Tensor], labels: Tensor, no_object_weight: float
) -> Tensor:
    """Cross-entropy, as a weighted mean over all queries; those without a match belong to the last class."""
    no_object = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
    classes[queries] = labels
    weight = logits.new_ones(no_object + 1)
    weight[no_object] = no_object_weight
    return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight)


def _box_losses(predicted: Tensor, boxes: Tensor, num_boxes: float) -> dict[str, Tensor]:
    giou = generalized_iou(centers_to_corners(predicted), centers_to_corners(boxes))
    return {
        "loss_bbox": (predicted - boxes).abs().sum() / num_boxes,
        "loss_giou": (1 - giou).sum() / num_boxes,
    }


@torch.no_grad()
def _cardinality_error(logits: Tensor, counts: Tensor) -> Tensor:
    objects = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    return (objects - counts).abs().float().mean()


@torch.no_grad()
def _class_error(logits: Tensor, labels: Tensor) -> Tensor:
    if len(labels) == 0:
        return logits.new_tensor(100.0)
    return 100 * (logits.argmax(-1) != labels).float().mean()
