"""500 images of varied outlines, converted, and compared pixel by pixel with rasterisers that are not ours."""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.rejected import all_rejected, check_conservation
from construction_panoptic.annotations.stuff.label_maps import encode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.evaluation.quality import panoptic_quality

pytestmark = pytest.mark.medium

COUNT = 500
CLASSES = ["wheel_loader", "hydra_crane", "cu_piping", "water_tank"]
Ring = NDArray[np.float64]


@dataclass(frozen=True)
class Converted:
    folder: Path
    exports: Exports
    records: list[ConvertedRecord]
    panoptic: dict[str, Any]
    detection: dict[str, Any]
    taxonomy: Taxonomy

    def id_map(self, record: ConvertedRecord) -> NDArray[np.int64]:
        """Read the PNG as the format's definition says."""
        with Image.open(self.folder / "panoptic" / record.png_file) as png:
            colours = np.asarray(png).astype(np.int64)
        return colours @ np.array([1, 256, 65536])


def real_outlines(data: Path) -> list[Ring]:
    """Outlines that people drew, scaled to a longest side of 1; none where there is no such data."""
    found = []
    for path in sorted((data / "construction_real" / "annotated").glob("*/coco.json")):
        for annotation in json.loads(path.read_text())["annotations"]:
            ring = np.reshape(annotation["segmentation"][0], (-1, 2))
            found.append((ring - ring.min(axis=0)) / np.ptp(ring, axis=0).max())
    return found


def drawn_outline(generator: np.random.Generator) -> Ring:
    """A star-shaped outline, or one that crosses itself, within 0…1."""
    count = int(generator.integers(3, 24))
    angles = generator.uniform(0, 2 * np.pi, count)
    if generator.random() < 0.8:
        angles = np.sort(angles)
    radii = generator.uniform(0.15, 0.5, count)
    return 0.5 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def segmentation(generator: np.random.Generator, outlines: list[Ring], width: int, height: int) -> Any:
    """One to three rings anywhere, also partly outside; or a mask with holes as a run-length code."""
    rings = []
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        real = bool(outlines) and generator.random() < 0.4
        outline = outlines[generator.integers(len(outlines))] if real else drawn_outline(generator)
        angle = generator.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        start = generator.uniform((-0.2 * width, -0.2 * height), (0.9 * width, 0.9 * height))
        rings.append((start + outline * generator.uniform(8, 0.9 * width) @ turn).round(2))
    if generator.random() < 0.2:
        inside = even_odd(rings[0], width, height)
        inside[::5] = False  # holes
        runs = coco_mask.encode(np.asfortranarray(inside, dtype=np.uint8))
        return {"size": [height, width], "counts": runs["counts"].decode()}
    return [ring.ravel().tolist() for ring in rings]


