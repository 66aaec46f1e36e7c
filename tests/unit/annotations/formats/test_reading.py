import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from construction_panoptic.annotations.formats.reading import Exports
from construction_panoptic.errors import InputDataError

pytestmark = pytest.mark.medium

Make = Callable[..., Any]


def reasons(exports: Exports) -> list[tuple[str, str | None]]:
    """Reason and annotation id of each rejected record."""
    ids = exports.rejected["annotation_id"].astype(object)
    return sorted(zip(exports.rejected["reason"], ids.where(ids.notna(), None), strict=True), key=str)


def annotation(number: int = 1, **changes: Any) -> dict[str, Any]:
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    entry = {"id": number, "image_id": 1, "category_id": 1, "segmentation": square, "iscrowd": 0}
    return entry | changes


def image(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": "a.jpg", "width": 40, "height": 30} | changes


DIRTY_ANNOTATIONS: list[tuple[str, Any]] = [
    ("too_few_points", {"segmentation": [[1, 2, 3, 4]]}),
    ("odd_coordinates", {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}),
    ("not_finite", {"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}),
    ("zero_area", {"segmentation": [[5, 5, 10, 10, 5, 5]]}),
    ("outside_image", {"segmentation": [[50, 1, 60, 1, 60, 9]]}),
    ("no_segmentation", {"segmentation": []}),
    ("bad_polygon", {"segmentation": [["x", 2, 3, 4, 5, 6]]}),
    ("bad_rle", {"segmentation": {"size": [30, 40], "counts": [3]}}),
    ("bad_rle", {"segmentation": {"size": [30, 40], "counts": "zzz"}}),
    ("annotation_without_image", {"image_id": 99}),
    ("annotation_without_image", {"image_id": "1"}),
    ("annotation_without_image", {"image_id": None}),
    ("unknown_class", {"category_id": []}),
    ("bad_annotation_entry", {"iscrowd": 2}),
]


def test_dirty_annotations(make_export: Make, make_document: Make, read: Make) -> None:
    entries: list[Any] = [annotation(n, **changes) for n, (_, changes) in enumerate(DIRTY_ANNOTATIONS, start=1)]
    entries += [annotation(50), annotation(50), 7, None, annotation(51, id="51"), annotation(52, id=True)]
    entries += [annotation(60, iscrowd=1, bbox="x", area=[])]
    make_export("yard", make_document(annotations=entries))
    exports = read()
    first = len(DIRTY_ANNOTATIONS)
    expected = [(reason, str(n)) for n, (reason, _) in enumerate(DIRTY_ANNOTATIONS, start=1)]
    expected += [("duplicate_annotation_id", "50")]
    expected += [("bad_annotation_entry", f"#{first + n}") for n in (2, 3, 4, 5)]
    assert reasons(exports) == sorted(expected, key=str)
    assert exports.annotations.frame()["annotation_id"].tolist() == [50, 60]
    assert exports.annotations.frame()["iscrowd"].tolist() == [0, 1]
    assert exports.annotations.frame()["bbox"].isna().tolist() == [True, False]
    assert exports.repaired["reason"].tolist() == ["bbox_recomputed"]
    assert len(exports.annotations) + len(exports.rejected) == len(entries)


@pytest.mark.parametrize(("reason", "changes"), DIRTY_ANNOTATIONS)
def test_fail_mode_names_the_annotation(
    make_export: Make, make_document: Make, read: Make, reason: str, changes: dict[str, Any]
) -> None:
    make_export("yard", make_document(annotations=[annotation(), annotation(31, **changes)]))
    with pytest.raises(InputDataError, match=rf"export 'yard'.*annotation 31: .*\({reason}\)"):
        read(on_error="fail")


DIRTY_IMAGES: list[tuple[str, Any]] = [
    ("missing_file", {"file_name": "missing.jpg"}),
    ("unreadable_image", {"file_name": "text.jpg"}),
    ("size_mismatch", {"width": 41}),
    ("size_mismatch", {"width": 30, "height": 40}),
    ("unsafe_path", {"file_name": "../coco.json"}),
    ("unsafe_path", {"file_name": "/etc/hostname"}),
    ("unsafe_path", {"file_name": "C:/a.jpg"}),
    ("unsafe_path", {"file_name": "..\\a.jpg"}),
    ("unsafe_path", {"file_name": "a\0.jpg"}),
    ("unsafe_path", {"file_name": "\ud800.jpg"}),
    ("unsafe_path", {"file_name": "out.jpg"}),
    ("missing_file", {"file_name": "x" * 5000}),
    ("bad_image_entry", {"width": 0}),
    ("bad_image_entry", {"height": "30"}),
    ("bad_image_entry", {"file_name": None}),
]


@pytest.mark.parametrize(("reason", "changes"), DIRTY_IMAGES)
def test_dirty_images(
    *,
    make_export: Make,
    make_document: Make,
    make_photo: Make,
    read: Make,
    tmp_path: Path,
    reason: str,
    changes: dict[str, Any],
) -> None:
    """The image and each of its annotations get a row of their own; the good image stays."""
    annotations = [annotation(1), annotation(2, image_id=2), annotation(3, image_id=2)]
    document = make_document(images=[image(1, file_name="good.jpg"), image(2, **changes)], annotations=annotations)
    folder = make_export("yard", document, photos=("a.jpg", "good.jpg"))
    (folder / "images" / "text.jpg").write_text("no image")
    make_photo(tmp_path / "outside.jpg")
    (folder / "images" / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    exports = read()
    assert exports.images["key"].tolist() == ["yard/good.jpg"]
    assert exports.annotations.frame()["annotation_id"].tolist() == [1]
    assert reasons(exports) == [(reason, "2"), (reason, "3"), (reason, None)]
    exports.rejected.to_csv(tmp_path / "rejected.csv")
    with pytest.raises(InputDataError, match=rf"export 'yard'.*\({reason}\)"):
        read(on_error="fail")


def test_entries_of_images_that_are_no_objects(make_export: Make, make_document: Make, read: Make) -> None:
    make_export("yard", make_document(images=[3, None, [], image()]))
    exports = read()
    assert len(exports.images) == 1
    assert reasons(exports) == [("bad_image_entry", None)] * 3


def test_an_id_of_two_images(make_export: Make, make_document: Make, read: Make) -> None:
    """It is not known which of them an annotation means, so neither is used."""
    images = [image(1), image(1, file_name="b.jpg"), image(2, file_name="c.jpg")]
    annotations = [annotation(1), annotation(2, image_id=2)]
    make_export("yard", make_document(images=images, annotations=annotations), photos=("a.jpg", "b.jpg", "c.jpg"))
    exports = read()
    assert exports.images["key"].tolist() == ["yard/c.jpg"]
    assert reasons(exports) == [
        ("duplicate_image_id", "1"),
        ("duplicate_image_id", None),
        ("duplicate_image_id", None),
    ]
    assert sorted(exports.rejected["image"]) == ["yard/a.jpg", "yard/b.jpg", "yard/b.jpg"]


def test_an_id_of_an_image_and_of_a_bad_entry(make_export: Make, make_document: Make, read: Make) -> None:
    bad = {"id": 1, "file_name": "b.jpg"}
    make_export("yard", make_document(images=[image(1), bad, image(2, file_name="c.jpg")]), photos=("a.jpg", "c.jpg"))
    details = dict(read().rejected.drop_duplicates("image")[["image", "detail"]].itertuples(index=False))
    assert details["yard/a.jpg"] == "another image has the id 1 too"
    assert "width, height" in details["yard/b.jpg"]


def test_an_image_listed_twice_is_one(make_export: Make, make_document: Make, read: Make) -> None:
    images = [image(1), image(1), image(2)]
    annotations = [annotation(1), annotation(2, image_id=2)]
    make_export("yard", make_document(images=images, annotations=annotations))
    exports = read(on_error="fail")
    assert exports.images["key"].tolist() == ["yard/a.jpg"]
    assert exports.annotations.frame()["annotation_id"].tolist() == [1, 2]


def test_exif_rotation_counts(make_export: Make, make_document: Make, read: Make) -> None:
    folder = make_export("yard", make_document(images=[image(width=30, height=40)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "images" / "a.jpg", exif=exif)
    make_export("bay")
    assert read().images["key"].tolist() == ["bay/a.jpg", "yard/a.jpg"]
    (folder / "coco.json").write_text(json.dumps(make_document()))
    exports = read()
    assert reasons(exports) == [("size_mismatch", "1"), ("size_mismatch", None)]
    assert "EXIF" in exports.rejected["detail"][0]


HOSTILE: list[tuple[str, bytes, str]] = [
    ("no JSON", b"{", "unreadable_json"),
    ("no text", b"\xff\xfe\x00\x01\xff", "unreadable_json"),
    ("deep", b"[" * 200_000, "unreadable_json"),
    ("a list", b"[]", "unreadable_json"),
    ("a number", b"3", "unreadable_json"),
    ("other lists", b'{"images": 3, "annotations": {}}', "unreadable_json"),
    ("a huge number", b'{"images": [' + b"9" * 10_000 + b"]}", "unreadable_json"),
    ("nothing in it", b'{"images": [], "annotations": []}', "no_images"),
]


@pytest.mark.parametrize(("name", "content", "reason"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_hostile_files(make_export: Make, read: Make, name: str, content: bytes, reason: str) -> None:
    make_export("bay")
    make_export("yard", content)
    exports = read()
    assert exports.images["key"].tolist() == ["bay/a.jpg"]
    assert reasons(exports) == [(reason, None)]
    assert exports.rejected["source"].tolist() == ["yard"]
    with pytest.raises(InputDataError, match="export 'yard'"):
        read(on_error="fail")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),  # surrogates too
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["id", "size", "counts"]), values),
    max_leaves=6,
)
KEYS = ["id", "image_id", "category_id", "segmentation", "iscrowd", "file_name", "width", "height", "name"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values, max_size=4),
    st.sampled_from(["images", "annotations", "categories"]),
)
def test_any_json_is_accounted_for(
    make_export: Make, make_document: Make, read: Make, entries: list[Any], part: str
) -> None:
    document = make_document()
    usual = document[part][0]
    document[part] = [*document[part], *(usual | e if isinstance(e, dict) else e for e in entries)]
    make_export("yard", document)
    make_export("bay")
    exports = read()
    total = len(exports.annotations) + exports.rejected["annotation_id"].notna().sum()
    assert total == len(document["annotations"]) + 1
    exports.rejected.to_csv()


def test_without_a_list_of_annotations(make_export: Make, make_document: Make, read: Make) -> None:
    make_export("bay")
    make_export("yard", make_document(annotations=None))
    exports = read()
    assert reasons(exports) == [("no_annotations", None)]
    assert exports.rejected["image"].tolist() == ["yard/a.jpg"]


def test_without_a_list_of_images(make_export: Make, make_document: Make, read: Make) -> None:
    make_export("bay")
    make_export("yard", make_document(images=None))
    assert reasons(read()) == [("annotation_without_image", "1"), ("no_images", None)]


def test_without_images_folder(make_export: Make, read: Make) -> None:
    make_export("bay")
    make_export("yard", photos=())
    exports = read()
    assert reasons(exports) == [("missing_file", "1"), ("missing_file", None)]
    assert set(exports.rejected["image"]) == {"yard/a.jpg"}


def test_two_descriptions_of_one_export(make_export: Make, make_document: Make, read: Make) -> None:
    folder = make_export("yard")
    (folder / "annotations").mkdir()
    second = make_document(annotations=[annotation(8), annotation(9)])
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(second))
    exports = read()
    assert exports.annotations.frame()["annotation_id"].tolist() == [1]
    assert reasons(exports) == [(("second_annotation_file"), n) for n in ("8", "9", None)]


def test_archive_beside_its_unpacked_folder(make_export: Make, read: Make) -> None:
    make_export("yard")
    make_export("yard", archive=True)
    exports = read()
    assert len(exports.images) == len(exports.annotations) == 1
    assert exports.images["location"][0].endswith("raw/yard/images/a.jpg")
    assert reasons(exports) == [("duplicate_export", "1"), ("duplicate_export", None)]


def test_unreadable_archive(make_export: Make, read: Make, tmp_path: Path) -> None:
    make_export("bay")
    (tmp_path / "raw" / "yard.zip").write_bytes(b"PK no archive")
    exports = read()
    assert reasons(exports) == [("unreadable_archive", None)]
    with pytest.raises(InputDataError, match="unreadable_archive"):
        read(on_error="fail")


def test_archive_that_points_outside(make_export: Make, make_document: Make, read: Make, tmp_path: Path) -> None:
    make_export("bay")
    with zipfile.ZipFile(tmp_path / "raw" / "yard.zip", "w") as packed:
        packed.writestr("coco.json", json.dumps(make_document(images=[image(file_name="../../bay/images/a.jpg")])))
        packed.writestr("images/../../bay/images/a.jpg", b"x")
    before = sorted(os.walk(tmp_path / "raw"))
    # The annotation, its image and the member of the archive.
    assert reasons(read()) == [("unsafe_path", "1"), ("unsafe_path", None), ("unsafe_path", None)]
    assert sorted(os.walk(tmp_path / "raw")) == before


def test_folder_without_annotations(make_export: Make, read: Make, tmp_path: Path) -> None:
    make_export("bay")
    (tmp_path / "raw" / "notes").mkdir()
    (tmp_path / "raw" / ".cache").mkdir()
    (tmp_path / "raw" / "README.md").touch()
    exports = read()
    assert exports.rejected[["source", "reason"]].to_numpy().tolist() == [["notes", "no_annotation_file"]]
