"""One image of the COCO panoptic files: what its annotation and its PNG say differently, and its detections."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.merging.segment_shapes import segment_extents, segment_rles
from construction_panoptic.annotations.panoptic_png import MAX_SEGMENT_ID, decode_id_map
from construction_panoptic.errors import InputDataError

Entry = Mapping[str, Any]
"""An item of a list of a COCO file."""

_SHOWN_PROBLEMS = 10


def detections_of_image(
    png_folder: Path, things: Mapping[int, int], entry: tuple[Entry, Entry | None]
) -> list[dict[str, Any]]:
    """Give the detections of an image, see `coco_files.detection_json`. Runs in other processes.

    Args:
        png_folder: folder of the PNGs.
        things: category id → 1 for a thing, 0 for stuff.
        entry: the image's panoptic annotation, and the entry of the image.

    Raises:
        InputDataError: the annotation is not what the PNG holds.
    """
    annotation, image = entry
    id_map, problems = _png_and_problems(annotation, image, png_folder, things)
    refuse(problems)
    codes = segment_rles(id_map)
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": segment["category_id"],
            "bbox": segment["bbox"],
            "area": segment["area"],
            "iscrowd": segment["iscrowd"],
            "segmentation": codes[segment["id"]],
        }
        for segment in annotation["segments_info"]
    ]


def problems_of_image(png_folder: Path, things: Mapping[int, int], entry: tuple[Entry, Entry | None]) -> list[str]:
    """List what the annotation of an image and its PNG say differently; see `detections_of_image`."""
    return _png_and_problems(*entry, png_folder, things)[1]


def _png_and_problems(
    annotation: Entry, image: Entry | None, png_folder: Path, things: Mapping[int, int]
) -> tuple[NDArray[np.uint32], list[str]]:
    """Give the id map of an annotation, and what the annotation and its image say differently."""
    name, nothing = annotation["file_name"], np.empty((0, 0), np.uint32)
    if image is None:
        return nothing, [f"{name}: there is no image {annotation['image_id']}"]
    try:
        id_map = decode_id_map(png_folder / name)
    except InputDataError as error:
        return nothing, [str(error)]
    size = (image["height"], image["width"])
    problems = [f"{_size(id_map.shape)}, its image {_size(size)}"] if id_map.shape != size else []
    problems += _segment_problems(annotation["segments_info"], id_map, things)
    return id_map, [f"{name}: {text}" for text in problems]


def refuse(problems: list[str]) -> None:
    """Raise an InputDataError that shows the first problems, if there are any."""
    if problems:
        shown = "\n  ".join(problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        raise InputDataError(
            f"{len(problems)} problem(s) in the COCO panoptic data:\n  {shown}"
            + (f"\n  … and {more} more" if more > 0 else "")
        )


def _segment_problems(
    segments: Sequence[Mapping[str, Any]], id_map: NDArray[np.uint32], things: Mapping[int, int]
) -> list[str]:
    in_png = segment_extents(id_map)
    listed = {segment["id"] for segment in segments}
    problems = repeated("segment id", (segment["id"] for segment in segments))
    problems += [f"id {segment_id} is not in segments_info" for segment_id in in_png if segment_id not in listed]
    for segment in segments:
        name = f"segment {segment['id']}"
        if not 1 <= segment["id"] <= MAX_SEGMENT_ID:
            problems.append(f"{name} is not in 1…{MAX_SEGMENT_ID}")
        elif segment["id"] not in in_png:
            problems.append(f"{name} has no pixels")
        else:
            area, box = in_png[segment["id"]]
            if segment["area"] != area or not isinstance(segment["area"], int):
                problems.append(f"{name} has area {segment['area']}, its pixels are {area}")
            if list(segment["bbox"]) != box or not all(isinstance(value, int) for value in segment["bbox"]):
                problems.append(f"{name} has bbox {list(segment['bbox'])}, its pixels have {box}")
        if segment["category_id"] not in things:
            problems.append(f"{name} has the unknown category {segment['category_id']}")
        if segment["iscrowd"] not in (0, 1) or (segment["iscrowd"] and not things.get(segment["category_id"], 1)):
            problems.append(f"{name} has iscrowd {segment['iscrowd']}")
    return problems


def repeated(what: str, values: Iterable[Any]) -> list[str]:
    """Say of each value that comes more than once how often it does."""
    return [f"{what} {value} comes {count} times" for value, count in Counter(values).items() if count > 1]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
