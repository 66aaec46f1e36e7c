"""Back to CVAT: the things of a COCO panoptic file as an export in CVAT's format *COCO 1.0*."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from construction_panoptic.annotations.coco_files import segment_rles
from construction_panoptic.annotations.masks import run_lengths
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.errors import InputDataError

ANNOTATIONS_FILE = "annotations/instances_default.json"


def cvat_files(
    panoptic: Mapping[str, Any], png_folder: Path | str, image_folder: Path | str
) -> Iterator[tuple[str, bytes]]:
    """Give the files of a CVAT export: one image after the other, and the annotations last.

    Each thing is a mask as CVAT writes them, with uncompressed run lengths, exact to the pixel. Stuff stays
    out, since the conversion labels it anew. `cvat.read_exports` reads what this gives.

    Args:
        panoptic: content of a COCO panoptic file, ground truth or predictions.
        png_folder: folder of its PNGs.
        image_folder: folder of its images.

    Yields:
        Path relative to the export, and content.

    Raises:
        InputDataError: an image or PNG is missing, or a PNG is damaged or of another size than its image.
    """
    things = {category["id"]: category["name"] for category in panoptic["categories"] if category["isthing"]}
    segments_of = {annotation["image_id"]: annotation for annotation in panoptic["annotations"]}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in panoptic["images"]:
        path = Path(image_folder) / image["file_name"]
        try:
            yield f"images/{image['file_name']}", path.read_bytes()
        except OSError as error:
            raise InputDataError(f"{path}: the image cannot be read ({error.strerror}); convert again.") from None
        images.append({name: image[name] for name in ("id", "file_name", "width", "height")})
        if image["id"] in segments_of:
            for thing in _things(segments_of[image["id"]], image, Path(png_folder), things):
                annotations.append({"id": len(annotations) + 1, **thing})
    document = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": number, "name": name, "supercategory": ""} for number, name in things.items()],
        "images": images,
        "annotations": annotations,
    }
    yield ANNOTATIONS_FILE, json.dumps(document).encode()


def _things(
    annotation: Mapping[str, Any], image: Mapping[str, Any], png_folder: Path, things: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    path = png_folder / annotation["file_name"]
    id_map = decode_id_map(path)
    if id_map.shape != (image["height"], image["width"]):
        raise InputDataError(f"{path}: it has another size than its image {image['file_name']}.")
    codes = segment_rles(id_map)
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in things:
            continue
        if segment["id"] not in codes:
            raise InputDataError(f"{path}: segment {segment['id']} has no pixels.")
        code = codes[segment["id"]]
        yield {
            "image_id": image["id"],
            "category_id": segment["category_id"],
            "segmentation": {"counts": run_lengths(code["counts"].encode()), "size": code["size"]},
            "area": segment["area"],
            "bbox": list(segment["bbox"]),
            "iscrowd": segment.get("iscrowd", 0),
            "attributes": {"occluded": False},
        }
