"""Checking what readers give, image by image and object by object, so that other processes can do it."""

import json
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject
from construction_panoptic.annotations.formats.repairs import Repair, box_outline, find_repairs
from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.images import check_image
from construction_panoptic.annotations.merging.masks import segmentation_rle
from construction_panoptic.annotations.records import UnusableError


@dataclass(frozen=True)
class Options:
    """What becomes of annotations that can be read in two ways, see `reading.read_exports`."""

    keep_boxes: bool
    keep_crowds: bool


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
    """Return an image's row of the table, or why it has none. Runs in threads or processes, so it changes nothing."""
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


def check_objects(options: Options, block: list[Task]) -> list[tuple[int | str, str, Found]]:
    """Return for each object its label, its image and its row or why it has none. Runs in processes."""
    return [(task.item.label, task.image, task.problem or _object_row(task, options)) for task in block]


def _object_row(task: Task, options: Options) -> Found:
    """Return an object's row, without source, names of its class and order, and what was changed in it."""
    item, repairs = task.item, []
    if options.keep_boxes and not item.segmentation and item.bbox is not None and min(item.bbox[2:]) > 0:
        item = replace(item, segmentation=box_outline(item.bbox, item.rotation), bbox=None)
        repairs.append(("box_as_mask", "it has a box and no outline; the whole box is its mask"))
    if item.iscrowd and not options.keep_crowds:
        item = replace(item, iscrowd=0)
        repairs.append(("crowd_as_single", "it is marked as a crowd; taken as a single thing"))
    try:
        code = segmentation_rle(item.segmentation, task.height, task.width)
    except UnusableError as error:
        return error
    repairs += find_repairs(item, code, task.height, task.width)
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
