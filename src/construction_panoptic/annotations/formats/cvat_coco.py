"""CVAT's format "COCO 1.0", also as other tools write it; and what all readers of COCO files share."""

import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject, Refused
from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.json_stream import json_members
from construction_panoptic.annotations.records import UnusableError
from construction_panoptic.errors import InputDataError

_BESIDE_IMAGES = "_annotations.coco.json"
_DOCUMENTS = re.compile(rf"(?:coco|annotations/instances_[^/]+)\.json|(?:[^/]+/)?{re.escape(_BESIDE_IMAGES)}")
_FOLDER = "images"
_UNSAFE = re.compile("^/|^[A-Za-z]:|[\\\\\0\ud800-\udfff]")  # what is no path, or no text
_MAX_ID = 2**63 - 1
_REPEATED = UnusableError("duplicate_annotation_id", "an annotation before it has the same id")


class CvatCocoReader:
    """CVAT's format: ``coco.json`` or ``annotations/instances_<subset>.json``, and ``images/``.

    And as other tools have it: ``_annotations.coco.json`` among the images of a split, ``train/``, ``valid/``, ….

    An export whose annotations use one category is that class whatever its id: by the category's own name if the
    taxonomy has it, else by the export's name. An export with several uses their names.
    """

    files = ("coco.json", "annotations/instances_*.json", _BESIDE_IMAGES)

    def sniff(self, source: Source) -> bool:
        """Tell whether a source has one of `files`."""
        return bool(_document_names(source))

    def read(self, source: Source) -> Iterator[ListedImage | ListedObject | Refused]:
        """Give everything that a source lists, see `reader.AnnotationReader`."""
        documents = []
        for found in read_documents(source, _document_names(source)):
            if isinstance(found, Refused):
                yield found
            else:
                documents.append(found)
        in_use = [document for document in documents if document.unused is None]
        used = {document.categories.get(number, number) for document in in_use for number in document.category_ids}
        fallback = (source.name,) if len(used) == 1 else ()
        positions = count()
        for document in documents:
            images: dict[int, ListedImage] = {}
            for number, image in listed_images(document):
                if number is not None:
                    images[number] = image
                yield image
            labels: set[int | str] = set()
            for entry in entries_of(document):
                label = annotation_label(entry, next(positions))
                item = _object(entry, label, images, document, fallback)
                yield ListedObject(label, item.image, _REPEATED) if label in labels else item
                labels.add(label)


def _document_names(source: Source) -> list[str]:
    found = [*source.glob("*.json"), *source.glob("annotations/instances_*.json"), *source.glob(f"*/{_BESIDE_IMAGES}")]
    names = sorted(filter(_DOCUMENTS.fullmatch, found), key=lambda name: ("/" in name, name))
    if len(names) > len(set(names)):
        detail = f"{source.path}: it holds a file of annotations twice ({', '.join(names)}); pack it again"
        raise ImageError("unreadable_archive", detail)
    return names


def _object(
    entry: Any, label: int | str, images: dict[int, ListedImage], document: "Document", fallback: tuple[str, ...]
) -> ListedObject:
    image_id = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
    image = None if image_id is None else images.get(image_id)
    try:
        if document.unused is not None:
            raise document.unused
        fields = check_annotation_entry(entry)
        if image is None:
            raise UnusableError("annotation_without_image", f"there is no image with its image_id {image_id}")
    except UnusableError as problem:
        return ListedObject(label, image, problem)
    category_id = as_id(entry.get("category_id"))
    name = None if category_id is None else document.categories.get(category_id)
    classes: tuple[str, ...] = ()
    if category_id is None:
        unknown = "its category_id is missing or not a whole number"
    elif name is None:
        classes, unknown = fallback, f"its category_id {category_id} has no name in `categories`"
    else:
        classes, unknown = (name, *fallback), f"its class {name!r} is not a thing of the taxonomy; add or rename it"
    return ListedObject(label, image, None, classes, unknown, **fields)


class Document(NamedTuple):
    """An annotation file; its annotations stay in the file."""

    source: Source
    name: str
    images: list[Any]  # entries, not checked
    categories: dict[int, str]  # the name of each id
    category_ids: set[int]  # those that annotations name
    unused: UnusableError | None  # why nothing in it is used

    @property
    def beside(self) -> PurePosixPath | None:
        """Its folder, where images lie beside it."""
        path = PurePosixPath(self.name)
        return path.parent if path.name == _BESIDE_IMAGES else None

    @property
    def subset(self) -> str:
        """Of the task that it is for; "" where there is one task."""
        stem = PurePosixPath(self.name).stem
        return stem.removeprefix("instances_") if stem.startswith("instances_") else ""


def read_documents(source: Source, names: list[str]) -> Iterator[Document | Refused]:
    """Parse annotation files from beginning to end, one after the other; say which of them cannot be read."""
    for name in names:
        try:
            document = _parse(source, name, beside_coco="coco.json" in names and name != "coco.json")
        except UnusableError as error:
            yield Refused("unreadable_json", f"{name}: {error}")
            continue
        if not document.images:
            yield Refused("no_images", f"{name} lists no image")
        yield document


