"""CVAT's format "COCO 1.0": ``coco.json`` or ``annotations/instances_<subset>.json``, and ``images/``.

And COCO as other tools write it: ``_annotations.coco.json`` among the images of a split, ``train/``, ``valid/``, ….
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from construction_panoptic.annotations.formats.coco_entries import (
    ImageEntry,
    annotation_label,
    as_id,
    check_annotation_entry,
    check_image_entry,
)
from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject, Refused
from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.images import ImageError
from construction_panoptic.annotations.json_stream import json_members
from construction_panoptic.annotations.records import UnusableError
from construction_panoptic.errors import InputDataError

_BESIDE_IMAGES = "_annotations.coco.json"
_DOCUMENTS = re.compile(rf"(?:coco|annotations/instances_[^/]+)\.json|(?:[^/]+/)?{re.escape(_BESIDE_IMAGES)}")
_FOLDER = "images"


@dataclass(frozen=True)
class Document:
    """An annotation file; its annotations stay in the file.

    Attributes:
        images: the entries of its images, not checked; None where it has no such list.
        categories: the name of each id.
        category_ids: those that annotations name; None where there is no list of annotations.
        open: opens the file.
        subset: of the task that it is for; "" in ``coco.json``.
        beside: the folder of the file, where its images lie beside it.
        unused: why nothing in it is used.
    """

    images: list[Any] | None
    categories: dict[int, str]
    category_ids: set[int] | None
    open: Callable[[], BinaryIO]
    subset: str = ""
    beside: str | None = None
    unused: UnusableError | None = None


class CvatCocoReader:
    """CVAT's format "COCO 1.0".

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
        names = _document_names(source)
        for name in names:
            try:
                document = parse_document(partial(source.open, name))
            except UnusableError as error:
                yield Refused("unreadable_json", f"{name}: {error}")
                continue
            if not document.images:
                yield Refused("no_images", f"{name} lists no image")
            path = PurePosixPath(name)
            if path.name == _BESIDE_IMAGES:
                document = replace(document, beside=str(path.parent))
            elif "/" in name:
                document = replace(document, subset=path.stem.removeprefix("instances_"))
            documents.append(replace(document, unused=_why_unused(name, names, document)))
        used = {
            category_id if name is None else name
            for document in documents
            if document.unused is None
            for category_id in document.category_ids or ()
            for name in [document.categories.get(category_id)]
        }
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
                yield _object(entry, label, images, document, fallback, repeated=label in labels)
                labels.add(label)


def _document_names(source: Source) -> list[str]:
    found = [*source.glob("*.json"), *source.glob("annotations/instances_*.json"), *source.glob(f"*/{_BESIDE_IMAGES}")]
    names = sorted(filter(_DOCUMENTS.fullmatch, found), key=lambda name: ("/" in name, name))
    if len(names) > len(set(names)):
        detail = f"{source.path}: it holds a file of annotations twice ({', '.join(names)}); pack it again"
        raise ImageError("unreadable_archive", detail)
    return names


def _why_unused(name: str, names: list[str], document: Document) -> UnusableError | None:
    if "coco.json" in names and name != "coco.json":
        return UnusableError("second_annotation_file", f"{name} is not used beside coco.json; remove one of them")
    if document.category_ids is None:
        return UnusableError("no_annotations", f"{name} has no list `annotations`; export it from CVAT again")
    return None


def parse_document(open_file: Callable[[], BinaryIO]) -> Document:
    """Parse an annotation file from beginning to end; of its annotations nothing is held but the categories' ids.

    Raises:
        ImageError: the file cannot be opened.
        UnusableError: ``unreadable_json``: no JSON, not an object with a list of images or of annotations, or one that
            has one of the lists twice.
    """
    lists: dict[str, list[Any]] = {}
    category_ids: set[int] | None = None
    seen = set()
    try:
        with open_file() as file:
            for name, value in json_members(file):
                if name in seen and name in ("images", "annotations", "categories"):
                    raise UnusableError("unreadable_json", f"it has `{name}` twice; export it from CVAT again")
                seen.add(name)
                if name == "annotations" and isinstance(value, Iterator):
                    ids = {as_id(entry.get("category_id")) for entry in value if isinstance(entry, dict)}
                    category_ids = {number for number in ids if number is not None}
                elif name in ("images", "categories") and isinstance(value, Iterator):
                    lists[name] = list(value)
    except UnusableError:
        raise
    except Exception as error:
        # Beside what JSON leads to, an archive's damage may be found only when it is unpacked so far.
        raise UnusableError("unreadable_json", f"not readable as JSON ({error}); export it from CVAT again") from None
    if "images" not in lists and category_ids is None:
        raise UnusableError("unreadable_json", "not a COCO file: it has no lists `images` and `annotations`")
    return Document(lists.get("images"), _categories(lists.get("categories", [])), category_ids, open_file)


