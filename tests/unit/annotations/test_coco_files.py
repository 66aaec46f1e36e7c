import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pycocotools import mask
from pycocotools.coco import COCO

from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.merging.segment_shapes import segment_shapes
from construction_panoptic.annotations.panoptic_png import decode_id_map, encode_id_map
from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split.grouping import near_duplicate_groups
from construction_panoptic.annotations.split.splitting import audit_split, split
from construction_panoptic.annotations.stuff.label_maps import encode_labels
from construction_panoptic.annotations.stuff.labeller import ImageToLabel
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.summary import class_counts_and_summary
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

Lists = dict[str, Any]


def whole(document: Lists) -> Lists:
    """A document whose iterators are lists."""
    return document | {name: list(document[name]) for name in ("images", "annotations")}


CRANE, WALL, SKY = 21, 3, 5
CLASS_OF = {1: CRANE, 300: CRANE, 70000: SKY, 16777215: WALL}


@pytest.fixture
def taxonomy() -> Taxonomy:
    return Taxonomy.from_dict(
        {
            "stuff": [
                {"id": WALL, "name": "wall", "color": [1, 2, 3]},
                {"id": SKY, "name": "sky", "color": [0, 0, 9]},
            ],
            "things": [{"id": CRANE, "name": "crane", "color": [200, 9, 9]}],
        }
    )


