"""COCO's panoptic format: ``panoptic_<subset>.json``, and PNGs of segment ids in the folder ``panoptic_<subset>/``."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from construction_panoptic.annotations.formats.cvat_coco import (
    Document,
    annotation_label,
    check_annotation_entry,
    entries_of,
    id_of,
    listed_images,
    read_documents,
)
from construction_panoptic.annotations.formats.reader import ListedImage, ListedObject, Refused
from construction_panoptic.annotations.formats.sources import Source
from construction_panoptic.annotations.images import open_location
from construction_panoptic.annotations.merging.segment_shapes import segment_rles
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.annotations.records import UnusableError
from construction_panoptic.errors import InputDataError

_DOCUMENTS = re.compile(r"(?:annotations/)?panoptic(?:_[^/]+)?\.json")
_OTHERS = ("coco.json", "annotations/instances_*.json")
_REPEATED = UnusableError("duplicate_annotation_id", "a segment of the image before it has the same id")
_NOT_LISTED = UnusableError("segment_not_listed", "the PNG has the id, but `segments_info` has not")

Codes = dict[int, dict[str, Any]]
"""The run-length code of each id of a PNG."""


class CocoPanopticReader:
    """COCO's panoptic format: each segment is an annotation, of a thing or of stuff.

    PNGs lie in a folder beside the file of annotations and are called like it. Images lie in ``images/<subset>``,
    ``images``, ``<subset>``, ``input_images`` or beside everything: in the first of these that has one.
    """

    files = ("panoptic_*.json", "annotations/panoptic_*.json")

    def sniff(self, source: Source) -> bool:
        """Tell whether a source has one of `files`, or ``panoptic.json``."""
        return bool(_document_names(source))

    def read(self, source: Source) -> Iterator[ListedImage | ListedObject | Refused]:
        """Give everything that a source lists, see `reader.AnnotationReader`."""
        names = _document_names(source)
        used = [name for name in names if source.glob(f"{PurePosixPath(name).with_suffix('')}/*.png")] or names
        others = (name for pattern in _OTHERS for name in source.glob(pattern))
        for name in sorted({*names, *others} - {*used}):
            detail = f"{name} is not used beside {used[0]}, which has a folder of PNGs; move it into another folder"
            yield Refused("second_annotation_file", detail)
        for document in read_documents(source, used):
            if isinstance(document, Refused):
                yield document
                continue
            listed = list(listed_images(document))
            subset = PurePosixPath(document.name).stem.removeprefix("panoptic_")
            folder = _image_folder(source, [image for _, image in listed], subset)
            images: dict[int | None, ListedImage] = {}
            for number, image in listed:
                moved = replace(image, folder=folder, places=_places(image, folder))
                if number is not None:
                    images[number] = moved
                yield moved
            yield from _objects(document, images)


def _document_names(source: Source) -> list[str]:
    found = [*source.glob("panoptic*.json"), *source.glob("annotations/panoptic*.json")]
    return sorted(filter(_DOCUMENTS.fullmatch, found))


def _places(image: ListedImage, folder: str) -> tuple[str, ...]:
    return tuple(str(PurePosixPath(folder, place.removeprefix("images/"))) for place in image.places)


def _image_folder(source: Source, images: list[ListedImage], subset: str) -> str:
    folders = (f"images/{subset}", "images", subset, "input_images", "")

    def is_there(place: str) -> bool:
        try:
            return source.locate(place) is not None
        except UnusableError:  # which is said of the image
            return True

    return next((folder for folder in folders for i in images for p in _places(i, folder) if is_there(p)), "images")


def _objects(document: Document, images: dict[int | None, ListedImage]) -> Iterator[ListedObject]:
    """Give the segments of each image, and the ids of its PNG that are none of them."""
    seen: set[ListedImage] = set()
    for position, entry in enumerate(entries_of(document)):
        image_id = id_of(entry, "image_id")
        image = images.get(image_id)
        segments = entry.get("segments_info") if isinstance(entry, dict) else None
        codes: Codes | None = None
        problem = document.unused
        try:
            if image is None:
                raise UnusableError("annotation_without_image", f"there is no image with its image_id {image_id}")
            if image in seen:
                raise UnusableError("duplicate_annotation_id", "another annotation before it is of the same image")
            seen.add(image)
            if not isinstance(segments, list):
                raise UnusableError("bad_annotation_entry", "it has no list `segments_info`")
            if problem is None and image.problem is None:
                codes = _codes(document, entry.get("file_name"), image)
        except UnusableError as found:
            problem = problem or found
        labels: set[int | str] = set()
        # An entry without segments that cannot be used is a record itself.
        for segment in segments if isinstance(segments, list) and segments else [None] if problem else []:
            label = annotation_label(segment, position)
            repeated = _REPEATED if label in labels else None
            yield _object(segment, label, image, document, codes, problem or repeated)
            labels.add(label)
        yield from (ListedObject(number, image, _NOT_LISTED) for number in sorted((codes or {}).keys() - labels))


def _object(
    segment: Any,
    label: int | str,
    image: ListedImage | None,
    document: Document,
    codes: Codes | None,
    problem: UnusableError | None,
) -> ListedObject:
    try:
        if problem is not None:
            raise problem
        if not isinstance(segment, dict):
            raise UnusableError("bad_annotation_entry", "the entry in `segments_info` is not an object")
        fields = check_annotation_entry({**segment, "image_id": 0, "segmentation": None})
        if codes is not None:
            fields["segmentation"] = codes.get(label) if isinstance(label, int) else None
            if fields["segmentation"] is None:
                raise UnusableError("zero_area", "no pixel of the PNG has its id")
    except UnusableError as found:
        return ListedObject(label, image, found)
    name = document.categories.get(id_of(segment, "category_id"))
    if name is None:
        unknown = f"its category_id {segment.get('category_id')!r} has no name in `categories`, or two"
        return ListedObject(label, image, None, (), unknown, **fields)
    unknown = f"its class {name!r} is not in the taxonomy; add or rename it"
    return ListedObject(label, image, None, (name,), unknown, **fields)


def _codes(document: Document, file_name: Any, image: ListedImage) -> Codes:
    """Read a PNG; `UnusableError`: it is missing, is none of segment ids, or has another size than its image."""
    name = f"{PurePosixPath(document.name).with_suffix('')}/{file_name}"
    location = document.source.locate(name)
    if location is None:
        raise UnusableError("missing_file", f"there is no file {name}")
    try:
        with open_location(location) as file:
            id_map = decode_id_map(file.read())
    except InputDataError as error:
        raise UnusableError("unreadable_image", f"{name}: {error}") from None
    if id_map.shape != (image.height, image.width):
        detail = f"{name} has {id_map.shape[1]} x {id_map.shape[0]} pixels, its image {image.width} x {image.height}"
        raise UnusableError("size_mismatch", detail)
    return segment_rles(id_map)
