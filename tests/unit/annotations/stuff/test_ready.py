import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.stuff.label_maps import decode_labels, encode_labels
from construction_panoptic.annotations.stuff.labeller import ImageToLabel
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

KEY = "crane/a.jpg"
ID_MAP = np.array([[0, 300, 300], [70000, 70000, 16777215]], dtype=np.uint32)


@pytest.fixture
def taxonomy() -> Taxonomy:
    return Taxonomy.from_dict(
        {
            "stuff": [
                {"id": 2, "name": "sky", "color": [0, 0, 250]},
                {"id": 5, "name": "ground", "color": [90, 60, 10]},
                {"id": 9, "name": "misc", "color": [1, 2, 3]},
            ],
            "things": [{"id": 20, "name": "crane", "color": [9, 9, 9]}],
            "coco_to_stuff": [
                {"coco_id": 187, "coco_name": "sky-other-merged", "stuff": "sky"},
                {"coco_id": 194, "coco_name": "dirt-merged", "stuff": "ground"},
                {"coco_id": 154, "coco_name": "sand", "stuff": "ground"},
                {"coco_id": 1, "coco_name": "person", "stuff": "misc"},
            ],
        }
    )


def predictions() -> dict[str, Any]:
    """COCO names; two COCO classes are one stuff class, a COCO thing is misc."""
    names = {187: "sky-other-merged", 194: "dirt-merged", 154: "sand", 1: "person"}
    segments = [
        {"id": 300, "category_id": 187, "area": 2, "bbox": [1, 0, 2, 1], "iscrowd": 0},
        {"id": 70000, "category_id": 154, "area": 2, "bbox": [0, 1, 2, 1], "iscrowd": 0},
        {"id": 16777215, "category_id": 1, "area": 1, "bbox": [2, 1, 1, 1], "iscrowd": 0},
    ]
    return {
        "images": [{"id": 4, "file_name": KEY, "width": 3, "height": 2}],
        "annotations": [{"image_id": 4, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": number, "name": name, "isthing": 0} for number, name in names.items()],
    }


def write(folder: Path, content: Any, id_map: NDArray[np.uint32] = ID_MAP) -> Path:
    (folder / "panoptic").mkdir(exist_ok=True)
    (folder / "panoptic.json").write_text(json.dumps(content))
    (folder / "panoptic" / "a.png").write_bytes(encode_id_map(id_map))
    return folder


def labels_of(stuff: ReadyStuff, key: str = KEY, size: tuple[int, int] = (2, 3)) -> NDArray[np.uint8] | None:
    return stuff.read(ImageToLabel(key, "", size, found=stuff.find(key)))


def test_coco_names_become_stuff_ids(tmp_path: Path, taxonomy: Taxonomy) -> None:
    labels = labels_of(ReadyStuff(write(tmp_path, predictions()), taxonomy))
    assert labels is not None
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 2, 2], [5, 5, 9]]


def test_own_names_win_whatever_their_ids(tmp_path: Path, taxonomy: Taxonomy) -> None:
    content = predictions()
    content["categories"] = [
        {"id": 187, "name": "ground"},
        {"id": 154, "name": "sky"},
        {"id": 1, "name": "ground"},
    ]
    labels = labels_of(ReadyStuff(write(tmp_path, content), taxonomy))
    assert labels is not None
    assert labels.tolist() == [[0, 5, 5], [2, 2, 5]]


def test_an_image_without_segments_has_no_stuff(tmp_path: Path, taxonomy: Taxonomy) -> None:
    content = predictions()
    content["annotations"][0]["segments_info"] = []
    stuff = ReadyStuff(write(tmp_path, content, np.zeros((2, 3), np.uint32)), taxonomy)
    labels = labels_of(stuff)
    assert labels is not None
    assert not labels.any()


def test_images_that_are_not_covered_are_not_found(tmp_path: Path, taxonomy: Taxonomy) -> None:
    content = predictions()
    content["images"].append({"id": 5, "file_name": "crane/no_annotation.jpg", "width": 3, "height": 2})
    stuff = ReadyStuff(write(tmp_path, content), taxonomy)
    keys = ["z/other.jpg", KEY, "crane/no_annotation.jpg"]
    assert [stuff.find(key) is None for key in keys] == [True, False, True]


def test_what_is_found_tells_predictions_apart(tmp_path: Path, taxonomy: Taxonomy) -> None:
    folder = write(tmp_path, predictions())
    stuff = ReadyStuff(folder, taxonomy)
    first = stuff.find(KEY)
    assert stuff.find(KEY) == first
    (folder / "panoptic" / "a.png").write_bytes(b"another")
    assert stuff.find(KEY) != first
    assert len({stuff.identity, ReadyStuff(folder, taxonomy, 0.4).identity}) == 2


def test_pngs_are_read_only_when_asked_for(tmp_path: Path, taxonomy: Taxonomy) -> None:
    folder = write(tmp_path, predictions())
    stuff = ReadyStuff(folder, taxonomy)
    (folder / "panoptic" / "a.png").unlink()
    assert labels_of(stuff, "z/other.jpg", (9, 9)) is None
    with pytest.raises(InputDataError, match=r"a\.png.*no such file"):
        labels_of(stuff)


