"""The training losses of DETR: classes, boxes and masks (Carion et al. 2020, sections 3.1 and 4.4), as sums.

What a sum is divided by follows from the targets alone, so that a batch can be computed in parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from construction_panoptic.config.training import MatchSettings
from construction_panoptic.models.detr.focal_dice import FocalDice
from construction_panoptic.models.detr.matcher import Matches, Targets, corners, generalized_iou, match_layers

FOCAL_ALPHA = 0.25


def normalisers(targets: Targets, num_queries: int, no_object_weight: float = 0.1) -> dict[str, float]:
    """Count what the sums of a batch's losses are divided by; a count of 0 must be taken as 1.

    Gives ``images``; ``boxes``: the targets; ``matched``: the queries that have a target; ``queries``: the sum of the
    weights that the queries have in the cross-entropy.
    """
    counts = [len(target["labels"]) for target in targets]
    matched = sum(min(count, num_queries) for count in counts)
    unmatched = num_queries * len(counts) - matched
    queries = matched + no_object_weight * unmatched
    return {"images": len(counts), "boxes": sum(counts), "matched": matched, "queries": queries}


def detection_losses(
    outputs: Mapping[str, Any], targets: Targets, *, no_object_weight: float = 0.1, costs: MatchSettings | None = None
) -> list[dict[str, Tensor]]:
    """Losses of classes and boxes, summed over the batch, for each decoder layer, each matched by itself.

    ``outputs`` are those of `Detr.forward`; ``targets`` and ``costs`` are as for `match`;
    ``no_object_weight`` is that of the no-object class in the cross-entropy. Gives for the last layer, then for each
    auxiliary one, float32 scalars: ``loss_ce``, to divide by ``queries``, and ``loss_bbox`` (L1) and ``loss_giou``, to
    divide by ``boxes``; see `normalisers`. The last layer also has, without gradient, ``class_error`` (100 for each
    matched query with a wrong class; divide by ``matched``) and ``cardinality_error`` (absolute difference of the
    numbers of predicted objects and of targets; ``images``). Errors as of `match`.
    """
    layers: list[Mapping[str, Tensor]] = [outputs, *outputs.get("aux_outputs", [])]
    labels = torch.cat([target["labels"] for target in targets])
    boxes = torch.cat([target["boxes"] for target in targets]).float()
    losses: list[dict[str, Tensor]] = []
    for layer, pairs in zip(layers, _matched_pairs(layers, targets, costs), strict=True):
        logits, predicted = layer["pred_logits"].float(), layer["pred_boxes"].float()
        image_index, query_index, target_index = pairs
        queries = (image_index, query_index)
        found, truth = predicted[queries], boxes[target_index]
        losses.append(
            {
                "loss_ce": _classification_loss(logits, queries, labels[target_index], no_object_weight),
                "loss_bbox": (found - truth).abs().sum(),
                "loss_giou": (1 - generalized_iou(corners(found), corners(truth))).sum(),
            }
        )
        if len(losses) == 1:
            counts = torch.tensor([len(target["labels"]) for target in targets], device=labels.device)
            classes = logits.detach().argmax(-1)
            objects = (classes != logits.shape[-1] - 1).sum(1)
            losses[0]["class_error"] = 100 * (classes[queries] != labels[target_index]).sum().float()
            losses[0]["cardinality_error"] = (objects - counts).abs().sum().float()
    return losses


def mask_losses(pred_masks: Tensor, target_masks: Tensor) -> dict[str, Tensor]:
    """Focal loss and Dice loss of matched masks, summed over the masks; divide by the number of targets.

    The logits, float [M, h, w], are upsampled to the size of the targets, bool [M, H, W], bilinear. The focal loss is
    averaged over a mask's pixels, padding included. Both losses are float32 scalars, 0 where M is 0. Sources: Lin et
    al., "Focal Loss for Dense Object Detection", ICCV 2017 (α = 0.25, γ = 2); Milletari et al., "V-Net", 3DV 2016
    (Dice, with 1 added to numerator and denominator).
    """
    focal, overlap, areas = FocalDice.apply(pred_masks.float(), target_masks, FOCAL_ALPHA)
    dice = 1 - (2 * overlap + 1) / (areas + 1)
    return {"loss_mask": focal.sum() / (target_masks.shape[-2] * target_masks.shape[-1]), "loss_dice": dice.sum()}


def matched_target_masks(targets: Targets, indices: Matches, size: Sequence[int]) -> Tensor:
    """Masks bool [M, height, width] of the matched targets, image after image; False in the padding of the batch, whose
    ``size`` it is. Each target has ``id_map`` int [H, W] and ``segment_ids`` int [N].
    """
    height, width = size
    padded = []
    for target, (_, target_index) in zip(targets, indices, strict=True):
        ids = target["segment_ids"]
        masks = target["id_map"][None] == ids[target_index.to(ids.device)][:, None, None]
        padded.append(F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2])))
    return torch.cat(padded)


def _matched_pairs(
    layers: Sequence[Mapping[str, Tensor]], targets: Targets, costs: MatchSettings | None
) -> list[Tensor]:
    """Image, query and target index, int64 [3, M], of each layer's matches; targets count through the whole batch.

    One copy of the costs to the host and one of the indices back, whatever the number of layers.
    """
    logits = torch.stack([layer["pred_logits"].detach() for layer in layers])
    boxes = torch.stack([layer["pred_boxes"].detach() for layer in layers])
    flat = []
    for layer in match_layers(logits, boxes, targets, costs):
        first, parts = 0, []
        for image, (target, (query_index, target_index)) in enumerate(zip(targets, layer, strict=True)):
            parts.append(torch.stack([torch.full_like(query_index, image), query_index, target_index + first]))
            first += len(target["labels"])
        flat.append(torch.cat(parts, dim=1))
    return list(torch.cat(flat, dim=1).to(logits.device).split([pairs.shape[1] for pairs in flat], dim=1))


def _classification_loss(
    logits: Tensor, queries: tuple[Tensor, Tensor], labels: Tensor, no_object_weight: float
) -> Tensor:
    """Weighted cross-entropy of all queries; those without a match belong to the last class."""
    no_object = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
    classes[queries] = labels
    weight = logits.new_ones(no_object + 1)
    weight[no_object] = no_object_weight
    return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight, reduction="sum")