def segments_of(id_map: NDArray[np.uint32]) -> list[Segment]:
    """Literal: scan the pixels of each id."""
    segments = []
    for segment_id in sorted(set(id_map.ravel().tolist()) - {0}, reverse=True):
        rows, columns = np.nonzero(id_map == segment_id)
        x, y = int(columns.min()), int(rows.min())
        box = (x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
        annotation = 70 if CLASS_OF[segment_id] == CRANE else None
        counts = mask.encode(np.asfortranarray(id_map == segment_id))["counts"].decode()
        segments.append(Segment(segment_id, CLASS_OF[segment_id], len(rows), box, counts, 0, annotation))
    return segments


def id_map_of(seed: int, height: int, width: int) -> NDArray[np.uint32]:
    blocks = np.random.default_rng(seed).choice([0, *CLASS_OF], size=(-(-height // 3), -(-width // 4)))
    return np.kron(blocks, np.ones((3, 4)))[:height, :width].astype(np.uint32)


@pytest.fixture
def records() -> list[ConvertedRecord]:
    sizes = {"a/1.jpg": (20, 11), "b/2.png": (17, 23), "c/3.jpg": (9, 40)}
    found = []
    for seed, (key, (height, width)) in enumerate(sizes.items()):
        name, id_map = key.replace("/", "__"), id_map_of(seed, height, width)
        digest = sha256(encode_id_map(id_map)).hexdigest()
        record = ConvertedRecord(key, name[:-4], name, width, height, segments_of(id_map), 0, png_sha256=digest)
        found.append(record)
    return found


@pytest.fixture
def pngs(tmp_path: Path, records: list[ConvertedRecord]) -> Path:
    for seed, record in enumerate(records):
        (tmp_path / record.png_file).write_bytes(encode_id_map(id_map_of(seed, record.height, record.width)))
    return tmp_path


@pytest.fixture
def split_table() -> pd.DataFrame:
    return pd.DataFrame({"key": ["a/1.jpg", "b/2.png", "c/3.jpg"], "split": ["val", "train", "val"]})


@pytest.fixture
def files(records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy) -> CocoFiles:
    return CocoFiles(iter(records), split_table[::-1], taxonomy)


def test_panoptic_files_share_image_ids(files: CocoFiles, records: list[ConvertedRecord], taxonomy: Taxonomy) -> None:
    val, train = whole(files.panoptic("val")), whole(files.panoptic("train"))
    assert [image["id"] for image in val["images"]] == [annotation["image_id"] for annotation in val["annotations"]]
    assert [image["id"] for image in val["images"]] == [1, 3]
    assert train["images"] == [{"id": 2, "file_name": "b__2.png", "width": 23, "height": 17}]
    assert train["annotations"][0]["file_name"] == "b__2.png"
    first, segment = train["annotations"][0]["segments_info"][0], records[1].segments[0]
    assert first == {
        "id": segment.id,
        "category_id": segment.category_id,
        "area": segment.area,
        "bbox": list(segment.bbox),
        "iscrowd": 0,
    }
    pairs = zip(files.panoptic("val")["images"], files.panoptic("val")["annotations"], strict=True)
    assert [(image["id"], annotation["image_id"]) for image, annotation in pairs] == [(1, 1), (3, 3)]
    assert val["categories"] == taxonomy.coco_categories()
    assert "".join(json_parts(files.panoptic("val"))) == json.dumps(val)


def test_what_does_not_fit_is_refused(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy
) -> None:
    with pytest.raises(InputDataError, match=r"'b/2\.png' is not in the split"):
        CocoFiles(records, split_table.drop(index=1), taxonomy)
    with pytest.raises(InputDataError, match="out of order"):
        CocoFiles([*records, records[0]], split_table, taxonomy)
    records[0].segments[0] = records[0].segments[0]._replace(category_id=77)
    with pytest.raises(InputDataError, match=r"'a/1\.jpg', segment \d+: class 77 is not in the taxonomy"):
        CocoFiles(records, split_table, taxonomy)


def test_detection_files_are_read_by_pycocotools(
    files: CocoFiles, records: list[ConvertedRecord], pngs: Path, tmp_path: Path
) -> None:
    detection = whole(files.detection("val", pngs))
    assert [a["id"] for a in detection["annotations"]] == list(range(1, len(detection["annotations"]) + 1))
    (tmp_path / "detection.json").write_text(json.dumps(detection))
    coco = COCO(tmp_path / "detection.json")
    assert coco.getImgIds() == [1, 3]
    assert coco.getCatIds() == [WALL, SKY, CRANE]
    for seed in (0, 2):
        record = records[seed]
        id_map = id_map_of(seed, record.height, record.width)
        annotations = coco.loadAnns(coco.getAnnIds(seed + 1))
        assert len(annotations) == len(record.segments)
        for annotation, segment in zip(annotations, record.segments, strict=True):
            assert np.array_equal(coco.annToMask(annotation), id_map == segment.id)
            assert annotation["bbox"] == list(segment.bbox)
            assert annotation["area"] == segment.area
            assert (annotation["category_id"], annotation["iscrowd"]) == (segment.category_id, 0)


def test_each_png_is_checked(files: CocoFiles, records: list[ConvertedRecord], pngs: Path) -> None:
    (pngs / records[2].png_file).write_bytes(encode_id_map(np.ones((9, 40), np.uint32)))
    drawn = files.detection("val", pngs)["annotations"]
    assert [next(drawn)["image_id"] for _ in records[0].segments][-1] == 1
    with pytest.raises(InputDataError, match=f"{records[2].png_file}: has changed since it was converted"):
        next(drawn)
    (pngs / records[1].png_file).unlink()
    with pytest.raises(InputDataError, match=r"b__2\.png: there is no such file"):
        next(files.detection("train", pngs)["annotations"])
    (pngs / records[1].png_file).mkdir()
    with pytest.raises(InputDataError, match=r"b__2\.png: cannot be read"):
        next(files.detection("train", pngs)["annotations"])


def test_shapes_are_those_of_the_published_detections(real_data: Path) -> None:
    """COCO's own panoptic examples, with the detection file that COCO's converter made of them."""
    folder = real_data / "coco_panoptic_examples"
    panoptic = json.loads((folder / "panoptic_examples.json").read_text())
    published = json.loads((folder / "panoptic_coco_detection_format.json").read_text())
    found = []
    for annotation in panoptic["annotations"]:
        id_map = decode_id_map(folder / "panoptic_examples" / annotation["file_name"])
        for shape in segment_shapes(id_map).values():
            segmentation = {"size": list(id_map.shape), "counts": shape.counts}
            found.append((annotation["image_id"], shape.area, list(shape.bbox), segmentation))
    expected = [
        tuple(a[name] for name in ("image_id", "area", "bbox", "segmentation")) for a in published["annotations"]
    ]
    assert len(expected) > 10
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_real_annotations_become_files_that_pass_the_check(real_data: Path, repository: Path, tmp_path: Path) -> None:
    folder = real_data / "construction_real"
    project = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    exports = read_exports(folder / "annotated", project)
    sizes = zip(exports.images["height"].tolist(), exports.images["width"].tolist(), strict=True)
    size_of = dict(zip(exports.images["key"].tolist(), sizes, strict=True))
    ready = ReadyStuff(folder / "stuff_predictions", project)
    assert None not in map(ready.find, size_of)
    labels: Any = {key: ready.read(ImageToLabel(key, "", size, found=ready.find(key))) for key, size in size_of.items()}
    stuff = {key: None if found is None else encode_labels(found) for key, found in labels.items()}
    converted: Any = list(merge_images(exports.images, exports.annotations, stuff.get, project))
    for image in converted:
        (tmp_path / image.record.png_file).write_bytes(image.png)
    found = [image.record for image in converted]
    groups = near_duplicate_groups([record.phash for record in found], [record.key for record in found], 24)
    assert len(set(groups)) == 6
    classes = [{segment.category_id for segment in record.segments} for record in found]
    table = split([record.key for record in found], groups, classes)
    _, facts = audit_split(found, table, max_distance=24)
    assert facts["classes_on_one_side"] == []
    assert facts["images_val"] in (1, 2)
    things = 0
    for side in ("train", "val"):
        detection = whole(CocoFiles(found, table, project).detection(side, tmp_path))
        (tmp_path / "detection.json").write_text(json.dumps(detection))
        coco = COCO(tmp_path / "detection.json")
        for annotation in coco.loadAnns(coco.getAnnIds()):
            assert coco.annToMask(annotation).sum() == annotation["area"]
            things += project.is_thing[annotation["category_id"]]
    assert things == 8
    _, summary = class_counts_and_summary(
        found, table, project, exports.annotations, exports.rejected, exports.repaired
    )
    assert summary["all"]["thing_segments"] == 8
    assert summary["rejected"]["total"] == 0


@pytest.mark.parametrize("document", [{}, {"a": []}, {"a": [1, {"b": None}], "c": "é", "d": [2]}])
def test_streamed_text_is_that_of_json(document: dict[str, Any]) -> None:
    streamed = {name: iter(value) if isinstance(value, list) else value for name, value in document.items()}
    assert "".join(json_parts(streamed)) == json.dumps(document)
    with pytest.raises(ValueError, match="Out of range"):
        list(json_parts({"a": iter([float("nan")])}))