def even_odd(ring: Ring, width: int, height: int) -> NDArray[np.bool_]:
    """Which pixel centres a ring goes around: a ray to the right crosses it an odd number of times."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (y1 <= y) != (y2 <= y)
            inside ^= crosses & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def near_outline(ring: Ring, width: int, height: int) -> NDArray[np.bool_]:
    """Which pixel centres are within a pixel of a ring, in rows and columns: there, rasterisers may differ."""
    y, x = np.mgrid[:height, :width] + 0.5
    near = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        length = max((x2 - x1) ** 2 + (y2 - y1) ** 2, 1e-9)
        along = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length, 0, 1)
        near |= (x - x1 - along * (x2 - x1)) ** 2 + (y - y1 - along * (y2 - y1)) ** 2 <= 2
    return near


def stuff_of(key: str, width: int, height: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng(list(key.encode()))
    coarse = Image.fromarray(generator.choice([0, 1, 4, 5, 16], (4, 5)).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Converted:
    folder = tmp_path_factory.mktemp("geometry")
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    generator, outlines = np.random.default_rng(11), real_outlines(repository.parent / "shared" / "data")
    write_export(folder / "raw" / "site", generator, outlines)
    exports = read_exports(folder / "raw", taxonomy)
    sides = zip(exports.images["width"].tolist(), exports.images["height"].tolist(), strict=True)
    sizes = dict(zip(exports.images["key"], sides, strict=True))
    (folder / "panoptic").mkdir()
    records = []
    merged: Any = merge_images(
        exports.images, exports.annotations, lambda key: encode_labels(stuff_of(key, *sizes[key])), taxonomy
    )
    for item in merged:
        (folder / "panoptic" / item.record.png_file).write_bytes(item.png)
        records.append(item.record)
    files = CocoFiles(records, pd.DataFrame({"key": [record.key for record in records], "split": "val"}), taxonomy)
    panoptic, detection = (
        document | {name: list(document[name]) for name in ("images", "annotations")}
        for document in (files.panoptic("val"), files.detection("val", folder / "panoptic"))
    )
    return Converted(folder, exports, records, panoptic, detection, taxonomy)


def write_export(folder: Path, generator: np.random.Generator, outlines: list[Ring]) -> None:
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(COUNT):
        width, height = (int(side) for side in generator.integers(24, 72, 2))
        name = f"{number:03d}.png"
        Image.fromarray(np.full((height, width, 3), number % 256, np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for _ in range(generator.integers(0, 7)):
            outline = segmentation(generator, outlines, width, height)
            entry = {"id": len(annotations), "image_id": number, "segmentation": outline, "iscrowd": 0}
            annotations.append(entry | {"category_id": int(generator.integers(len(CLASSES)))})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(document))


def annotations_of(converted: Converted) -> Iterator[tuple[ConvertedRecord, list[tuple[Any, int]]]]:
    """Each image with its accepted outlines and their classes, in the order in which CVAT draws them."""
    rows = converted.exports.annotations.frame()
    assert rows["order"].is_monotonic_increasing
    document = json.loads((converted.folder / "raw" / "site" / "coco.json").read_text())
    outlines = {entry["id"]: entry["segmentation"] for entry in document["annotations"]}
    groups = dict(iter(rows.groupby("key")))
    for record in converted.records:
        own = groups.get(record.key, rows[:0])
        yield record, [(outlines[n], c) for n, c in zip(own["annotation_id"], own["category_id"], strict=True)]


def classes_in(converted: Converted, record: ConvertedRecord) -> NDArray[np.int64]:
    class_of = {0: 0} | {segment.id: segment.category_id for segment in record.segments}
    return np.vectorize(class_of.__getitem__)(converted.id_map(record))


def test_every_pixel_is_where_a_whole_image_drawing_puts_it(converted: Converted) -> None:
    """Masks of pycocotools, painted one over the other on the whole image: exactly equal."""
    for record, things in annotations_of(converted):
        painted = stuff_of(record.key, record.width, record.height).astype(np.int64)
        for outline, class_id in things:
            parts = [outline] if isinstance(outline, dict) else coco_mask.frPyObjects(outline, *painted.shape)
            painted[coco_mask.decode(coco_mask.merge(parts)).astype(bool)] = class_id
        np.testing.assert_array_equal(classes_in(converted, record), painted, err_msg=record.key)


def test_every_pixel_off_the_outlines_is_where_a_literal_rasteriser_puts_it(converted: Converted) -> None:
    """Pixel centres by counting crossings; within a pixel or so of an outline, rasterisers may differ."""
    compared = total = 0
    for record, things in annotations_of(converted):
        width, height = record.width, record.height
        painted = stuff_of(record.key, width, height).astype(np.int64)
        certain = np.ones((height, width), dtype=bool)
        for outline, class_id in things:
            if isinstance(outline, dict):
                painted[coco_mask.decode(outline).astype(bool)] = class_id
                continue
            for ring in (np.reshape(ring, (-1, 2)) for ring in outline):
                painted[even_odd(ring, width, height)] = class_id
                certain &= ~near_outline(ring, width, height)
        np.testing.assert_array_equal(
            np.where(certain, classes_in(converted, record), 0), np.where(certain, painted, 0), err_msg=record.key
        )
        compared, total = compared + int(certain.sum()), total + certain.size
    assert compared > 0.5 * total


def test_nothing_is_lost(converted: Converted) -> None:
    exports = converted.exports
    hidden = check_conservation(exports.annotations, exports.images, converted.records)
    rejected = all_rejected(exports.rejected, hidden)
    document = json.loads((converted.folder / "raw" / "site" / "coco.json").read_text())
    assert len(exports.annotations) + len(exports.rejected) == len(document["annotations"])
    assert len(converted.records) == COUNT
    assert len(converted.exports.annotations) > 2 * COUNT
    assert {"fully_hidden", "outside_image"} <= set(rejected["reason"])
    assert {"clipped", "image_without_annotations"} == set(converted.exports.repaired["reason"])


def test_pycocotools_reads_the_same_masks(converted: Converted) -> None:
    path = converted.folder / "detection.json"
    path.write_text(json.dumps(converted.detection))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(path)
    assert len(coco.imgs) == COUNT
    for image, record in zip(coco.dataset["images"], converted.records, strict=True):
        ids = converted.id_map(record)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert len(annotations) == len(record.segments)
        for annotation, segment in zip(annotations, record.segments, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), ids == segment.id)


@pytest.mark.parametrize("engine", ["hotcoco", "panopticapi"])
def test_ground_truth_is_perfect_against_itself(converted: Converted, engine: Any) -> None:
    if engine == "panopticapi":
        pytest.importorskip("panopticapi")
    files = (converted.panoptic, converted.folder / "panoptic")
    quality = panoptic_quality(*files, *files, engine=engine)
    present = [scores for scores in quality["per_class"].values() if scores["present"]]
    assert len(present) == len(CLASSES) + 4
    assert {scores["pq"] for scores in present} == {1.0}
