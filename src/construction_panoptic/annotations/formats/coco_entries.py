"""Checking the JSON of a COCO annotation file entry by entry, whatever it holds."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.json_stream import json_members
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

_MAX_ID = 2**63 - 1


class EntryError(InputDataError):
    """An entry of an annotation file cannot be used; ``reason`` is the code for the rejected records."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Let the error come back from another process with its reason."""
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class ImageEntry:
    """A checked entry of ``images``; sizes in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class AnnotationEntry:
    """A checked entry of ``annotations``.

    ``bbox`` and ``area`` are None where the export has none; ``unusable`` names those that are there but no numbers.
    """

    id: int
    image_id: int
    category_id: int | None
    segmentation: Any
    iscrowd: int
    bbox: list[float] | None
    area: float | None
    unusable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """What an annotation file holds, entries not yet checked; its annotations stay in the file.

    Attributes:
        images: the list; None where there is none.
        categories: the name of each id.
        category_ids: those that annotations name; None where there is no list of annotations.
        open: opens the file.
    """

    images: list[Any] | None
    categories: dict[int, str]
    category_ids: set[int] | None
    open: Callable[[], BinaryIO]

    def annotations(self) -> Iterator[Any]:
        """Give the entries of the list of annotations, one in memory at a time.

        Raises:
            InputDataError: the file is not what it was when it was parsed.
        """
        try:
            with self.open() as file:
                for name, value in json_members(file):
                    if name == "annotations" and isinstance(value, Iterator):
                        yield from value
        except (ValueError, RecursionError) as error:
            raise InputDataError(f"an annotation file changed while it was read ({error}); convert again.") from None


def parse_document(open_file: Callable[[], BinaryIO]) -> Document:
    """Parse an annotation file from beginning to end.

    Args:
        open_file: opens it; whatever that raises comes through.

    Raises:
        EntryError: ``unreadable_json``: no JSON, not an object with a list of images or of annotations, or one that
            has one of the lists twice.
    """
    lists: dict[str, list[Any]] = {}
    category_ids: set[int] | None = None
    seen = set()
    try:
        with open_file() as file:
            for name, value in json_members(file):
                if name in seen and name in ("images", "annotations", "categories"):
                    raise EntryError("unreadable_json", f"it has `{name}` twice; export it from CVAT again")
                seen.add(name)
                if name == "annotations" and isinstance(value, Iterator):
                    category_ids = _category_ids(value)
                elif name in ("images", "categories") and isinstance(value, Iterator):
                    lists[name] = list(value)
    except (EntryError, ImageError):
        raise
    except Exception as error:
        # Beside what JSON leads to, an archive's damage may be found only when it is unpacked so far.
        raise EntryError("unreadable_json", f"not readable as JSON ({error}); export it from CVAT again") from None
    if "images" not in lists and category_ids is None:
        raise EntryError("unreadable_json", "not a COCO file: it has no lists `images` and `annotations`")
    return Document(lists.get("images"), _categories(lists.get("categories")), category_ids, open_file)


def _category_ids(entries: Iterator[Any]) -> set[int]:
    ids = {as_id(entry.get("category_id")) for entry in entries if isinstance(entry, dict)}
    return {category_id for category_id in ids if category_id is not None}


def _categories(entries: Any) -> dict[int, str]:
    """Return the names of the categories that have one; an id with two names has none."""
    names: dict[int, str] = {}
    unclear = set()
    for entry in entries if isinstance(entries, list) else []:
        category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        whole = as_id(category_id)
        if whole is None or not isinstance(name, str):
            continue
        if names.setdefault(whole, name) != name:
            unclear.add(whole)
    return {category_id: name for category_id, name in names.items() if category_id not in unclear}


def as_id(value: Any) -> int | None:
    """Return ``value`` as a whole number if it is one that fits 64 bits (``3`` or ``3.0``), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if -_MAX_ID <= value <= _MAX_ID else None


