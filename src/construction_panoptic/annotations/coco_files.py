"""COCO panoptic and COCO detection files of the converted data, and a strict check of the former."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.annotations.merging.panoptic_check import (
    Entry,
    detections_of_image,
    problems_of_image,
    refuse,
    repeated,
)
from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.split.splitting import TRAIN, VAL
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.parallel.workers import Engine, WorkerCount, Workers

ALL = "all"
_LAST_KEY = chr(sys.maxunicode)  # after all keys


def panoptic_json(
    records: Iterable[ConvertedRecord], split_table: pd.DataFrame, which: str, taxonomy: Taxonomy
) -> dict[str, Any]:
    """Build the COCO panoptic file of one side of the split.

    Image ids number all records from 1 in the order of their keys, so that an image has the same id whichever
    side it is on.

    Args:
        records: all converted images, of both sides.
        split_table: columns key and split, with a row for each record.
        which: "train", "val", or "all".
        taxonomy: its classes are the categories.

    Returns:
        ``{"info", "images", "annotations", "categories"}``, ready for JSON.

    Raises:
        InputDataError: a record is not in the split table, or a segment's class is not in the taxonomy.
        ParameterError: ``which`` is something else.
    """
    streamed = panoptic_stream(sorted(records, key=lambda record: record.key), split_table, which, taxonomy)
    return streamed | {name: list(streamed[name]) for name in ("images", "annotations")}


def panoptic_stream(
    records: Iterable[ConvertedRecord],
    split_table: pd.DataFrame,
    which: str,
    taxonomy: Taxonomy,
) -> dict[str, Any]:
    """Give what `panoptic_json` gives, with iterators as lists.

    Args:
        records: all converted images in the order of their keys; iterated over several times.
        split_table: columns key and split, with a row for each record.
        which: "train", "val", or "all".
        taxonomy: its classes are the categories.

    Raises:
        InputDataError: see `panoptic_json`; while the lists are drawn from.
        ParameterError: ``which`` is something else.
    """
    _check_side(which)
    chosen = partial(_chosen, records, split_table, which)
    return {
        "info": {"description": f"construction_panoptic: {which}, COCO panoptic format"},
        "images": (_image(image_id, record) for image_id, record in chosen()),
        "annotations": (_annotation(image_id, record, taxonomy) for image_id, record in chosen()),
        "categories": taxonomy.coco_categories(),
    }


def _check_side(which: str) -> None:
    if which not in (TRAIN, VAL, ALL):
        raise ParameterError(f"which is {which!r}; give 'train', 'val' or 'all'.")


def _chosen(
    records: Iterable[ConvertedRecord], split_table: pd.DataFrame, which: str
) -> Iterator[tuple[int, ConvertedRecord]]:
    """Give image id and record of the images of one side; ids number the records of both sides."""
    # Both sides in the order of their keys: to look each key up would need all of them in memory.
    table = split_table.sort_values("key")
    listed = zip(table["key"], table["split"], strict=True)
    key, side, before = "", "", ""
    for image_id, record in enumerate(records, 1):
        if record.key <= before:
            raise InputDataError(f"image {record.key!r} comes twice or out of order; convert again.")
        before = record.key
        while key < record.key:
            key, side = next(listed, (_LAST_KEY, ""))
        if key != record.key:
            raise InputDataError(f"image {record.key!r} is not in the split; split again.")
        if which in (ALL, side):
            yield image_id, record


def _image(image_id: int, record: ConvertedRecord) -> dict[str, Any]:
    return {"id": image_id, "file_name": record.image_file, "width": record.width, "height": record.height}


def _annotation(image_id: int, record: ConvertedRecord, taxonomy: Taxonomy) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "file_name": record.png_file,
        "segments_info": _segments_info(record, taxonomy),
    }


def detection_json(
    panoptic: Mapping[str, Any], png_folder: Path | str, *, workers: WorkerCount = 1, engine: Engine = "local"
) -> dict[str, Any]:
    """Build the COCO detection file that belongs to a COCO panoptic file: every segment, things and stuff.

    ``bbox`` and ``area`` are those of the visible mask, and ``segmentation`` is that mask as compressed
    run-length code. Annotation ids count from 1 in the order of the panoptic file. All that this file says of an
    image is checked against its PNG.

    Args:
        panoptic: content of the COCO panoptic file.
        png_folder: folder of its PNGs.
        workers: processes that read PNGs, or "auto".
        engine: what runs them, see `parallel.Workers`.

    Returns:
        ``{"info", "images", "annotations", "categories"}``, ready for JSON.

    Raises:
        InputDataError: a PNG is missing, damaged, or not what the panoptic file says of it (see `panoptic_problems`).
    """
    of_image = {image["id"]: image for image in panoptic["images"]}
    entries = ((annotation, of_image.get(annotation["image_id"])) for annotation in panoptic["annotations"])
    images, categories = ([dict(item) for item in panoptic[name]] for name in ("images", "categories"))
    return _detection_document(images, list(_detections(entries, categories, png_folder, workers, engine)), categories)


def detection_stream(
    records: Iterable[ConvertedRecord],
    split_table: pd.DataFrame,
    which: str,
    taxonomy: Taxonomy,
    png_folder: Path | str,
    *,
    workers: WorkerCount = 1,
    engine: Engine = "local",
) -> dict[str, Any]:
    """Give what `detection_json` gives for the file of `panoptic_stream`, with iterators as lists.

    Each image is checked strictly against its PNG on the way.

    Args:
        records: all converted images in the order of their keys; iterated over several times.
        split_table: columns key and split, with a row for each record.
        which: "train", "val", or "all".
        taxonomy: its classes are the categories.
        png_folder: folder of the PNGs.
        workers: processes that read PNGs, or "auto".
        engine: what runs them, see `parallel.Workers`.

    Raises:
        InputDataError: see `panoptic_json` and `detection_json`; while the lists are drawn from.
        ParameterError: ``which`` is something else.
    """
    _check_side(which)
    chosen, categories = partial(_chosen, records, split_table, which), taxonomy.coco_categories()
    entries = ((_annotation(image_id, record, taxonomy), _image(image_id, record)) for image_id, record in chosen())
    annotations = _detections(entries, categories, png_folder, workers, engine)
    return _detection_document((_image(image_id, record) for image_id, record in chosen()), annotations, categories)


def _detection_document(images: Any, annotations: Any, categories: list[dict[str, Any]]) -> dict[str, Any]:
    info = {"description": "construction_panoptic: visible masks of things and stuff, COCO format"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _detections(
    entries: Iterable[tuple[Entry, Entry | None]],
    categories: Iterable[Entry],
    png_folder: Path | str,
    workers: WorkerCount,
    engine: Engine,
) -> Iterator[dict[str, Any]]:
    """Give the numbered detections of images, each a panoptic annotation and its image."""
    detect = partial(detections_of_image, Path(png_folder), _things(categories))
    with Workers(workers, engine) as pool:
        found = (detection for image in pool.map(detect, entries) for detection in image)
        yield from ({"id": number, **detection} for number, detection in enumerate(found, 1))


def check_panoptic(panoptic: Mapping[str, Any], png_folder: Path | str, *, workers: WorkerCount = 1) -> None:
    """Check a COCO panoptic file against its PNGs, strictly.

    Raises:
        InputDataError: names the first problems, of those that `panoptic_problems` finds.
    """
    refuse(panoptic_problems(panoptic, png_folder, workers=workers))


def panoptic_problems(panoptic: Mapping[str, Any], png_folder: Path | str, *, workers: WorkerCount = 1) -> list[str]:
    """List what breaks the COCO panoptic format.

    Checked: unique ids and names of images, annotations and categories; one annotation an image; ids in
    1…2^24-1, unique in the image; every PNG id listed and the reverse; integer ``area`` and ``bbox`` equal to
    the PNG's; ``iscrowd`` 0 or 1, and 0 for stuff; no image, category or file that does not exist.

    Returns:
        One sentence a problem, with the file and segment; empty if the data is sound.
    """
    images = {image["id"]: image for image in panoptic["images"]}
    problems = [
        *repeated("image id", (image["id"] for image in panoptic["images"])),
        *repeated("image file", (image["file_name"] for image in panoptic["images"])),
        *repeated("category id", (category["id"] for category in panoptic["categories"])),
        *repeated("category name", (category["name"] for category in panoptic["categories"])),
        *repeated("annotation of image", (a["image_id"] for a in panoptic["annotations"])),
        *repeated("PNG", (a["file_name"] for a in panoptic["annotations"])),
    ]
    annotated = {annotation["image_id"] for annotation in panoptic["annotations"]}
    problems += [f"image {images[i]['file_name']} has no annotation" for i in images if i not in annotated]

    entries = ((annotation, images.get(annotation["image_id"])) for annotation in panoptic["annotations"])
    check = partial(problems_of_image, Path(png_folder), _things(panoptic["categories"]))
    with Workers(workers) as pool:
        return problems + [text for found in pool.map(check, entries) for text in found]


def _things(categories: Iterable[Entry]) -> dict[int, int]:
    return {category["id"]: category["isthing"] for category in categories}


def _segments_info(record: ConvertedRecord, taxonomy: Taxonomy) -> list[dict[str, Any]]:
    for segment in record.segments:
        if segment.category_id not in taxonomy.names:
            raise InputDataError(
                f"image {record.key!r}, segment {segment.id}: class {segment.category_id} is not in the "
                "taxonomy; convert again with this taxonomy."
            )
    return [
        {
            "id": segment.id,
            "category_id": segment.category_id,
            "area": segment.area,
            "bbox": list(segment.bbox),
            "iscrowd": segment.iscrowd,
        }
        for segment in record.segments
    ]
