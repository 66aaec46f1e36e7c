import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO

from construction_panoptic.annotations.coco_files import (
    check_panoptic,
    detection_json,
    detection_stream,
    panoptic_json,
    panoptic_problems,
    panoptic_stream,
)
from construction_panoptic.annotations.formats.cvat import read_exports
from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split.grouping import near_duplicate_groups
from construction_panoptic.annotations.split.splitting import audit_split, split
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.summary import dataset_summary
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError, ParameterError

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
        segments.append(Segment(segment_id, CLASS_OF[segment_id], len(rows), box, 0, annotation))
    return segments


def id_map_of(seed: int, height: int, width: int) -> NDArray[np.uint32]:
    blocks = np.random.default_rng(seed).choice([0, *CLASS_OF], size=(-(-height // 3), -(-width // 4)))
    return np.kron(blocks, np.ones((3, 4)))[:height, :width].astype(np.uint32)


@pytest.fixture
def records() -> list[ConvertedRecord]:
    sizes = {"b/2.png": (17, 23), "a/1.jpg": (20, 11), "c/3.jpg": (9, 40)}
    return [
        ConvertedRecord(key, key.replace("/", "__")[:-4], key.replace("/", "__"), width, height, segments_of(id_map), 0)
        for seed, (key, (height, width)) in enumerate(sizes.items())
        for id_map in [id_map_of(seed, height, width)]
    ]


@pytest.fixture
def pngs(tmp_path: Path, records: list[ConvertedRecord]) -> Path:
    for seed, record in enumerate(records):
        (tmp_path / record.png_file).write_bytes(encode_id_map(id_map_of(seed, record.height, record.width)))
    return tmp_path


@pytest.fixture
def split_table() -> pd.DataFrame:
    return pd.DataFrame({"key": ["a/1.jpg", "b/2.png", "c/3.jpg"], "split": ["val", "train", "val"]})


def test_panoptic_files_share_image_ids(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy
) -> None:
    val = panoptic_json(records, split_table, "val", taxonomy)
    train = panoptic_json(iter(records), split_table, "train", taxonomy)
    assert [image["id"] for image in val["images"]] == [1, 3]
    assert train["images"] == [{"id": 2, "file_name": "b__2.png", "width": 23, "height": 17}]
    assert panoptic_json(records, split_table, "all", taxonomy)["images"] == [
        val["images"][0],
        train["images"][0],
        val["images"][1],
    ]
    assert train["annotations"][0]["file_name"] == "b__2.png"
    first, segment = train["annotations"][0]["segments_info"][0], records[0].segments[0]
    assert first == {
        "id": segment.id,
        "category_id": segment.category_id,
        "area": segment.area,
        "bbox": list(segment.bbox),
        "iscrowd": 0,
    }
    assert val["categories"] == taxonomy.coco_categories()
    assert json.loads(json.dumps(val)) == val


def test_panoptic_files_refuse_what_does_not_fit(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy
) -> None:
    with pytest.raises(ParameterError, match="'test'"):
        panoptic_json(records, split_table, "test", taxonomy)
    with pytest.raises(InputDataError, match=r"'c/3\.jpg' is not in the split"):
        panoptic_json(records, split_table.iloc[:2], "val", taxonomy)
    smaller = Taxonomy(stuff=taxonomy.stuff[:1], things=taxonomy.things)
    with pytest.raises(InputDataError, match=r"'a/1\.jpg', segment 70000: class 5"):
        panoptic_json(records, split_table, "val", smaller)


def test_detection_files_hold_every_visible_mask(
    records: list[ConvertedRecord],
    split_table: pd.DataFrame,
    taxonomy: Taxonomy,
    pngs: Path,
    tmp_path: Path,
) -> None:
    panoptic = panoptic_json(records, split_table, "val", taxonomy)
    detection = detection_json(panoptic, pngs)
    assert detection == detection_json(panoptic, pngs, workers=2)
    assert [a["id"] for a in detection["annotations"]] == list(range(1, len(detection["annotations"]) + 1))
    (tmp_path / "detection.json").write_text(json.dumps(detection))
    coco = COCO(tmp_path / "detection.json")
    assert coco.getImgIds() == [1, 3]
    assert coco.getCatIds() == [WALL, SKY, CRANE]
    for seed, record in enumerate(records):
        if record.key == "b/2.png":
            continue
        id_map = id_map_of(seed, record.height, record.width)
        image_id = 1 if record.key == "a/1.jpg" else 3
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(annotations) == len(record.segments)
        for annotation, segment in zip(annotations, record.segments, strict=True):
            assert np.array_equal(coco.annToMask(annotation), id_map == segment.id)
            assert annotation["bbox"] == list(segment.bbox)
            assert annotation["area"] == segment.area
            assert (annotation["category_id"], annotation["iscrowd"]) == (segment.category_id, 0)


def test_detection_files_refuse_pngs_that_do_not_fit(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy, pngs: Path
) -> None:
    panoptic = panoptic_json(records, split_table, "train", taxonomy)
    wrong = copy.deepcopy(panoptic)
    wrong["annotations"][0]["segments_info"][0]["id"] = 5
    with pytest.raises(InputDataError, match=r"b__2\.png: segment 5 has no pixels"):
        detection_json(wrong, pngs)
    wrong = copy.deepcopy(panoptic)
    wrong["images"][0]["width"] = 24
    with pytest.raises(InputDataError, match=r"b__2\.png: 23 x 17 pixels, its image 24 x 17"):
        detection_json(wrong, pngs)
    (pngs / "b__2.png").unlink()
    with pytest.raises(InputDataError, match=r"b__2\.png: there is no such file"):
        detection_json(panoptic, pngs)


Breaker = Callable[[dict[str, Any], dict[str, Any]], None]
BREAKERS: dict[str, Breaker] = {
    r"segment \d+ has area 1000": lambda panoptic, segment: segment.update(area=1000),
    r"segment \d+ has area \d+\.0": lambda panoptic, segment: segment.update(area=float(segment["area"])),
    r"segment \d+ has bbox \[0, 0, 1, 99\]": lambda panoptic, segment: segment.update(bbox=[0, 0, 1, 99]),
    "segment 0 is not in 1": lambda panoptic, segment: segment.update(id=0),
    "segment 4 has no pixels": lambda panoptic, segment: segment.update(id=4),
    "id 16777215 is not in segments_info": lambda panoptic, segment: segment.update(id=4),
    "unknown category 77": lambda panoptic, segment: segment.update(category_id=77),
    "has iscrowd 2": lambda panoptic, segment: segment.update(iscrowd=2),
    "has iscrowd 1": lambda panoptic, segment: segment.update(iscrowd=1, category_id=WALL),
    "segment id 16777215 comes 2 times": lambda panoptic, segment: panoptic["annotations"][0]["segments_info"].append(
        segment
    ),
    r"a__1\.png: 11 x 20 pixels, its image 12 x 20 pixels": lambda panoptic, segment: panoptic["images"][0].update(
        width=12
    ),
    "image id 1 comes 2 times": lambda panoptic, segment: panoptic["images"].append(panoptic["images"][0]),
    r"image file a__1\.jpg comes 2 times": lambda panoptic, segment: panoptic["images"].append(
        panoptic["images"][0] | {"id": 9}
    ),
    r"image x\.jpg has no annotation": lambda panoptic, segment: panoptic["images"].append(
        {"id": 9, "file_name": "x.jpg", "width": 1, "height": 1}
    ),
    "annotation of image 1 comes 2 times": lambda panoptic, segment: panoptic["annotations"].append(
        panoptic["annotations"][0]
    ),
    r"a__1\.png: there is no image 8": lambda panoptic, segment: panoptic["annotations"][0].update(image_id=8),
    r"nowhere\.png: there is no such file": lambda panoptic, segment: panoptic["annotations"][0].update(
        file_name="nowhere.png"
    ),
    "category name sky comes 2 times": lambda panoptic, segment: panoptic["categories"].append(
        {"id": 99, "name": "sky", "isthing": 0}
    ),
    f"category id {SKY} comes 2 times": lambda panoptic, segment: panoptic["categories"].append(
        {"id": SKY, "name": "heaven", "isthing": 0}
    ),
}


@pytest.mark.parametrize("message", BREAKERS)
def test_the_check_finds_what_is_wrong(
    message: str, records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy, pngs: Path
) -> None:
    panoptic = panoptic_json(records, split_table, "val", taxonomy)
    check_panoptic(panoptic, pngs)
    assert panoptic_problems(panoptic, pngs) == []
    check_panoptic(panoptic, pngs, workers=2)
    BREAKERS[message](panoptic, panoptic["annotations"][0]["segments_info"][0])
    with pytest.raises(InputDataError, match=message):
        check_panoptic(panoptic, pngs)


def test_many_problems_are_counted(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy, pngs: Path
) -> None:
    panoptic = panoptic_json(records, split_table, "all", taxonomy)
    for annotation in panoptic["annotations"]:
        for segment in annotation["segments_info"]:
            segment["area"] += 1
    count = sum(len(annotation["segments_info"]) for annotation in panoptic["annotations"])
    with pytest.raises(InputDataError, match=rf"{count} problem\(s\)[\s\S]*and {count - 10} more"):
        check_panoptic(panoptic, pngs)


def test_published_coco_files_pass_and_give_the_published_detections(real_data: Path) -> None:
    """COCO's own panoptic examples, with the detection file that COCO's converter made of them."""
    folder = real_data / "coco_panoptic_examples"
    panoptic = json.loads((folder / "panoptic_examples.json").read_text())
    panoptic["categories"] = json.loads((folder / "panoptic_coco_categories.json").read_text())
    published = json.loads((folder / "panoptic_coco_detection_format.json").read_text())
    check_panoptic(panoptic, folder / "panoptic_examples")
    ours = detection_json(panoptic, folder / "panoptic_examples")["annotations"]
    key = "image_id", "category_id", "area"
    ours_sorted, published_sorted = (
        sorted(found, key=lambda a: (*(a[name] for name in key), str(a["bbox"])))
        for found in (ours, published["annotations"])
    )
    assert len(ours_sorted) == len(published_sorted) > 10
    for one, other in zip(ours_sorted, published_sorted, strict=True):
        assert [one[name] for name in (*key, "bbox", "iscrowd")] == [other[name] for name in (*key, "bbox", "iscrowd")]
        assert one["segmentation"] == other["segmentation"]


def test_real_annotations_become_files_that_pass_the_check(real_data: Path, repository: Path, tmp_path: Path) -> None:
    folder = real_data / "construction_real"
    project = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    exports = read_exports(folder / "annotated", project)
    sizes = zip(exports.images["height"].tolist(), exports.images["width"].tolist(), strict=True)
    size_of = dict(zip(exports.images["key"].tolist(), sizes, strict=True))
    ready = ReadyStuff(folder / "stuff_predictions", project)
    assert None not in map(ready.find, size_of)
    converted = list(
        merge_images(exports.images, exports.annotations, lambda key: ready.labels(key, size_of[key]), project)
    )
    for image in converted:
        (tmp_path / f"{image.stem}.png").write_bytes(image.png)
    found = [image.record for image in converted]
    groups = near_duplicate_groups([record.phash for record in found], [record.key for record in found], 24)
    assert len(set(groups)) == 6
    classes = [{segment.category_id for segment in record.segments} for record in found]
    table = split([record.key for record in found], groups, classes)
    audit = audit_split(found, table, max_distance=24)
    assert audit.facts["classes_on_one_side"] == []
    assert audit.facts["images_val"] in (1, 2)
    things = 0
    for side in ("train", "val"):
        panoptic = panoptic_json(found, table, side, project)
        check_panoptic(panoptic, tmp_path)
        detection = detection_json(panoptic, tmp_path)
        (tmp_path / "detection.json").write_text(json.dumps(detection))
        coco = COCO(tmp_path / "detection.json")
        for annotation in coco.loadAnns(coco.getAnnIds()):
            assert coco.annToMask(annotation).sum() == annotation["area"]
            things += project.is_thing[annotation["category_id"]]
    assert things == 8
    summary = dataset_summary(found, table, project, exports.rejected)
    assert summary["all"]["thing_segments"] == 8
    assert summary["rejected"]["total"] == 0


def test_streams_give_what_the_documents_hold(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy, pngs: Path
) -> None:
    ordered = sorted(records, key=lambda record: record.key)
    for side in ("train", "val", "all"):
        panoptic = panoptic_json(records, split_table, side, taxonomy)
        text = "".join(json_parts(panoptic_stream(ordered, split_table, side, taxonomy)))
        assert text == json.dumps(panoptic)
        detection = detection_json(panoptic, pngs)
        streamed = detection_stream(ordered, split_table[::-1], side, taxonomy, pngs)
        assert "".join(json_parts(streamed)) == json.dumps(detection)
    with pytest.raises(InputDataError, match="out of order"):
        list(panoptic_stream([*ordered, ordered[0]], split_table, "all", taxonomy)["images"])
    for stream in (panoptic_stream, partial(detection_stream, png_folder=pngs)):
        with pytest.raises(ParameterError, match="'test'"):
            stream(ordered, split_table, "test", taxonomy)
        with pytest.raises(InputDataError, match=r"'b/2\.png' is not in the split"):
            list(stream(ordered, split_table.drop(index=1), "all", taxonomy)["annotations"])


def test_a_stream_checks_each_png(
    records: list[ConvertedRecord], split_table: pd.DataFrame, taxonomy: Taxonomy, pngs: Path
) -> None:
    ordered = sorted(records, key=lambda record: record.key)
    (pngs / ordered[2].png_file).write_bytes(encode_id_map(np.ones((ordered[2].height, ordered[2].width), np.uint32)))
    drawn = detection_stream(ordered, split_table, "all", taxonomy, pngs)["annotations"]
    sound = len(ordered[0].segments) + len(ordered[1].segments)
    assert [next(drawn)["image_id"] for _ in range(sound)][-1] == 2
    with pytest.raises(InputDataError, match=ordered[2].png_file):
        next(drawn)


@pytest.mark.parametrize("document", [{}, {"a": []}, {"a": [1, {"b": None}], "c": "é", "d": [2]}])
def test_streamed_text_is_that_of_json(document: dict[str, Any]) -> None:
    streamed = {name: iter(value) if isinstance(value, list) else value for name, value in document.items()}
    assert "".join(json_parts(streamed)) == json.dumps(document)
    with pytest.raises(ValueError, match="Out of range"):
        list(json_parts({"a": iter([float("nan")])}))
