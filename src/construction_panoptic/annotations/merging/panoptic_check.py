"""One image of the COCO files: its panoptic annotation checked against its PNG, and its detections."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.merging.segment_shapes import segment_extents, segment_rles
from construction_panoptic.annotations.panoptic_png import MAX_SEGMENT_ID, decode_id_map
from construction_panoptic.errors import InputDataError

_SHOWN_PROBLEMS = 10


def detections_of_image(
    png_folder: Path, is_thing: Mapping[int, bool], entries: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Give the detections of an image without their ids. Runs in other processes.

    ``entries`` are the image's panoptic annotation and its own entry. For each segment there are ``image_id``,
    ``category_id``, ``bbox`` and ``area`` of the visible mask, ``iscrowd``, and the mask as ``segmentation``, a
    compressed run-length code. Raises `InputDataError`: the PNG is missing or damaged, or the annotation is not what it
    holds, to the pixel.
    """
    annotation, image = entries
    id_map = decode_id_map(png_folder / annotation["file_name"])
    (rows, columns), (height, width) = id_map.shape, (image["height"], image["width"])
    same_size = (rows, columns) == (height, width)
    problems = [] if same_size else [f"{columns} x {rows} pixels, its image {width} x {height} pixels"]
    problems += _segment_problems(annotation["segments_info"], id_map, is_thing)
    if problems:
        shown = "\n  ".join(f"{annotation['file_name']}: {text}" for text in problems[:_SHOWN_PROBLEMS])
        more = f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise InputDataError(f"{len(problems)} problem(s) in the COCO panoptic data:\n  {shown}{more}")
    codes = segment_rles(id_map)
    kept = ("category_id", "bbox", "area", "iscrowd")
    return [
        {"image_id": annotation["image_id"]}
        | {name: segment[name] for name in kept}
        | {"segmentation": codes[segment["id"]]}
        for segment in annotation["segments_info"]
    ]


def _segment_problems(
    segments: list[dict[str, Any]], id_map: NDArray[np.uint32], is_thing: Mapping[int, bool]
) -> Iterator[str]:
    in_png = segment_extents(id_map)
    counts = Counter(segment["id"] for segment in segments)
    yield from (f"segment id {number} comes {count} times" for number, count in counts.items() if count > 1)
    yield from (f"id {number} is not in segments_info" for number in in_png if number not in counts)
    for segment in segments:
        name = f"segment {segment['id']}"
        if not 1 <= segment["id"] <= MAX_SEGMENT_ID:
            yield f"{name} is not in 1…{MAX_SEGMENT_ID}"
        elif segment["id"] not in in_png:
            yield f"{name} has no pixels"
        else:
            area, box = in_png[segment["id"]]
            if segment["area"] != area or not isinstance(segment["area"], int):
                yield f"{name} has area {segment['area']}, its pixels are {area}"
            if tuple(segment["bbox"]) != box or not all(isinstance(value, int) for value in segment["bbox"]):
                yield f"{name} has bbox {list(segment['bbox'])}, its pixels have {list(box)}"
        if segment["category_id"] not in is_thing:
            yield f"{name} has the unknown category {segment['category_id']}"
        if segment["iscrowd"] not in (0, 1) or (segment["iscrowd"] and not is_thing.get(segment["category_id"], True)):
            yield f"{name} has iscrowd {segment['iscrowd']}"
