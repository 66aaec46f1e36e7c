"""Back to CVAT: the things of a COCO panoptic file as an export in CVAT's format *COCO 1.0*."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.merging.masks import run_lengths
from construction_panoptic.annotations.merging.segment_shapes import segment_rles
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.errors import InputDataError

Shapes = Literal["masks", "polygons"]

ANNOTATIONS_FILE = "annotations/instances_default.json"


def cvat_files(
    panoptic: Mapping[str, Any], png_folder: Path | str, image_folder: Path | str, *, shapes: Shapes = "masks"
) -> Iterator[tuple[str, bytes]]:
    """Give the files of a CVAT export of a COCO panoptic file: one image after the other, and the annotations last.

    Each thing is a mask as CVAT writes them, with uncompressed run lengths; or, with ``polygons``, an outline exact to
    the pixel for all but crowds and things with holes. Stuff stays out, since the conversion labels it anew. Raises
    `InputDataError`: an image or PNG is missing, or a PNG is damaged or of another size than its image.
    """
    things = {category["id"]: category["name"] for category in panoptic["categories"] if category["isthing"]}
    annotation_of = {annotation["image_id"]: annotation for annotation in panoptic["annotations"]}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in panoptic["images"]:
        path = Path(image_folder) / image["file_name"]
        try:
            yield f"images/{image['file_name']}", path.read_bytes()
        except OSError as error:
            raise InputDataError(f"{path}: the image cannot be read ({error.strerror}); convert again.") from None
        images.append({name: image[name] for name in ("id", "file_name", "width", "height")})
        if (annotation := annotation_of.get(image["id"])) is None:
            continue
        png = Path(png_folder) / annotation["file_name"]
        id_map = decode_id_map(png)
        if id_map.shape != (image["height"], image["width"]):
            raise InputDataError(f"{png}: it has another size than its image {image['file_name']}.")
        segments = [segment for segment in annotation["segments_info"] if segment["category_id"] in things]
        found = cvat_annotations(segments, id_map, image["id"], shapes, where=str(png))
        annotations += [{"id": number, **thing} for number, thing in enumerate(found, len(annotations) + 1)]
    yield ANNOTATIONS_FILE, json.dumps(cvat_document(things, images) | {"annotations": annotations}).encode()


def cvat_document(names: Mapping[int, str], images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give what CVAT's file of annotations holds beside them: categories, by id, and images."""
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": number, "name": name, "supercategory": ""} for number, name in names.items()],
        "images": images,
        "annotations": [],
    }


def cvat_annotations(
    segments: Iterable[Mapping[str, Any]],
    id_map: NDArray[np.integer],
    image_id: int,
    shapes: Shapes,
    where: str = "the segmentation",
) -> Iterator[dict[str, Any]]:
    """Give the annotation of each segment of an id map [H, W], 0 = void, without its ``id``.

    ``where`` names the map in messages. Raises `InputDataError`: a segment has no pixels.
    """
    codes = segment_rles(id_map.astype(np.uint32))
    for segment in segments:
        if segment["id"] not in codes:
            raise InputDataError(f"{where}: segment {segment['id']} has no pixels.")
        code = codes[segment["id"]]
        outline: Any = {"counts": run_lengths(code["counts"].encode()).tolist(), "size": code["size"]}
        if shapes == "polygons" and not segment.get("iscrowd", 0):
            outline = pixel_outlines(id_map == segment["id"]) or outline
        yield {
            "image_id": image_id,
            "category_id": segment["category_id"],
            "segmentation": outline,
            "area": segment["area"],
            "bbox": list(segment["bbox"]),
            "iscrowd": segment.get("iscrowd", 0),
            "attributes": {"occluded": False},
        }


def pixel_outlines(mask: NDArray[np.bool_]) -> list[list[int]] | None:
    """Draw a mask, bool [H, W], as polygons x, y, x, y, … along the edges of its pixels, a ring for each part.

    pycocotools draws these as the same mask. None if there is a hole, or no pixel.
    """
    padded = np.pad(mask, 1)
    # Edges by their beginning, x + iy, with the mask on the right: along the top, right, bottom and left of pixels.
    sides = (
        (padded[:-2, 1:-1], 0, 1),
        (padded[1:-1, 2:], 1, 1j),
        (padded[2:, 1:-1], 1 + 1j, -1),
        (padded[1:-1, :-2], 1j, -1j),
    )
    steps: dict[complex, list[complex]] = defaultdict(list)
    for neighbour, corner, step in sides:
        for y, x in np.argwhere(mask & ~neighbour).tolist():
            steps[complex(x, y) + corner].append(step)
    rings = []
    while steps:
        ring = np.array(_walk(steps))
        if np.vdot(ring, np.roll(ring, -1)).imag < 0:  # twice its area: it goes the other way round
            return None
        rings.append(np.stack([ring.real, ring.imag], axis=1).astype(int).ravel().tolist())
    return rings or None


def _walk(steps: dict[complex, list[complex]]) -> list[complex]:
    """Take one ring out of the steps; return its corners."""
    start = place = next(iter(steps))
    before = 0j
    corners: list[complex] = []
    while not corners or place != start:
        onward = steps[place]
        # Where two pixels meet at a corner there are two ways; the right turn stays with the pixel.
        step = onward.pop(onward.index(before * 1j) if before * 1j in onward else 0)
        if not onward:
            del steps[place]
        if step != before:
            corners.append(place)
        place, before = place + step, step
    return corners