def annotation_label(entry: Any, position: int) -> int | str:
    """Return the id of an annotation entry, or ``"#<position>"`` where it has none that can be used."""
    number = as_id(entry.get("id")) if isinstance(entry, dict) else None
    return f"#{position}" if number is None else number


def check_image_entry(entry: Any) -> ImageEntry:
    """Return a checked entry of ``images``.

    Raises:
        EntryError: ``bad_image_entry``.
    """
    if not isinstance(entry, dict):
        raise EntryError("bad_image_entry", "the entry in `images` is not an object")
    values = {name: as_id(entry.get(name)) for name in ("id", "width", "height")}
    wrong = [name for name, value in values.items() if value is None or (name != "id" and value < 1)]
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        wrong.append("file_name")
    if wrong:
        raise EntryError("bad_image_entry", f"the entry in `images` has no usable {', '.join(wrong)}")
    return ImageEntry(values["id"] or 0, str(file_name), values["width"] or 0, values["height"] or 0)


def check_annotation_entry(entry: Any) -> AnnotationEntry:
    """Return a checked entry of ``annotations``; its class and segmentation are checked later.

    Raises:
        EntryError: ``bad_annotation_entry``, or ``annotation_without_image`` if it names no image.
    """
    if not isinstance(entry, dict):
        raise EntryError("bad_annotation_entry", "the entry in `annotations` is not an object")
    number, image_id = as_id(entry.get("id")), as_id(entry.get("image_id"))
    if number is None:
        raise EntryError("bad_annotation_entry", "its id is missing or not a whole number")
    if image_id is None:
        raise EntryError("annotation_without_image", "its image_id is missing or not a whole number")
    crowd = as_id(int(crowd) if isinstance(crowd := entry.get("iscrowd", 0), bool) else crowd)
    if crowd not in (0, 1):
        raise EntryError("bad_annotation_entry", "its iscrowd is neither 0 nor 1")
    bbox, area = entry.get("bbox"), entry.get("area")
    usable = {
        "bbox": isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(value) for value in bbox),
        "area": _is_number(area),
    }
    return AnnotationEntry(
        id=number,
        image_id=image_id,
        category_id=as_id(entry.get("category_id")),
        segmentation=entry.get("segmentation"),
        iscrowd=crowd,
        bbox=bbox if usable["bbox"] else None,
        area=float(area) if area is not None and usable["area"] else None,
        unusable=tuple(name for name in usable if not usable[name] and entry.get(name) not in (None, [])),
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


Category = tuple[int, str | None]
"""A category's id in the export and its name, None where the export's list of categories has none."""


def used_categories(document: Document) -> set[Category]:
    """Return the categories that the annotations of a document use."""
    return {(category_id, document.categories.get(category_id)) for category_id in document.category_ids or ()}


def resolve_classes(used: set[Category], source: str, taxonomy: Taxonomy) -> Mapping[Category, int | EntryError]:
    """Return the thing class of each category that an export's annotations use, or why it has none.

    An export that uses one category is that class, whatever the category's id: by the category's own name if
    the taxonomy has a thing of that name, else by the export's name. An export with several uses their names.

    Args:
        used: the categories that its annotations use.
        source: the export's name.
        taxonomy: the project's classes.
    """
    one_category = len({category_id if name is None else name for category_id, name in used}) == 1
    by_export = taxonomy.thing_id(source) if one_category else None
    resolved: dict[Category, int | EntryError] = {}
    for category_id, name in used:
        own = None if name is None else taxonomy.thing_id(name)
        found = own if own is not None else by_export
        resolved[category_id, name] = _unknown(category_id, name, taxonomy) if found is None else found
    return resolved


def _unknown(category_id: int, name: str | None, taxonomy: Taxonomy) -> EntryError:
    if name is None:
        return EntryError("unknown_class", f"its category_id {category_id} has no name in `categories`")
    if taxonomy.stuff_id(name) is not None:
        return EntryError("unknown_class", f"its class {name!r} is stuff; annotations are of things")
    return EntryError("unknown_class", f"its class {name!r} is not a thing of the taxonomy; add or rename it")
