"""Boxes: the two notations that DETR uses, and the generalised intersection over union."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert

# Smallest area that is divided by, relative to the image: a hundredth of a pixel of a 100-megapixel image.
MIN_AREA = 1e-10


def centers_to_corners(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from (centre x, centre y, width, height) to (x0, y0, x1, y1)."""
    return box_convert(boxes, "cxcywh", "xyxy")


def corners_to_centers(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 4] from (x0, y0, x1, y1) to (centre x, centre y, width, height)."""
    return box_convert(boxes, "xyxy", "cxcywh")


def box_area(boxes: Tensor) -> Tensor:
    """Areas [...] of corner boxes [..., 4], in the square of the boxes' unit."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height


def generalized_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised intersection over union of corner boxes [..., 4], element by element with broadcasting: [...] in
    [-1, 1].

    For all pairs of boxes [N, 4] and [M, 4], pass ``boxes1[:, None]`` and ``boxes2[None]``. Unlike the functions of
    torchvision.ops it needs no M × M matrix for M matched pairs, adds nothing to a denominator, and is finite, with
    finite gradients, for boxes without area: a quotient whose denominator is below ``MIN_AREA`` is taken over
    ``MIN_AREA``, so that two identical boxes without area have the value 0. Boxes are (x0, y0, x1, y1) relative to the
    image.

    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, algorithm 1.
    """
    overlap = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(boxes1[..., :2], boxes2[..., :2])
    hull = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    overlap = overlap.clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = box_area(boxes1) + box_area(boxes2) - intersection
    hull_area = hull[..., 0] * hull[..., 1]
    iou = intersection / union.clamp(min=MIN_AREA)
    return iou - (hull_area - union) / hull_area.clamp(min=MIN_AREA)
