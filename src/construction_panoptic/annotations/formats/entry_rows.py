"""From the entries of an export to rows of the tables, each by itself, so that other processes can do it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.coco_entries import (
    Category,
    EntryError,
    ImageEntry,
    check_annotation_entry,
)
from construction_panoptic.annotations.formats.export_files import Export
from construction_panoptic.annotations.formats.repairs import Repair, box_outline, find_repairs
from construction_panoptic.annotations.images import ImageError, check_image
from construction_panoptic.annotations.merging.masks import MaskError, plain_segmentation, segmentation_rle


@dataclass(frozen=True)
class Options:
    """What becomes of annotations that can be read in two ways, see `read_exports`."""

    keep_boxes: bool
    keep_crowds: bool


@dataclass(frozen=True)
class ListedImage:
    """An entry of ``images`` and its key; ``problem`` says why it is not used."""

    key: str
    width: int = 0
    height: int = 0
    problem: EntryError | ImageError | None = None


@dataclass(frozen=True)
class Rules:
    """What decides over the annotations of a file, apart from each itself and its image."""

    unused: EntryError | None
    categories: Mapping[int, str]
    classes: Mapping[Category, int | EntryError]
    options: Options


Entry = tuple[int | str, Any, ListedImage | None]
"""Label of an annotation, its entry and its image."""

Found = tuple[dict[str, Any], list[Repair]] | EntryError | ImageError | MaskError
"""A row of the table and what was changed in it, or why there is none."""


def image_row(export: Export, subset: str, entry: ImageEntry) -> dict[str, Any] | EntryError | ImageError:
    """Return an image's row of the table, or why it has none. Runs in threads or processes, so it changes nothing."""
    try:
        file_name, location = export.find_image(entry.file_name, subset)
        facts = check_image(location)
    except ImageError as error:
        return error
    if (facts.width, facts.height) != (entry.width, entry.height):
        turned = (facts.height, facts.width) == (entry.width, entry.height)
        detail = f"the image is {facts.width} x {facts.height} pixels upright, its annotations are for "
        detail += f"{entry.width} x {entry.height}" + (", as before its EXIF rotation" if turned else "")
        return EntryError("size_mismatch", detail)
    names = {"key": f"{export.source}/{file_name}", "source": export.source, "file_name": file_name}
    return names | {"location": location} | asdict(facts)


def check_annotations(rules: Rules, block: list[Entry]) -> list[tuple[int | str, str, Found]]:
    """Return for each annotation its label, its image and its row or why it has none. Runs in processes."""
    checked: list[tuple[int | str, str, Found]] = []
    for label, entry, image in block:
        found: Found
        try:
            found = _annotation_row(entry, image, rules)
        except (EntryError, ImageError, MaskError) as error:
            found = error
        checked.append((label, "" if image is None else image.key, found))
    return checked


def _annotation_row(entry: Any, image: ListedImage | None, rules: Rules) -> tuple[dict[str, Any], list[Repair]]:
    """Return an annotation's row, without source, category name and order, and what was changed in it.

    Raises:
        EntryError, ImageError, MaskError: it cannot be used; the error's ``reason`` is the code.
    """
    options = rules.options
    if rules.unused is not None:
        raise rules.unused
    checked = check_annotation_entry(entry)
    if image is None:
        raise EntryError("annotation_without_image", f"there is no image with its image_id {checked.image_id}")
    if image.problem is not None:
        raise image.problem
    if checked.category_id is None:
        raise EntryError("unknown_class", "its category_id is missing or not a whole number")
    class_id = rules.classes[checked.category_id, rules.categories.get(checked.category_id)]
    if isinstance(class_id, EntryError):
        raise class_id
    repairs = []
    if options.keep_boxes and not checked.segmentation and checked.bbox is not None and min(checked.bbox[2:]) > 0:
        checked = replace(checked, segmentation=box_outline(checked.bbox, entry.get("attributes")), bbox=None)
        repairs.append(("box_as_mask", "it has a box and no outline; the whole box is its mask"))
    if checked.iscrowd and not options.keep_crowds:
        checked = replace(checked, iscrowd=0)
        repairs.append(("crowd_as_single", "it is marked as a crowd; taken as a single thing"))
    code = segmentation_rle(checked.segmentation, image.height, image.width)
    repairs += find_repairs(checked, code, image.height, image.width)
    bbox, area = checked.bbox, checked.area
    if repairs:
        bbox, area = coco_mask.toBbox(code).astype(int).tolist(), float(coco_mask.area(code))
    row = {
        "key": image.key,
        "annotation_id": checked.id,
        "category_id": class_id,
        "segmentation": json.dumps(plain_segmentation(checked.segmentation)),
        "iscrowd": checked.iscrowd,
        "bbox": None if bbox is None else json.dumps(bbox),
        "area": float("nan") if area is None else area,
    }
    return row, repairs
