"""CVAT's format "COCO 1.0", also as other tools write it; and what all readers of COCO files share."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject, Refused
from construction_panoptic.annotations.formats.sources import Source
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
        found = list(read_documents(source, _document_names(source)))
        yield from (refused for refused in found if isinstance(refused, Refused))
        documents = [document for document in found if isinstance(document, Document)]
        in_use = [document for document in documents if document.unused is None]
        used = {document.categories.get(number, number) for document in in_use for number in document.category_ids}
        fallback = (source.name,) if len(used) == 1 else ()
        positions = count()
        for document in documents:
            images: dict[int | None, ListedImage] = {}
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
    return sorted(filter(_DOCUMENTS.fullmatch, found), key=lambda name: ("/" in name, name))


def _object(
    entry: Any, label: int | str, images: dict[int | None, ListedImage], document: "Document", fallback: tuple[str, ...]
) -> ListedObject:
    image_id = id_of(entry, "image_id")
    image = images.get(image_id)
    try:
        if document.unused is not None:
            raise document.unused
        fields = check_annotation_entry(entry)
        if image is None:
            raise UnusableError("annotation_without_image", f"there is no image with its image_id {image_id}")
    except UnusableError as problem:
        return ListedObject(label, image, problem)
    category_id = id_of(entry, "category_id")
    name = document.categories.get(category_id)
    classes: tuple[str, ...] = ()
    if category_id is None:
        unknown = "its category_id is missing or not a whole number"
    elif name is None:
        classes, unknown = fallback, f"its category_id {category_id} has no name in `categories`, or two"
    else:
        classes, unknown = (name, *fallback), f"its class {name!r} is not in the taxonomy; add or rename it"
    return ListedObject(label, image, None, classes, unknown, **fields)


class Document(NamedTuple):
    """An annotation file; its annotations stay in the file."""

    source: Source
    name: str
    images: list[Any]  # entries, not checked
    categories: dict[int | None, str]  # the name of each id
    category_ids: set[int | None]  # those that annotations name
    unused: UnusableError | None  # why nothing in it is used

    @property
    def beside(self) -> PurePosixPath | None:
        """Its folder, where images lie beside it."""
        path = PurePosixPath(self.name)
        return path.parent if path.name == _BESIDE_IMAGES else None


def read_documents(source: Source, names: list[str]) -> Iterator[Document | Refused]:
    """Parse annotation files from beginning to end, one after the other; say which of them cannot be read."""
    for name in names:
        try:
            document = _parse(source, name, beside_coco="coco.json" in names and name != "coco.json")
        except UnusableError as error:
            yield Refused("unreadable_json", f"{name}: {error}")
        except Exception as error:
            # Beside what JSON leads to, an archive's damage may be found only when it is unpacked so far.
            yield Refused("unreadable_json", f"{name}: not readable as JSON ({error}); export it from CVAT again")
        else:
            if not document.images:
                yield Refused("no_images", f"{name} lists no image")
            yield document


def _parse(source: Source, name: str, *, beside_coco: bool) -> Document:
    found: dict[str, Any] = {}  # what is kept of each list; None where it is something else
    with source.open(name) as file:
        for member, value in json_members(file):
            if member not in ("images", "annotations", "categories"):
                continue
            if member in found:
                raise UnusableError("unreadable_json", f"it has `{member}` twice; export it from CVAT again")
            if not isinstance(value, Iterator):
                found[member] = None
            elif member == "annotations":
                found[member] = {id_of(entry, "category_id") for entry in value} - {None}
            else:
                found[member] = list(value)
    images, category_ids = found.get("images"), found.get("annotations")
    if images is None and category_ids is None:
        raise UnusableError("unreadable_json", "not a COCO file: it has no lists `images` and `annotations`")
    unused = None
    if beside_coco:
        unused = UnusableError("second_annotation_file", f"{name} is not used beside coco.json; remove one of them")
    elif category_ids is None:
        unused = UnusableError("no_annotations", f"{name} has no list `annotations`; export it from CVAT again")
    categories = _categories(found.get("categories") or [])
    return Document(source, name, images or [], categories, category_ids or set(), unused)


def _categories(entries: list[Any]) -> dict[int | None, str]:
    """Return the names of the categories that have one; an id with two names has none."""
    named = {(id_of(e, "id"), e["name"]) for e in entries if isinstance(e, dict) and isinstance(e.get("name"), str)}
    times = Counter(number for number, _ in named)
    return {number: name for number, name in named if number is not None and times[number] == 1}


def listed_images(document: Document) -> Iterator[tuple[int | None, ListedImage]]:
    """Give the images by their ids; of an id that stands for two images none is used, as annotations fit either."""
    good: dict[int | None, tuple[str, int, int]] = {}
    problems: dict[int | None, UnusableError] = {}
    for entry in document.images:
        number = id_of(entry, "id")
        try:
            if document.unused is not None:
                raise document.unused
            checked = _checked_image(entry)
            if good.setdefault(number, checked) != checked:
                raise _same_id(number)
        except UnusableError as problem:
            problems[number] = problem
            name = entry.get("file_name") if isinstance(entry, dict) else None
            yield number, ListedImage(name if isinstance(name, str) else None, problem)
    for number in problems:
        if (first := good.pop(number, None)) is not None:
            yield None, ListedImage(first[0], _same_id(number))
    folder = _FOLDER if document.beside is None else ""
    for number, (file_name, width, height) in good.items():
        try:
            yield number, ListedImage(file_name, None, width, height, folder, _places(file_name, document))
        except UnusableError as problem:
            yield number, ListedImage(file_name, problem)


def _same_id(number: int | None) -> UnusableError:
    return UnusableError("duplicate_image_id", f"another image has the id {number} too")


def _checked_image(entry: Any) -> tuple[str, int, int]:
    """Return file name, width and height in pixels."""
    if not isinstance(entry, dict):
        raise UnusableError("bad_image_entry", "the entry in `images` is not an object")
    numbers = {name: id_of(entry, name) for name in ("id", "width", "height")}
    wrong = [name for name, number in numbers.items() if number is None or (name != "id" and number < 1)]
    file_name = entry.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        wrong.append("file_name")
    if wrong:
        raise UnusableError("bad_image_entry", f"the entry in `images` has no usable {', '.join(wrong)}")
    return str(file_name), int(entry["width"]), int(entry["height"])


def _places(file_name: str, document: Document) -> tuple[str, ...]:
    """Return the names that an image's file may have: with and without the folder of a subset, as exports differ.

    Some systems write accented letters as one character, others as two; the name as it is comes first.
    """
    if "\r" in file_name:
        raise UnusableError("unsafe_path", f"the file name {file_name!r} holds a carriage return; rename the file")
    path = PurePosixPath(file_name)
    if _UNSAFE.search(file_name) or ".." in path.parts or not path.parts:
        raise UnusableError("unsafe_path", f"the file name {file_name!r} does not stay inside the images folder")
    if document.beside is not None:
        folders = [str(document.beside)]
    else:
        stem = PurePosixPath(document.name).stem
        folders = [_FOLDER]
        folders += [f"{_FOLDER}/{stem.removeprefix('instances_')}"] if stem.startswith("instances_") else []
        folders += [""] if path.parts[0] == _FOLDER and len(path.parts) > 1 else []
    spellings = dict.fromkeys([file_name, *(unicodedata.normalize(form, file_name) for form in ("NFC", "NFD"))])
    return tuple(str(PurePosixPath(folder, spelling)) for spelling in spellings for folder in folders)


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
    number = id_of(entry, "id")
    return f"#{position}" if number is None else number


def check_annotation_entry(entry: Any) -> dict[str, Any]:
    """Check an entry of ``annotations``; return what it says of an object, as fields of `reader.ListedObject`."""
    if not isinstance(entry, dict):
        raise UnusableError("bad_annotation_entry", "the entry in `annotations` is not an object")
    if id_of(entry, "id") is None:
        raise UnusableError("bad_annotation_entry", "its id is missing or not a whole number")
    if id_of(entry, "image_id") is None:
        raise UnusableError("annotation_without_image", "its image_id is missing or not a whole number")
    crowd = entry.get("iscrowd", 0)
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
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
        "iscrowd": int(crowd),
        "bbox": bbox if usable["bbox"] else None,
        "rotation": float(rotation) if _is_number(rotation) and abs(rotation) <= 360 else 0.0,
        "area": float(area) if usable["area"] else None,
        "unusable": tuple(name for name in usable if not usable[name] and entry.get(name) not in (None, [])),
    }


def id_of(entry: Any, name: str) -> int | None:
    """Return what an entry has under a name if it is a whole number that fits 64 bits (``3`` or ``3.0``), else None."""
    value: Any = entry.get(name) if isinstance(entry, dict) else None
    return int(value) if _is_number(value) and int(value) == value and abs(value) <= _MAX_ID else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
