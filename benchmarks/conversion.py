"""From a CVAT export and ready stuff predictions to the image and the panoptic PNG of the converted data.

The peer is a literal conversion: the photograph decoded and written again, and each annotation's mask drawn
on the whole image, painted, and measured with whole-image operations.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.inputs import write_exports
from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.annotations.coco_files import panoptic_json
from construction_panoptic.annotations.formats.cvat import Exports, read_exports
from construction_panoptic.annotations.images import check_image
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.merging.merging import merge_image
from construction_panoptic.annotations.records import ConvertedImage
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.taxonomy import Taxonomy

TAXONOMY = Path(__file__).parents[1] / "conf/base/taxonomy.json"


def _taxonomy() -> Taxonomy:
    return Taxonomy.from_dict(json.loads(TAXONOMY.read_text(encoding="utf-8")))


def _read(options: Options) -> tuple[Exports, ReadyStuff, Taxonomy]:
    raw, taxonomy = Path(options.folder) / "raw", _taxonomy()
    return read_exports(raw / "construction", taxonomy), ReadyStuff(raw / "stuff_predictions", taxonomy), taxonomy


def convert_all(options: Options) -> None:
    """Convert the exports in the folder to ``panoptic.json``, ``images`` and ``panoptic``."""
    exports, stuff, taxonomy = _read(options)
    sizes = {image["key"]: (int(image["height"]), int(image["width"])) for image in _rows(exports.images)}

    def labels(key: str) -> Any:
        return stuff.labels(key, sizes[key])

    folder = Path(options.folder)
    records = []
    for converted in merge_images(exports.images, exports.annotations, labels, taxonomy):
        _write(converted, folder)
        records.append(converted.record)
    split = pd.DataFrame({"key": [record.key for record in records], "split": "train"})
    content = json.dumps(panoptic_json(records, split, "train", taxonomy))
    (folder / "panoptic.json").write_text(content, encoding="utf-8")


def _write(converted: ConvertedImage, folder: Path) -> None:
    for name in ("images", "panoptic"):
        (folder / name).mkdir(exist_ok=True)
    content = converted.image if isinstance(converted.image, bytes) else converted.image.read_bytes()
    (folder / "images" / converted.image_file).write_bytes(content)
    (folder / "panoptic" / f"{converted.stem}.png").write_bytes(converted.png)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def ours(options: Options) -> Step:
    exports, stuff, taxonomy = _read(options)
    folder = Path(options.folder) / "ours"
    folder.mkdir()
    images = _rows(exports.images)
    annotations = [_rows(exports.annotations[exports.annotations["key"] == image["key"]]) for image in images]

    def step() -> Outputs:
        segments = []
        for image, rows in zip(images, annotations, strict=True):
            facts = check_image(image["location"])
            labels = stuff.labels(image["key"], (facts.height, facts.width))
            converted = merge_image({**image, "phash": facts.phash}, rows, labels, taxonomy=taxonomy)
            _write(converted, folder)
            segments += [(s.category_id, s.area, *s.bbox) for s in converted.segments]
        return {"segments": np.array(segments)}

    return step


def peer(options: Options) -> Step:
    exports, _, taxonomy = _read(options)
    raw, folder = Path(options.folder) / "raw", Path(options.folder) / "peer"
    folder.mkdir()
    images = _rows(exports.images)
    annotations = [_rows(exports.annotations[exports.annotations["key"] == image["key"]]) for image in images]
    stuff = _stuff_predictions(raw / "stuff_predictions", taxonomy)

    def step() -> Outputs:
        segments = []
        for number, (image, rows) in enumerate(zip(images, annotations, strict=True)):
            segments += convert_literally(image, rows, stuff[image["key"]], folder / str(number))
        return {"segments": np.array(segments)}

    return step


def _stuff_predictions(folder: Path, taxonomy: Taxonomy) -> dict[str, tuple[Path, dict[int, int]]]:
    """By image key the PNG, and the project's stuff class of those of its segments that are stuff."""
    data = json.loads((folder / "panoptic.json").read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in data["images"]}
    return {
        names[annotation["image_id"]]: (
            folder / "panoptic" / annotation["file_name"],
            {
                segment["id"]: taxonomy.stuff_id_of_coco[segment["category_id"]]
                for segment in annotation["segments_info"]
                if segment["category_id"] in taxonomy.stuff_id_of_coco
            },
        )
        for annotation in data["annotations"]
    }


def convert_literally(
    image: dict[str, Any], rows: list[dict[str, Any]], stuff: tuple[Path, dict[int, int]], target: Path
) -> list[tuple[int, ...]]:
    """Convert one image; return category, area and box of its segments in the order of their ids."""
    height, width = int(image["height"]), int(image["width"])
    with Image.open(image["location"]) as file:
        pixels = np.asarray(file.convert("RGB"))
    with Image.open(stuff[0]) as file:
        colours = np.asarray(file.convert("RGB")).astype(np.uint32)
    stuff_ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    painted = np.zeros((height, width), dtype=np.uint32)
    classes: dict[int, int] = {}
    for class_id in sorted(set(stuff[1].values())):
        members = [segment_id for segment_id, category in stuff[1].items() if category == class_id]
        classes[len(classes) + 1] = class_id
        painted[np.isin(stuff_ids, members)] = len(classes)
    for row in sorted(rows, key=lambda row: row["order"]):
        polygons = coco_mask.frPyObjects(json.loads(row["segmentation"]), height, width)
        classes[len(classes) + 1] = int(row["category_id"])
        painted[coco_mask.decode(coco_mask.merge(polygons)).astype(bool)] = len(classes)
    segments = []
    for segment_id, category in classes.items():
        mask = painted == segment_id
        if mask.any():
            y, x = np.nonzero(mask)
            box = (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
            segments.append((category, int(mask.sum()), *(int(value) for value in box)))
    rgb = np.stack([painted % 256, painted // 256 % 256, painted // 65536], axis=-1).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(rgb).save(stream, format="PNG")
    target.with_suffix(".png").write_bytes(stream.getvalue())
    Image.fromarray(pixels).save(target.with_suffix(".jpg"), quality=95)
    return segments


BENCHMARK = Benchmark(
    name="conversion",
    workload="Conversion of 20 images of 0.74 megapixels with ready stuff, one process",
    peer="literal conversion",
    sides={"peer": peer, "ours": ours},
    prepare=write_exports,
)

if __name__ == "__main__":
    main(BENCHMARK)