def test_another_size_is_refused_with_both_names(tmp_path: Path, taxonomy: Taxonomy) -> None:
    stuff = ReadyStuff(write(tmp_path, predictions()), taxonomy)
    with pytest.raises(InputDataError, match=r"a\.png: 3 x 2 pixels, but its image 'crane/a\.jpg' is 2 x 3"):
        labels_of(stuff, KEY, (3, 2))


def test_ids_of_png_and_segments_info_must_be_the_same(tmp_path: Path, taxonomy: Taxonomy) -> None:
    content = predictions()
    del content["annotations"][0]["segments_info"][0]
    with pytest.raises(InputDataError, match=r"a\.png: id 300 is not in segments_info"):
        labels_of(ReadyStuff(write(tmp_path, content), taxonomy))
    content = predictions()
    content["annotations"][0]["segments_info"].append({"id": 7, "category_id": 1})
    with pytest.raises(InputDataError, match=r"a\.png: segment 7 .* has no pixel"):
        labels_of(ReadyStuff(write(tmp_path, content), taxonomy))
    with pytest.raises(InputDataError, match=r"a\.png: id 5 is not"):
        labels_of(ReadyStuff(write(tmp_path, predictions(), ID_MAP * 0 + 5), taxonomy))


def segments(content: dict[str, Any]) -> Any:
    return content["annotations"][0]["segments_info"]


BREAKERS: dict[str, Callable[[dict[str, Any]], object]] = {
    r"panoptic\.json: category 'scaffold'": lambda content: content["categories"][1].update(name="scaffold"),
    r"panoptic\.json: category 'crane'": lambda content: content["categories"][1].update(name="crane"),
    "category id 187 is listed twice": lambda content: content["categories"].append({"id": 187, "name": "sky"}),
    r"image 'crane/a\.jpg' is listed twice": lambda content: content["images"].append({"id": 9, "file_name": KEY}),
    "image id 4 is listed twice": lambda content: content["images"].append({"id": 4, "file_name": "b.jpg"}),
    r"'crane/a\.jpg' has two annotations": lambda content: content["annotations"].extend(content["annotations"]),
    r"a\.png is for image 99": lambda content: content["annotations"][0].update(image_id=99),
    r"a\.png, segment 300: category 77": lambda content: segments(content)[0].update(category_id=77),
    r"a\.png: segment 300 is listed twice": lambda content: segments(content).append(segments(content)[0]),
    r"panoptic\.json: not COCO panoptic: annotations\.0\.segments_info\.0\.id": (
        lambda content: segments(content)[0].update(id=0)
    ),
    r"panoptic\.json: .*no list `images`": lambda content: content.pop("images"),
}


@pytest.mark.parametrize("message", BREAKERS)
def test_contradictions_are_named(tmp_path: Path, taxonomy: Taxonomy, message: str) -> None:
    content = predictions()
    BREAKERS[message](content)
    with pytest.raises(InputDataError, match=message):
        ReadyStuff(write(tmp_path, content), taxonomy)


def test_missing_and_damaged_json_are_named(tmp_path: Path, taxonomy: Taxonomy) -> None:
    with pytest.raises(InputDataError, match=r"panoptic\.json: there is no such file"):
        ReadyStuff(tmp_path, taxonomy)
    for content in (b"{", b"\xff\xfe", b"[]", b"[" * 100_000):
        (tmp_path / "panoptic.json").write_bytes(content)
        with pytest.raises(InputDataError, match=r"panoptic\.json"):
            ReadyStuff(tmp_path, taxonomy)


def test_label_maps_survive_their_file() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    assert np.array_equal(decode_labels(encode_labels(labels)), labels)
    assert np.array_equal(decode_labels(encode_labels(labels[:, ::2])), labels[:, ::2])


def test_what_is_no_label_map_is_refused() -> None:
    for bad in (np.zeros((2, 3), np.int32), np.zeros((2, 3, 3), np.uint8), np.zeros((0, 3), np.uint8)):
        with pytest.raises(ValueError, match="label map"):
            encode_labels(bad)  # type: ignore[arg-type]
    with pytest.raises(InputDataError, match="mode RGB"):
        decode_labels(encode_id_map(ID_MAP))
    with pytest.raises(InputDataError, match="not a readable PNG"):
        decode_labels(encode_labels(np.zeros((9, 9), np.uint8))[:40])
    with pytest.raises(InputDataError, match="not a readable PNG"):
        decode_labels(os.urandom(20))


def test_real_predictions(real_data: Path, repository: Path) -> None:
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf/base/taxonomy.json").read_text()))
    folder = real_data / "construction_real" / "stuff_predictions"
    content = json.loads((folder / "panoptic.json").read_text())
    stuff = ReadyStuff(folder, taxonomy)
    names = {category["id"]: category["name"] for category in content["categories"]}
    empty = 0
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        labels = labels_of(stuff, image["file_name"], (image["height"], image["width"]))
        assert labels is not None
        expected = {
            taxonomy.stuff_id(names[segment["category_id"]]): segment["area"] for segment in annotation["segments_info"]
        }
        assert dict(zip(*np.unique(labels[labels > 0], return_counts=True), strict=True)) == expected
        empty += not expected
    assert empty == 1