def _categories(entries: list[Any]) -> dict[int, str]:
    """Return the names of the categories that have one; an id with two names has none."""
    names: dict[int, str] = {}
    unclear = set()
    for entry in entries:
        category_id, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        number = as_id(category_id)
        if number is not None and isinstance(name, str) and names.setdefault(number, name) != name:
            unclear.add(number)
    return {number: name for number, name in names.items() if number not in unclear}


def listed_images(document: Document) -> Iterator[tuple[int | None, ListedImage]]:
    """Give the images of a document by their ids.

    Of an id that stands for two images none is used, since its annotations could belong to either.
    """
    good: dict[int, ImageEntry] = {}
    problems: dict[int, UnusableError] = {}
    for entry in document.images or []:
        fields = entry if isinstance(entry, dict) else {}
        name, number = fields.get("file_name"), as_id(fields.get("id"))
        try:
            if document.unused is not None:
                raise document.unused
            checked = check_image_entry(entry)
            if good.setdefault(checked.id, checked) != checked:
                raise UnusableError("duplicate_image_id", f"another image has the id {checked.id} too")
        except UnusableError as problem:
            if number is not None:
                problems[number] = problem
            yield number, ListedImage(name if isinstance(name, str) else None, problem)
    for number, clash in problems.items():
        if (first := good.pop(number, None)) is not None:
            yield None, ListedImage(first.file_name, UnusableError("duplicate_image_id", str(clash)))
    for number, image in good.items():
        try:
            places = _places(image.file_name, document)
        except UnusableError as problem:
            yield number, ListedImage(image.file_name, problem)
        else:
            folder = _FOLDER if document.beside is None else ""
            yield number, ListedImage(image.file_name, None, image.width, image.height, folder, places)


def _places(file_name: str, document: Document) -> tuple[str, ...]:
    """Return the names that an image's file may have.

    Newer exports leave out a folder per subset. Some systems write accented letters as one character, others as two:
    the name as it is comes first.
    """
    if "\r" in file_name:
        raise UnusableError("unsafe_path", f"the file name {file_name!r} holds a carriage return; rename the file")
    path = PurePosixPath(file_name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in file_name or "\0" in file_name or not path.parts
    if unsafe or re.match(r"[A-Za-z]:", file_name) or not _is_text(file_name):
        raise UnusableError("unsafe_path", f"the file name {file_name!r} does not stay inside the images folder")
    places = []
    for spelling in dict.fromkeys([file_name, *(unicodedata.normalize(form, file_name) for form in ("NFC", "NFD"))]):
        path = PurePosixPath(spelling)
        if document.beside is not None:
            places.append(str(document.beside / path))
            continue
        places.append(f"{_FOLDER}/{path}")
        places += [f"{_FOLDER}/{document.subset}/{path}"] if document.subset else []
        places += [str(path)] if path.parts[0] == _FOLDER and len(path.parts) > 1 else []
    return tuple(places)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(
    entry: Any,
    label: int | str,
    images: dict[int, ListedImage],
    document: Document,
    fallback: tuple[str, ...],
    *,
    repeated: bool,
) -> ListedObject:
    image_id = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
    image = None if image_id is None else images.get(image_id)
    try:
        if repeated:
            raise UnusableError("duplicate_annotation_id", "an annotation before it has the same id")
        if document.unused is not None:
            raise document.unused
        fields = check_annotation_entry(entry)
        if image is None:
            raise UnusableError("annotation_without_image", f"there is no image with its image_id {image_id}")
    except UnusableError as problem:
        return ListedObject(label, image, problem)
    category_id = as_id(entry.get("category_id"))
    if category_id is None:
        return ListedObject(label, image, None, (), "its category_id is missing or not a whole number", **fields)
    name = document.categories.get(category_id)
    if name is None:
        unknown = f"its category_id {category_id} has no name in `categories`"
        return ListedObject(label, image, None, fallback, unknown, **fields)
    unknown = f"its class {name!r} is not a thing of the taxonomy; add or rename it"
    return ListedObject(label, image, None, (name, *fallback), unknown, **fields)


def entries_of(document: Document) -> Iterator[Any]:
    """Give the entries of the list of annotations, one in memory at a time."""
    try:
        with document.open() as file:
            for name, value in json_members(file):
                if name == "annotations" and isinstance(value, Iterator):
                    yield from value
    except (ValueError, RecursionError) as error:
        raise InputDataError(f"an annotation file changed while it was read ({error}); convert again.") from None
