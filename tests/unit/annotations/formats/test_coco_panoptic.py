import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.panoptic_png import decode_id_map, encode_id_map
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

Make = Callable[..., Any]
CATEGORIES = [{"id": 3, "name": "Pump"}, {"id": 9, "name": "sky"}, {"id": 4, "name": "spaceship"}]


def id_map() -> NDArray[np.uint32]:
    """Sky above two pumps, the second in two parts; void below."""
    ids = np.zeros((30, 40), dtype=np.uint32)
    ids[:10] = 70_000
    ids[10:20, :10] = 1
    ids[10:20, 20:25] = ids[10:30, 35:] = 256
    return ids


def segment(number: int, category: int = 3, **changes: Any) -> dict[str, Any]:
    return {"id": number, "category_id": category, "iscrowd": 0} | changes


SEGMENTS = [segment(70_000, 9), segment(1), segment(256, iscrowd=1)]


@pytest.fixture
def make(tmp_path: Path, make_photo: Make) -> Make:
    def make(
        segments: Any = SEGMENTS,
        *,
        name: str = "panoptic_val.json",
        folder: str = "images",
        ids: NDArray[np.uint32] | bytes | None = None,
        **changes: Any,
    ) -> Path:
        source = tmp_path / "raw" / "yard"
        make_photo(source / folder / "a.jpg")
        document = {
            "images": [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}],
            "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
            "categories": CATEGORIES,
        } | changes
        (source / name).parent.mkdir(exist_ok=True, parents=True)
        (source / name).write_text(json.dumps(document))
        png = source / name.removesuffix(".json") / "a.png"
        png.parent.mkdir()
        png.write_bytes(ids if isinstance(ids, bytes) else encode_id_map(id_map() if ids is None else ids))
        return source

    return make


def reasons(exports: Exports) -> list[tuple[str, str]]:
    rejected = exports.rejected
    return sorted(zip(rejected["reason"], rejected["annotation_id"].astype(object).fillna(""), strict=True))


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("panoptic_val.json", "images"),
        ("panoptic_val.json", "images/val"),
        ("annotations/panoptic_val2017.json", "val2017"),
        ("panoptic.json", "input_images"),
        ("panoptic_val.json", "."),
    ],
)
def test_segments_become_annotations(
    make: Make, read: Make, mask_of: Make, tmp_path: Path, name: str, folder: str, archive: bool
) -> None:
    source = make(name=name, folder=folder)
    if archive:
        with zipfile.ZipFile(f"{source}.zip", "w") as packed:
            for path in source.rglob("*"):
                packed.write(path, path.relative_to(source))
        shutil.rmtree(source)
    exports = read(on_error="fail")
    assert exports.images["key"].tolist() == ["yard/a.jpg"]
    found = exports.annotations.frame()
    assert found["annotation_id"].tolist() == [70_000, 1, 256]
    assert found["category"].tolist() == ["sky", "pump", "pump"]
    assert found["is_thing"].tolist() == [False, True, True]
    assert found["iscrowd"].tolist() == [0, 0, 1]
    for number, rle in zip(found["annotation_id"], found["rle"], strict=True):
        np.testing.assert_array_equal(mask_of(rle, 30, 40), id_map() == number)
    assert exports.rejected.empty


