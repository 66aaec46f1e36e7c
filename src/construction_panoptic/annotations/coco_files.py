"""COCO panoptic and COCO detection files of the converted data, checked strictly against the PNGs."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.annotations.merging.panoptic_check import detections_of_image
from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split.splitting import split_digest
from construction_panoptic.annotations.tables import RowsOfKeys, WaitingItems
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError
from construction_panoptic.parallel.workers import Engine, WorkerCount, Workers


class CocoFiles:
    """The COCO files of converted images, by side of the split; their lists are iterators over entries in files.

    Image ids number all images from 1 in the order of their keys, so that an image has the same id whichever side it is
    on. The classes of the taxonomy are the categories. Raises `InputDataError`: see `with_side`; or a segment's class
    is not in the taxonomy.
    """

    def __init__(self, records: Iterable[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy) -> None:
        self._taxonomy, self._digest = taxonomy, split_digest(split_table)
        self._entries: dict[str, WaitingItems] = defaultdict(WaitingItems)  # annotation and image, by side
        for number, (record, side) in enumerate(with_side(records, split_table), 1):
            image = {"id": number, "file_name": record.image_file, "width": record.width, "height": record.height}
            segments = [_segment_info(record, segment, taxonomy) for segment in record.segments]
            annotation = {"image_id": number, "file_name": record.png_file, "segments_info": segments}
            self._entries[side].add((annotation, image))

    def panoptic(self, side: str) -> dict[str, Any]:
        """Give the COCO panoptic file of a side, "train" or "val"."""
        info = {"description": f"construction_panoptic: {side}, COCO panoptic format", "split_sha256": self._digest}
        return self._document(side, info, (annotation for annotation, _ in self._entries[side]))

    def detection(
        self, side: str, png_folder: Path | str, *, workers: WorkerCount = 1, engine: Engine = "local"
    ) -> dict[str, Any]:
        """Give the COCO detection file of a side: every segment, things and stuff, as a visible mask with its box.

        While annotations are drawn from it, all that the panoptic file says of an image is checked against its PNG, in
        processes. Raises `InputDataError` then: a PNG is missing, damaged, or not what the panoptic file says of it.
        """
        info = {"description": "construction_panoptic: visible masks of things and stuff, COCO format"}
        return self._document(side, info, self._detections(side, Path(png_folder), workers, engine))

    def _document(self, side: str, info: dict[str, str], annotations: Iterator[dict[str, Any]]) -> dict[str, Any]:
        images = (image for _, image in self._entries[side])
        categories = self._taxonomy.coco_categories()
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}

    def _detections(
        self, side: str, png_folder: Path, workers: WorkerCount, engine: Engine
    ) -> Iterator[dict[str, Any]]:
        detect = partial(detections_of_image, png_folder, self._taxonomy.is_thing)
        with Workers(workers, engine) as pool:
            found = chain.from_iterable(pool.map(detect, self._entries[side]))
            yield from ({"id": number, **detection} for number, detection in enumerate(found, 1))


def with_side(records: Iterable[ConvertedRecord], split_table: pd.DataFrame) -> Iterator[tuple[ConvertedRecord, str]]:
    """Give each of the converted images, in the order of their keys, with its side of the split table (key, split).

    Raises `InputDataError`: a record is not in the table, comes twice or out of order.
    """
    sides, before = RowsOfKeys(split_table, ["split"]), ""
    for record in records:
        if record.key <= before:
            raise InputDataError(f"image {record.key!r} comes twice or out of order; convert again.")
        before = record.key
        if not (rows := sides.of(record.key)):
            raise InputDataError(f"image {record.key!r} is not in the split; split again.")
        yield record, rows[0]["split"]


def _segment_info(record: ConvertedRecord, segment: Segment, taxonomy: Taxonomy) -> dict[str, Any]:
    if segment.category_id not in taxonomy.names:
        place = f"image {record.key!r}, segment {segment.id}: class {segment.category_id}"
        raise InputDataError(f"{place} is not in the taxonomy; convert again with this taxonomy.")
    return {name: getattr(segment, name) for name in ("id", "category_id", "area", "bbox", "iscrowd")}
