"""COCO panoptic and COCO detection files of the converted data, checked strictly against the PNGs."""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.annotations.merging.panoptic_check import detections_of_image
from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.tables import TableBuilder
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError
from construction_panoptic.parallel.workers import Engine, WorkerCount, Workers

_LAST_KEY = chr(sys.maxunicode)  # after all keys
_IMAGE_COLUMNS = {"id": "int64", "file_name": "string", "width": "int64", "height": "int64", "side": "string"}


class CocoFiles:
    """The COCO files of converted images, by side of the split; their lists are iterators that read as they go.

    Image ids number all images from 1 in the order of their keys, so that an image has the same id whichever side it
    is on.

    Args:
        records: all converted images, of both sides, in the order of their keys; read once here, and once for the
            annotations of each file.
        split_table: columns key and split, with a row for each record.
        taxonomy: its classes are the categories.

    Raises:
        InputDataError: a record is not in the split table, comes twice or out of order.
    """

    def __init__(self, records: Iterable[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy) -> None:
        self._records = records
        self._taxonomy = taxonomy
        images = TableBuilder(_IMAGE_COLUMNS)
        for number, (record, side) in enumerate(with_side(records, split_table), 1):
            size = {"width": record.width, "height": record.height}
            images.add({"id": number, "file_name": record.image_file, **size, "side": side})
        self._images = images.table()

    def panoptic(self, side: str) -> dict[str, Any]:
        """Give the COCO panoptic file of a side, "train" or "val".

        Raises:
            InputDataError: a segment's class is not in the taxonomy; while the annotations are drawn from.
        """
        return {
            "info": {"description": f"construction_panoptic: {side}, COCO panoptic format"},
            "images": self._image_entries(side),
            "annotations": self._annotations(side),
            "categories": self._taxonomy.coco_categories(),
        }

    def detection(
        self, side: str, png_folder: Path | str, *, workers: WorkerCount = 1, engine: Engine = "local"
    ) -> dict[str, Any]:
        """Give the COCO detection file of a side: every segment, things and stuff, as a visible mask with its box.

        All that the panoptic file says of an image is checked against its PNG on the way.

        Args:
            side: "train" or "val".
            png_folder: folder of the PNGs.
            workers: processes that read PNGs, or "auto".
            engine: what runs them, see `parallel.Workers`.

        Raises:
            InputDataError: a PNG is missing, damaged, or not what the panoptic file says of it; while the annotations
                are drawn from.
        """
        return {
            "info": {"description": "construction_panoptic: visible masks of things and stuff, COCO format"},
            "images": self._image_entries(side),
            "annotations": self._detections(side, Path(png_folder), workers, engine),
            "categories": self._taxonomy.coco_categories(),
        }

    def _image_entries(self, side: str) -> Iterator[dict[str, Any]]:
        of_side = self._images.loc[self._images["side"] == side, ["id", "file_name", "width", "height"]]
        for row in of_side.itertuples(index=False, name=None):
            yield dict(zip(of_side.columns, row, strict=True))

    def _annotations(self, side: str) -> Iterator[dict[str, Any]]:
        for number, (record, found) in enumerate(zip(self._records, self._images["side"], strict=True), 1):
            if found == side:
                segments = [_segment_info(record, segment, self._taxonomy) for segment in record.segments]
                yield {"image_id": number, "file_name": record.png_file, "segments_info": segments}

    def _detections(
        self, side: str, png_folder: Path, workers: WorkerCount, engine: Engine
    ) -> Iterator[dict[str, Any]]:
        detect = partial(detections_of_image, png_folder, self._taxonomy.is_thing)
        entries = zip(self._annotations(side), self._image_entries(side), strict=True)
        with Workers(workers, engine) as pool:
            found = (detection for image in pool.map(detect, entries) for detection in image)
            yield from ({"id": number, **detection} for number, detection in enumerate(found, 1))


def with_side(records: Iterable[ConvertedRecord], split_table: pd.DataFrame) -> Iterator[tuple[ConvertedRecord, str]]:
    """Give each record with its side of the split.

    Args:
        records: the converted images in the order of their keys.
        split_table: columns key and split, with a row for each record.

    Raises:
        InputDataError: a record is not in the split table, comes twice or out of order.
    """
    # Both in the order of their keys: to look each key up would need all of them in memory.
    table = split_table.sort_values("key")
    listed = zip(table["key"], table["split"], strict=True)
    key, side, before = "", "", ""
    for record in records:
        if record.key <= before:
            raise InputDataError(f"image {record.key!r} comes twice or out of order; convert again.")
        before = record.key
        while key < record.key:
            key, side = next(listed, (_LAST_KEY, ""))
        if key != record.key:
            raise InputDataError(f"image {record.key!r} is not in the split; split again.")
        yield record, side


def _segment_info(record: ConvertedRecord, segment: Segment, taxonomy: Taxonomy) -> dict[str, Any]:
    if segment.category_id not in taxonomy.names:
        raise InputDataError(
            f"image {record.key!r}, segment {segment.id}: class {segment.category_id} is not in the "
            "taxonomy; convert again with this taxonomy."
        )
    return {
        "id": segment.id,
        "category_id": segment.category_id,
        "area": segment.area,
        "bbox": list(segment.bbox),
        "iscrowd": segment.iscrowd,
    }