def test_what_cannot_be_used_is_listed_once(make: Make, read: Make) -> None:
    make(
        [
            segment(1),
            segment(1),
            segment(7),
            segment(256, 4),
            segment(0),
            segment(-3),
            segment(2**40),
            segment(8, iscrowd=2),
            {"category_id": 3},
            None,
        ]
    )
    exports = read()
    assert exports.annotations.frame()["annotation_id"].tolist() == [1]
    assert reasons(exports) == [
        ("bad_annotation_entry", "#0"),
        ("bad_annotation_entry", "8"),
        ("duplicate_annotation_id", "#0"),
        ("duplicate_annotation_id", "1"),
        ("segment_not_listed", "70000"),
        ("unknown_class", "256"),
        ("zero_area", "-3"),
        ("zero_area", "0"),
        ("zero_area", "1099511627776"),
        ("zero_area", "7"),
    ]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("unreadable_image", {"ids": b"no PNG"}),
        ("size_mismatch", {"ids": np.ones((30, 41), dtype=np.uint32)}),
        ("missing_file", {"annotations": [{"image_id": 5, "file_name": "b.png", "segments_info": SEGMENTS}]}),
        ("missing_file", {"annotations": [{"image_id": 5, "segments_info": SEGMENTS}]}),
        ("missing_file", {"annotations": [{"image_id": 5, "file_name": "\0", "segments_info": SEGMENTS}]}),
        (
            "annotation_without_image",
            {"annotations": [{"image_id": 6, "file_name": "a.png", "segments_info": SEGMENTS}]},
        ),
    ],
)
def test_all_segments_of_an_unusable_entry_are_rejected(
    make: Make, read: Make, reason: str, changes: dict[str, Any]
) -> None:
    make(**changes)
    exports = read()
    assert reasons(exports) == sorted((reason, str(entry["id"])) for entry in SEGMENTS)
    assert exports.images["key"].tolist() == ["yard/a.jpg"]


def test_entries_without_segments(make: Make, read: Make) -> None:
    good = {"image_id": 5, "file_name": "a.png", "segments_info": SEGMENTS}
    nameless = {"image_id": 5, "file_name": "a.png", "segments_info": []}
    make(annotations=[good, nameless, 7, {"image_id": 5}, {"image_id": 5, "segments_info": 3}])
    exports = read()
    assert len(exports.annotations) == 3
    assert reasons(exports) == [
        ("annotation_without_image", "#2"),
        ("duplicate_annotation_id", "#1"),
        ("duplicate_annotation_id", "#3"),
        ("duplicate_annotation_id", "#4"),
    ]


def test_a_png_outside_the_export_is_not_read(make: Make, read: Make) -> None:
    source = make(annotations=[{"image_id": 5, "file_name": "../../../x.png", "segments_info": SEGMENTS}])
    (source.parent.parent / "x.png").write_bytes(encode_id_map(id_map()))
    assert reasons(read()) == sorted(("unsafe_path", str(entry["id"])) for entry in SEGMENTS)


def test_other_files_are_told(make: Make, read: Make) -> None:
    source = make()
    (source / "coco.json").write_text("{}")
    (source / "panoptic_categories.json").write_text("[]")
    (source / "panoptic_train.json").write_text("[")
    shutil.copytree(source / "panoptic_val", source / "panoptic_train")
    assert reasons(read()) == [("second_annotation_file", ""), ("second_annotation_file", ""), ("unreadable_json", "")]


def test_no_list_of_annotations(make: Make, read: Make) -> None:
    make(annotations=None)
    with pytest.raises(InputDataError, match=r"panoptic_val\.json has no list `annotations`.*\(no_annotations\)"):
        read()


def test_published_examples(real_data: Path) -> None:
    folder = real_data / "coco_panoptic_examples"
    document = json.loads((folder / "panoptic_examples.json").read_text())
    kinds: dict[str, list[dict[str, Any]]] = {"stuff": [], "things": []}
    for number, category in enumerate(document["categories"], 1):
        entry = {"id": number, "name": category["name"], "color": category["color"]}
        kinds["things" if category["isthing"] else "stuff"].append(entry)
    exports = read_exports(folder, Taxonomy.from_dict(kinds))
    others = exports.rejected["detail"].str.partition(" ")[0].tolist()
    assert others == ["panoptic_coco_categories.json", "panoptic_coco_detection_format.json"]
    assert len(exports.images) == 2
    found = exports.annotations.frame()
    names = {category["id"]: category["name"] for category in document["categories"]}
    expected = sorted(
        (segment["id"], names[segment["category_id"]], segment["area"], tuple(segment["bbox"]))
        for annotation in document["annotations"]
        for segment in annotation["segments_info"]
    )
    rows = zip(found["annotation_id"], found["category"], found["area"], map(json.loads, found["bbox"]), strict=True)
    assert sorted((number, name, area, tuple(bbox)) for number, name, area, bbox in rows) == expected
    assert set(exports.repaired["reason"]) <= {"image_without_annotations"}
    assert decode_id_map(folder / "panoptic_examples" / "000000142238.png").shape == (427, 640)