def _parse(source: Source, name: str, *, beside_coco: bool) -> Document:
    lists: dict[str, list[Any]] = {}
    category_ids: set[int] | None = None
    seen = set()
    try:
        with source.open(name) as file:
            for member, value in json_members(file):
                if member in seen and member in ("images", "annotations", "categories"):
                    raise UnusableError("unreadable_json", f"it has `{member}` twice; export it from CVAT again")
                seen.add(member)
                if member == "annotations" and isinstance(value, Iterator):
                    ids = {as_id(entry.get("category_id")) for entry in value if isinstance(entry, dict)}
                    category_ids = {number for number in ids if number is not None}
                elif member in ("images", "categories") and isinstance(value, Iterator):
                    lists[member] = list(value)
    except UnusableError:
        raise
    except Exception as error:
        # Beside what JSON leads to, an archive's damage may be found only when it is unpacked so far.
        raise UnusableError("unreadable_json", f"not readable as JSON ({error}); export it from CVAT again") from None
    if "images" not in lists and category_ids is None:
        raise UnusableError("unreadable_json", "not a COCO file: it has no lists `images` and `annotations`")
    unused = None
    if beside_coco:
        unused = UnusableError("second_annotation_file", f"{name} is not used beside coco.json; remove one of them")
    elif category_ids is None:
        unused = UnusableError("no_annotations", f"{name} has no list `annotations`; export it from CVAT again")
    categories = _categories(lists.get("categories", []))
    return Document(source, name, lists.get("images", []), categories, category_ids or set(), unused)


def _categories(entries: list[Any]) -> dict[int, str]:
    """Return the names of the categories that have one; an id with two names has none."""
    names: dict[int, set[str]] = defaultdict(set)
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {}
        number, name = as_id(fields.get("id")), fields.get("name")
        if number is not None and isinstance(name, str):
            names[number].add(name)
    return {number: found.pop() for number, found in names.items() if len(found) == 1}


def listed_images(document: Document) -> Iterator[tuple[int | None, ListedImage]]:
    """Give the images by their ids; of an id that stands for two images none is used, as annotations fit either."""
    good: dict[int, tuple[str, int, int]] = {}
    problems: dict[int, UnusableError] = {}
    for entry in document.images:
        fields = entry if isinstance(entry, dict) else {}
        name, number = fields.get("file_name"), as_id(fields.get("id"))
        try:
            if document.unused is not None:
                raise document.unused
            image_id, checked = _checked_image(entry)
            if good.setdefault(image_id, checked) != checked:
                raise UnusableError("duplicate_image_id", f"another image has the id {image_id} too")
        except UnusableError as problem:
            if number is not None:
                problems[number] = problem
            yield number, ListedImage(name if isinstance(name, str) else None, problem)
    for number, clash in problems.items():
        if (first := good.pop(number, None)) is not None:
            yield None, ListedImage(first[0], UnusableError("duplicate_image_id", str(clash)))
    folder = _FOLDER if document.beside is None else ""
    for number, (file_name, width, height) in good.items():
        try:
            yield number, ListedImage(file_name, None, width, height, folder, _places(file_name, document))
        except UnusableError as problem:
            yield number, ListedImage(file_name, problem)


def _checked_image(entry: Any) -> tuple[int, tuple[str, int, int]]:
    """Return id, and file name, width and height in pixels."""
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


def _places(file_name: str, document: Document) -> tuple[str, ...]:
    """Return the names that an image's file may have: with and without the folder of a subset, as exports differ.

    Some systems write accented letters as one character, others as two; the name as it is comes first.
    """
    if "\r" in file_name:
        raise UnusableError("unsafe_path", f"the file name {file_name!r} holds a carriage return; rename the file")
    path = PurePosixPath(file_name)
    if _UNSAFE.search(file_name) or ".." in path.parts or not path.parts:
        raise UnusableError("unsafe_path", f"the file name {file_name!r} does not stay inside the images folder")
    beside, subset = document.beside, document.subset
    places = []
    for spelling in dict.fromkeys([file_name, *(unicodedata.normalize(form, file_name) for form in ("NFC", "NFD"))]):
        path = PurePosixPath(spelling)
        if beside is not None:
            places.append(str(beside / path))
            continue
        places.append(f"{_FOLDER}/{path}")
        places += [f"{_FOLDER}/{subset}/{path}"] if subset else []
        places += [str(path)] if path.parts[0] == _FOLDER and len(path.parts) > 1 else []
    return tuple(places)


def entries_of(document: Document) -> Iterator[Any]:
    """Give the entries of the list of annotations, one in memory at a time."""
    try:
        with document.source.open(document.name) as file:
            for name, value in json_members(file):
                if name == "annotations" and isinstance(value, Iterator):
                    yield from value
    except (ValueError, RecursionError) as error:
        raise InputDataError(f"an annotation file changed while it was read ({error}); convert again.") from None


def annotation_label(entry: Any, position: int) -> int | str:
    """Return the id of an annotation entry, or ``"#<position>"`` where it has none that can be used."""
    number = as_id(entry.get("id")) if isinstance(entry, dict) else None
    return f"#{position}" if number is None else number


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


def as_id(value: Any) -> int | None:
    """Return a value as a whole number if it is one that fits 64 bits (``3`` or ``3.0``), else None."""
    return int(value) if _is_number(value) and int(value) == value and abs(value) <= _MAX_ID else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
