"""COCO panoptic and COCO detection files of the converted data."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split.splitting import split_digest
from construction_panoptic.annotations.tables import WaitingItems
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError


class CocoFiles:
    """The COCO files of converted images, by side of the split; their lists are iterators over entries in files.

    Image ids number all images from 1 in the order of their keys, so that an image has the same id whichever side it is
    on. The classes of the taxonomy are the categories. Raises `InputDataError`: see `with_side`; or a segment's class
    is not in the taxonomy.
    """

    def __init__(self, records: Iterable[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy) -> None:
        self._taxonomy, self._digest = taxonomy, split_digest(split_table)
        # By side: of each image its panoptic annotation, its own entry, its segments' masks and its PNG's hash.
        self._entries: dict[str, WaitingItems] = defaultdict(WaitingItems)
        for number, (record, side) in enumerate(with_side(records, split_table), 1):
            image = {"id": number, "file_name": record.image_file, "width": record.width, "height": record.height}
            segments = [_segment_info(record, segment, taxonomy) for segment in record.segments]
            annotation = {"image_id": number, "file_name": record.png_file, "segments_info": segments}
            masks = [segment.counts for segment in record.segments]
            self._entries[side].add((annotation, image, masks, record.png_sha256))

    def panoptic(self, side: str) -> dict[str, Any]:
        """Give the COCO panoptic file of a side, "train" or "val"."""
        info = {"description": f"construction_panoptic: {side}, COCO panoptic format", "split_sha256": self._digest}
        return self._document(side, info, (annotation for annotation, *_ in self._entries[side]))

    def detection(self, side: str, png_folder: Path | str) -> dict[str, Any]:
        """Give the COCO detection file of a side: every segment, things and stuff, as a visible mask with its box.

        Raises `InputDataError` while annotations are drawn from it: a PNG is missing, or not what was converted.
        """
        info = {"description": "construction_panoptic: visible masks of things and stuff, COCO format"}
        return self._document(side, info, self._detections(side, Path(png_folder)))

    def _document(self, side: str, info: dict[str, str], annotations: Iterator[dict[str, Any]]) -> dict[str, Any]:
        images = (image for _, image, *_ in self._entries[side])
        categories = self._taxonomy.coco_categories()
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}

    def _detections(self, side: str, png_folder: Path) -> Iterator[dict[str, Any]]:
        numbers = count(1)
        for annotation, image, masks, digest in self._entries[side]:
            _check_png(png_folder / annotation["file_name"], digest)
            size = [image["height"], image["width"]]
            for segment, counts in zip(annotation["segments_info"], masks, strict=True):
                about = {name: segment[name] for name in ("category_id", "bbox", "area", "iscrowd")}
                mask = {"size": size, "counts": counts}
                yield {"id": next(numbers), "image_id": image["id"], **about, "segmentation": mask}


def with_side(records: Iterable[ConvertedRecord], split_table: pd.DataFrame) -> Iterator[tuple[ConvertedRecord, str]]:
    """Give each of the converted images, in the order of their keys, with its side of the split table (key, split).

    Raises `InputDataError`: a record is not in the table, comes twice or out of order.
    """
    sides, before = dict(zip(split_table["key"], split_table["split"], strict=True)), ""
    for record in records:
        if record.key <= before:
            raise InputDataError(f"image {record.key!r} comes twice or out of order; convert again.")
        before = record.key
        if record.key not in sides:
            raise InputDataError(f"image {record.key!r} is not in the split; split again.")
        yield record, sides[record.key]


def _check_png(path: Path, digest: str) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputDataError(f"{path}: there is no such file; convert again.") from None
    except OSError as error:
        raise InputDataError(f"{path}: cannot be read ({error}); convert again.") from None
    if sha256(content).hexdigest() != digest:
        raise InputDataError(f"{path}: has changed since it was converted; remove it and convert again.")


def _segment_info(record: ConvertedRecord, segment: Segment, taxonomy: Taxonomy) -> dict[str, Any]:
    if segment.category_id not in taxonomy.names:
        place = f"image {record.key!r}, segment {segment.id}: class {segment.category_id}"
        raise InputDataError(f"{place} is not in the taxonomy; convert again with this taxonomy.")
    return {name: getattr(segment, name) for name in ("id", "category_id", "area", "bbox", "iscrowd")}
