"""What is changed in an annotation that is kept: cut at the image's edge, box or area recomputed, a box drawn."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reader import ListedObject
from construction_panoptic.annotations.merging.masks import following_points

Repair = tuple[str, str]
"""Reason code, and a sentence for the reader."""

# CVAT states box and area of the outline, other tools those of the pixels. Both are right, and so is all between
# them; beyond lies the rounding of coordinates, and of how a tool counts the pixels that the outline cuts.
_EDGE_SLACK = 0.5  # px, of an outline beyond the image
_BOX_SLACK = 1.0  # px, of each side of a box
_AREA_SLACK = 0.25  # px² per px of outline


def find_repairs(item: ListedObject, code: dict[str, Any], height: int, width: int) -> Iterator[Repair]:
    """Compare what an annotation, whose outline can be drawn, states with its pixels in the image of this size.

    Gives ``clipped`` (the outline leaves the image), ``bbox_recomputed`` and ``area_recomputed`` (what the export
    states contradicts both the outline and ``code``, see `masks.segmentation_rle`).
    """
    x, y, w, h = coco_mask.toBbox(code)
    boxes, areas, slack = [np.array([x, y, x + w, y + h])], [float(coco_mask.area(code))], 1.0
    if isinstance(item.segmentation, list):
        rings = [np.array(ring, dtype=np.float64).reshape(-1, 2) for ring in item.segmentation]
        points = np.concatenate(rings)
        lowest, highest = points.min(axis=0), points.max(axis=0)
        boxes.append(np.concatenate([lowest, highest]))
        areas.append(sum(map(_area, rings)))
        slack += _AREA_SLACK * sum(map(_perimeter, rings))
        if lowest.min() < -_EDGE_SLACK or (highest > [width + _EDGE_SLACK, height + _EDGE_SLACK]).any():
            reach = f"x {lowest[0]:.5g}…{highest[0]:.5g}, y {lowest[1]:.5g}…{highest[1]:.5g}"
            yield "clipped", f"its outline ({reach}) leaves the image of {width} x {height} pixels; cut at the edge"
    if "bbox" in item.unusable:
        yield "bbox_recomputed", "its bbox is not four numbers; it is that of the pixels now"
    elif item.bbox is not None and not _box_fits(item.bbox, boxes):
        stated = ", ".join(f"{value:.5g}" for value in item.bbox)
        yield "bbox_recomputed", f"its bbox [{stated}] contradicts its pixels, [{x:.0f}, {y:.0f}, {w:.0f}, {h:.0f}]"
    if "area" in item.unusable:
        yield "area_recomputed", "its area is not a number; it is that of the pixels now"
    elif item.area is not None and not min(areas) - slack <= item.area <= max(areas) + slack:
        yield "area_recomputed", f"its area {item.area:.7g} contradicts its pixels, {areas[0]:.0f}"


def box_outline(bbox: list[float], rotation: float) -> list[list[float]]:
    """Return a box [x, y, width, height], turned clockwise by degrees around its middle, as a list of one polygon."""
    x, y, width, height = (float(value) for value in bbox)
    if rotation % 360 == 0:
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    half_x, half_y = width / 2, height / 2
    corners = [(-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)]
    turned = ((x + half_x + dx * cos - dy * sin, y + half_y + dx * sin + dy * cos) for dx, dy in corners)
    return [[value for point in turned for value in point]]


def _box_fits(bbox: list[float], boxes: list[NDArray[np.float64]]) -> bool:
    x, y, width, height = (float(value) for value in bbox)
    edges = np.array([x, y, x + width, y + height])
    lowest, highest = np.min(boxes, axis=0) - _BOX_SLACK, np.max(boxes, axis=0) + _BOX_SLACK
    return bool(((lowest <= edges) & (edges <= highest)).all())


def _area(ring: NDArray[np.float64]) -> float:
    (x, y), (next_x, next_y) = ring.T, following_points(ring).T
    return abs(float(x @ next_y - next_x @ y)) / 2


def _perimeter(ring: NDArray[np.float64]) -> float:
    return float(np.hypot(*(ring - following_points(ring)).T).sum())
