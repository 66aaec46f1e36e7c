"""Bipartite matching of queries with targets (DETR, section 3.1)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from construction_panoptic.config.training import MatchSettings

# Smallest area that is divided by, relative to the image: a hundredth of a pixel of a 100-megapixel image.
MIN_AREA = 1e-10

Targets = Sequence[Mapping[str, Tensor]]
Matches = list[tuple[Tensor, Tensor]]


def match(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, costs: MatchSettings | None = None) -> Matches:
    """Match each target with one query, so that the sum of the matching costs is as small as it can be.

    ``pred_logits`` are float [B, Q, C + 1], ``pred_boxes`` float [B, Q, 4], (centre x, centre y, width, height)
    relative to the image; each image's target has ``labels`` int64 [N] (0 … C - 1) and ``boxes`` float [N, 4]; N may be
    0. ``costs`` are DETR's where None. Gives for each image (query_index, target_index), int64 on the CPU, both
    [min(Q, N)], queries ascending. `FloatingPointError` if a cost is NaN or infinite.
    """
    return match_layers(pred_logits[None], pred_boxes[None], targets, costs)[0]


@torch.no_grad()
def match_layers(
    pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, costs: MatchSettings | None = None
) -> list[Matches]:
    """`match` the predictions of L decoder layers, [L, B, Q, …], with the same targets, each layer by itself.

    All costs are computed together and copied to the host once.
    """
    counts = [len(target["labels"]) for target in targets]
    if not any(counts):
        nothing = torch.empty(0, dtype=torch.int64)
        return [[(nothing, nothing) for _ in targets] for _ in pred_logits]
    cost = matching_cost(pred_logits, pred_boxes, targets, costs or MatchSettings()).cpu().numpy()
    if not all(np.isfinite(cost[:, image, :, :count]).all() for image, count in enumerate(counts)):
        raise FloatingPointError(_what_is_not_finite(pred_logits, pred_boxes, targets))
    return [[_assign(layer[image, :, :count]) for image, count in enumerate(counts)] for layer in cost]


def matching_cost(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, costs: MatchSettings) -> Tensor:
    """Matching cost of every query with every target of its image (DETR, equation 1 and appendix A.2).

    float32 [L, B, Q, N] with N the largest number of targets of an image, of which there is at least one; columns
    beyond an image's own number are filling.
    """
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)  # [B, N]
    boxes = pad_sequence([target["boxes"].float() for target in targets], batch_first=True)  # [B, N, 4]
    pred_boxes = pred_boxes.float()
    columns = labels[None, :, None].expand(*pred_logits.shape[:3], -1)
    # The probability itself, not its logarithm: it is of the same order as the two box terms.
    probability = pred_logits.float().softmax(-1).gather(-1, columns)
    distance = torch.cdist(pred_boxes, boxes, p=1)
    giou = generalized_iou(corners(pred_boxes)[..., :, None, :], corners(boxes)[..., None, :, :])
    return costs.bbox * distance - costs.category * probability - costs.giou * giou


def _assign(cost: np.ndarray) -> tuple[Tensor, Tensor]:
    query_index, target_index = linear_sum_assignment(cost)
    return torch.as_tensor(query_index, dtype=torch.int64), torch.as_tensor(target_index, dtype=torch.int64)


def _what_is_not_finite(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets) -> str:
    bad_targets = [i for i, target in enumerate(targets) if not target["boxes"].isfinite().all()]
    if bad_targets:
        return f"Target boxes that are NaN or infinite, in the images {bad_targets} of the batch"
    predictions = {"class logits": pred_logits, "boxes": pred_boxes}
    bad = [name for name, values in predictions.items() if not values.isfinite().all()]
    return (
        f"The model's {' and '.join(bad) or 'matching costs'} are NaN or infinite: training has diverged "
        "(try a lower learning rate, or float32 in place of a lower precision)"
    )


def corners(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] from (centre x, centre y, width, height) to (x0, y0, x1, y1)."""
    return box_convert(boxes, "cxcywh", "xyxy")


def generalized_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised intersection over union of corner boxes [..., 4], relative to the image, with broadcasting: [...].

    Unlike the functions of torchvision.ops it needs no M × M matrix for M matched pairs, adds nothing to a denominator,
    and is finite, with finite gradients, for boxes without area: a denominator is at least ``MIN_AREA``, so that two
    identical boxes without area have the value 0.

    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    overlap = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(boxes1[..., :2], boxes2[..., :2])
    hull = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    overlap = overlap.clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = _area(boxes1) + _area(boxes2) - intersection
    hull_area = hull[..., 0] * hull[..., 1]
    iou = intersection / union.clamp(min=MIN_AREA)
    return iou - (hull_area - union) / hull_area.clamp(min=MIN_AREA)


def _area(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height
