"""From a CVAT export and ready stuff predictions to the image and the panoptic PNG of the converted data.

All that a run does is timed, from the checks of the exports to the COCO files. The peer is a literal conversion of
what is known to be right: the photograph decoded and written again, and each annotation's mask drawn on the whole
image, painted, and measured with whole-image operations.
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
from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord
from construction_panoptic.annotations.rejected import check_conservation
from construction_panoptic.annotations.stuff.fringe import Fringe, leftover_classes
from construction_panoptic.annotations.stuff.labelling import label_all
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.conversion import ConversionSettings

TAXONOMY = Path(__file__).parents[1] / "conf/base/taxonomy.json"


def _taxonomy() -> Taxonomy:
    return Taxonomy.from_dict(json.loads(TAXONOMY.read_text(encoding="utf-8")))


def convert_all(options: Options, target: str = "") -> list[ConvertedRecord]:
    """Convert the exports in the folder as a run does: read and check, label, merge, account and write COCO files."""
    raw, folder, taxonomy = Path(options.folder) / "raw", Path(options.folder) / target, _taxonomy()
    for name in ("images", "panoptic", "stuff"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    exports = read_exports(raw / "construction", taxonomy)
    ready = ReadyStuff(raw / "stuff_predictions", taxonomy, 1.0)  # the peer uses every COCO segment
    fringe = Fringe(leftover_classes(taxonomy), ConversionSettings().stuff.fringe_distance)
    for stuff in label_all(exports.images, exports.annotations, ready, fringe, folder=folder / "stuff"):
        if isinstance(stuff.labels, bytes):
            _stuff_file(folder, stuff.key).write_bytes(stuff.labels)
    records = []
    labels = lambda key: _stuff_file(folder, key).read_bytes()  # noqa: E731
    for converted in merge_images(exports.images, exports.annotations, labels, taxonomy):
        assert isinstance(converted, ConvertedImage)
        content = converted.image if isinstance(converted.image, bytes) else converted.image.read_bytes()
        (folder / "images" / converted.record.image_file).write_bytes(content)
        (folder / "panoptic" / converted.record.png_file).write_bytes(converted.png)
        records.append(converted.record)
    check_conservation(exports.annotations, exports.images, records)
    files = CocoFiles(records, pd.DataFrame({"key": exports.images["key"], "split": "train"}), taxonomy)
    for name, document in (
        ("detection", files.detection("train", folder / "panoptic")),
        ("panoptic", files.panoptic("train")),
    ):
        (folder / f"{name}.json").write_text("".join(json_parts(document)), encoding="utf-8")
    return records


def _stuff_file(folder: Path, key: str) -> Path:
    return folder / "stuff" / f"{key.replace('/', '__')}.png"


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def ours(options: Options) -> Step:
    def step() -> Outputs:
        records = convert_all(options, "ours")
        return {"segments": np.array([(s.category_id, s.area, *s.bbox) for r in records for s in r.segments])}

    return step


def peer(options: Options) -> Step:
    raw, folder, taxonomy = Path(options.folder) / "raw", Path(options.folder) / "peer", _taxonomy()
    folder.mkdir()
    exports = read_exports(raw / "construction", taxonomy)
    images, table = _rows(exports.images), exports.annotations.frame()
    outlines = _outlines(raw / "construction")
    annotations = [
        [row | {"segmentation": outlines[row["source"], row["annotation_id"]]} for row in _rows(table[of_image])]
        for of_image in (table["key"] == image["key"] for image in images)
    ]
    stuff = _stuff_predictions(raw / "stuff_predictions", taxonomy)

    def step() -> Outputs:
        segments = []
        for number, (image, rows) in enumerate(zip(images, annotations, strict=True)):
            segments += convert_literally(image, rows, stuff[image["key"]], folder / str(number))
        return {"segments": np.array(segments)}

    return step


def _outlines(folder: Path) -> dict[tuple[str, int], Any]:
    """By export and annotation the segmentation as it is in the export."""
    found = {}
    for path in [*folder.glob("*/coco.json"), *folder.glob("*/annotations/*.json")]:
        source = path.relative_to(folder).parts[0]
        for entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]:
            found[source, entry["id"]] = entry["segmentation"]
    return found


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
        polygons = coco_mask.frPyObjects(row["segmentation"], height, width)
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
