"""Checking and repairing what readers give, image by image and object by object, so that other processes can do it."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject
from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.images import check_image
from construction_panoptic.annotations.merging.masks import following_points, polygon_area, segmentation_rle
from construction_panoptic.annotations.records import UnusableError

Repair = tuple[str, str]  # reason code, and a sentence for the reader

# CVAT states box and area of the outline, other tools those of the pixels. Both are right, and so is all between
# them; beyond lies the rounding of coordinates, and of how a tool counts the pixels that the outline cuts.
_EDGE_SLACK = 0.5  # px, of an outline beyond the image
_BOX_SLACK = 1.0  # px, of each side of a box
_AREA_SLACK = 0.25  # px² per px of outline


class Task(NamedTuple):
    """An object to check: its image's name and size in pixels, its class, or why it cannot be used."""

    item: ListedObject
    image: str
    problem: UnusableError | None
    class_id: int = 0
    height: int = 0
    width: int = 0


Found = tuple[dict[str, Any], list[Repair]] | UnusableError
"""A row of the table and what was changed in it, or why there is none."""


def image_row(source: Source, image: ListedImage) -> dict[str, Any] | UnusableError:
    """Return an image's row of the table, or why it has none. Runs in threads or processes."""
    try:
        found = ((place, location) for place in image.places if (location := source.locate(place)) is not None)
        place, location = next(found, ("", ""))
        if not location:
            where = source.describe(image.folder)
            return UnusableError("missing_file", f"the image {image.file_name!r} is not in {where}")
        facts = check_image(location)
    except UnusableError as error:
        return error
    if (facts.width, facts.height) != (image.width, image.height):
        turned = (facts.height, facts.width) == (image.width, image.height)
        detail = f"the image is {facts.width} x {facts.height} pixels upright, its annotations are for "
        detail += f"{image.width} x {image.height}" + (", as before its EXIF rotation" if turned else "")
        return UnusableError("size_mismatch", detail)
    file_name = PurePosixPath(place).relative_to(image.folder).as_posix()
    names = {"key": f"{source.name}/{file_name}", "source": source.name, "file_name": file_name}
    return names | {"location": location} | facts._asdict()


def check_objects(block: list[Task], *, keep_boxes: bool, keep_crowds: bool) -> list[tuple[int | str, str, Found]]:
    """Return for each object its label, its image and its row or why it has none. Runs in processes."""
    return [(t.item.label, t.image, t.problem or _object_row(t, keep_boxes, keep_crowds)) for t in block]


def _object_row(task: Task, keep_boxes: bool, keep_crowds: bool) -> Found:
    """Return an object's row, without source, names of its class and order, and what was changed in it."""
    item, repairs = task.item, []
    if keep_boxes and not item.segmentation and item.bbox is not None and min(item.bbox[2:]) > 0:
        item = replace(item, segmentation=box_outline(item.bbox, item.rotation), bbox=None)
        repairs.append(("box_as_mask", "it has a box and no outline; the whole box is its mask"))
    if item.iscrowd and not keep_crowds:
        item = replace(item, iscrowd=0)
        repairs.append(("crowd_as_single", "it is marked as a crowd; taken as a single thing"))
    try:
        code = segmentation_rle(item.segmentation, task.height, task.width)
    except UnusableError as error:
        return error
    repairs += _repairs(item, code, task.height, task.width)
    bbox, area = item.bbox, item.area
    if repairs:
        bbox, area = coco_mask.toBbox(code).astype(int).tolist(), float(coco_mask.area(code))
    row = {
        "key": task.image,
        "annotation_id": item.label,
        "category_id": task.class_id,
        "rle": code["counts"].decode(),
        "iscrowd": item.iscrowd,
        "bbox": None if bbox is None else json.dumps(bbox),
        "area": float("nan") if area is None else area,
    }
    return row, repairs


def _repairs(item: ListedObject, code: dict[str, Any], height: int, width: int) -> Iterator[Repair]:
    """Say where an annotation's outline leaves the image, and where its box and area contradict outline and pixels.

    ``code`` are its pixels, see `masks.segmentation_rle`.
    """
    x, y, w, h = coco_mask.toBbox(code)
    edges, areas, slack = [(x, y, x + w, y + h)], [float(coco_mask.area(code))], 1.0
    if isinstance(item.segmentation, list):
        rings = [np.array(ring, dtype=np.float64).reshape(-1, 2) for ring in item.segmentation]
        points = np.concatenate(rings)
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        edges.append((left, top, right, bottom))
        areas.append(sum(map(polygon_area, rings)))
        slack += _AREA_SLACK * sum(float(np.hypot(*(ring - following_points(ring)).T).sum()) for ring in rings)
        if min(left, top, width - right, height - bottom) < -_EDGE_SLACK:
            reach = f"x {left:.5g}…{right:.5g}, y {top:.5g}…{bottom:.5g}"
            yield "clipped", f"its outline ({reach}) leaves the image of {width} x {height} pixels; cut at the edge"
    if "bbox" in item.unusable:
        yield "bbox_recomputed", "its bbox is not four numbers; it is that of the pixels now"
    elif item.bbox is not None and not _box_fits(item.bbox, np.array(edges)):
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


def _box_fits(bbox: list[float], edges: NDArray[np.float64]) -> bool:
    x, y, width, height = (float(value) for value in bbox)
    stated = np.array([x, y, x + width, y + height])
    return bool(((edges.min(0) - _BOX_SLACK <= stated) & (stated <= edges.max(0) + _BOX_SLACK)).all())
