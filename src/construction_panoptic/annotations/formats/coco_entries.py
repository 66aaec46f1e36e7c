"""Checking the entries of COCO annotation files one by one, whatever they hold; for all readers of such files."""

import sys
from typing import Any

from construction_panoptic.annotations.records import UnusableError

_MAX_ID = 2**63 - 1


def as_id(value: Any) -> int | None:
    """Return ``value`` as a whole number if it is one that fits 64 bits (``3`` or ``3.0``), else None."""
    return int(value) if _is_number(value) and int(value) == value and abs(value) <= _MAX_ID else None


def annotation_label(entry: Any, position: int) -> int | str:
    """Return the id of an annotation entry, or ``"#<position>"`` where it has none that can be used."""
    number = as_id(entry.get("id")) if isinstance(entry, dict) else None
    return f"#{position}" if number is None else number


def check_image_entry(entry: Any) -> tuple[int, tuple[str, int, int]]:
    """Return id, and file name, width and height in pixels; raises `UnusableError`, ``bad_image_entry``."""
    if not isinstance(entry, dict):
        raise UnusableError("bad_image_entry", "the entry in `images` is not an object")
    values = {name: as_id(entry.get(name)) for name in ("id", "width", "height")}
    wrong = [name for name, value in values.items() if value is None or (name != "id" and value < 1)]
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        wrong.append("file_name")
    if wrong:
        raise UnusableError("bad_image_entry", f"the entry in `images` has no usable {', '.join(wrong)}")
    return values["id"] or 0, (str(file_name), values["width"] or 0, values["height"] or 0)


def check_annotation_entry(entry: Any) -> dict[str, Any]:
    """Check an entry of ``annotations``; return what it says of an object, as fields of `reader.ListedObject`."""
    if not isinstance(entry, dict):
        raise UnusableError("bad_annotation_entry", "the entry in `annotations` is not an object")
    if as_id(entry.get("id")) is None:
        raise UnusableError("bad_annotation_entry", "its id is missing or not a whole number")
    if as_id(entry.get("image_id")) is None:
        raise UnusableError("annotation_without_image", "its image_id is missing or not a whole number")
    crowd = as_id(int(crowd) if isinstance(crowd := entry.get("iscrowd", 0), bool) else crowd)
    if crowd not in (0, 1):
        raise UnusableError("bad_annotation_entry", "its iscrowd is neither 0 nor 1")
    bbox: Any = entry.get("bbox")
    area: Any = entry.get("area")
    attributes = entry.get("attributes")
    rotation: Any = attributes.get("rotation") if isinstance(attributes, dict) else None  # of a turned rectangle
    usable = {
        "bbox": isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)),
        "area": _is_number(area),
    }
    return {
        "segmentation": entry.get("segmentation"),
        "iscrowd": crowd,
        "bbox": bbox if usable["bbox"] else None,
        "rotation": float(rotation) if _is_number(rotation) and abs(rotation) <= 360 else 0.0,
        "area": float(area) if usable["area"] else None,
        "unusable": tuple(name for name in usable if not usable[name] and entry.get(name) not in (None, [])),
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
