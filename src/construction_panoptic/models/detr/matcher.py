"""Bipartite matching of queries with targets (DETR, section 3.1)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from construction_panoptic.config.training import MatchSettings
from construction_panoptic.models.detr.boxes import centers_to_corners, generalized_iou

Targets = Sequence[Mapping[str, Tensor]]
Matches = list[tuple[Tensor, Tensor]]


class NonFiniteError(FloatingPointError):
    """A prediction or a target is NaN or infinite, so that no matching exists; the message says which."""


def match(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, costs: MatchSettings | None = None) -> Matches:
    """Match each target with one query, so that the sum of the matching costs is as small as it can be.

    Args:
        pred_logits: float [B, Q, C + 1].
        pred_boxes: float [B, Q, 4], (centre x, centre y, width, height) relative to the image.
        targets: one mapping an image with ``labels`` int64 [N] (0 … C - 1) and ``boxes`` float [N, 4]; N may be 0.
        costs: weights of the cost's parts; DETR's where None.

    Returns:
        For each image (query_index, target_index), int64 on the CPU, both [min(Q, N)], queries ascending.

    Raises:
        NonFiniteError: a cost is NaN or infinite.
        ValueError: the number of targets is not B.
    """
    return match_layers(pred_logits[None], pred_boxes[None], targets, costs)[0]


@torch.no_grad()
def match_layers(
    pred_logits: Tensor, pred_boxes: Tensor, targets: Targets, costs: MatchSettings | None = None
) -> list[Matches]:
    """`match` the predictions of L decoder layers, [L, B, Q, …], with the same targets, each layer by itself.

    All costs are computed together and copied to the host once.
    """
    if len(targets) != pred_logits.shape[1]:
        raise ValueError(f"{len(targets)} targets for predictions of {pred_logits.shape[1]} images")
    counts = [len(target["labels"]) for target in targets]
    if not any(counts):
        nothing = torch.empty(0, dtype=torch.int64)
        return [[(nothing, nothing) for _ in targets] for _ in pred_logits]
    cost = matching_cost(pred_logits, pred_boxes, targets, costs or MatchSettings()).cpu().numpy()
    if not all(np.isfinite(cost[:, image, :, :count]).all() for image, count in enumerate(counts)):
        raise NonFiniteError(_what_is_not_finite(pred_logits, pred_boxes, targets))
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
    giou = generalized_iou(centers_to_corners(pred_boxes)[..., :, None, :], centers_to_corners(boxes)[..., None, :, :])
    return costs.bbox * distance - costs.category * probability - costs.giou * giou


def _assign(cost: np.ndarray) -> tuple[Tensor, Tensor]:
    query_index, target_index = linear_sum_assignment(cost)
    return torch.as_tensor(query_index, dtype=torch.int64), torch.as_tensor(target_index, dtype=torch.int64)


def _what_is_not_finite(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets) -> str:
    bad_targets = [i for i, target in enumerate(targets) if not target["boxes"].isfinite().all()]
    if bad_targets:
        return f"Target boxes that are NaN or infinite, in the images {bad_targets} of the batch"
    bad = [
        name for name, values in (("class logits", pred_logits), ("boxes", pred_boxes)) if not values.isfinite().all()
    ]
    return (
        f"The model's {' and '.join(bad) or 'matching costs'} are NaN or infinite: training has diverged "
        "(try a lower learning rate, or float32 in place of a lower precision)"
    )
