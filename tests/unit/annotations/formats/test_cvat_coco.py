import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.images import open_location
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import ONE_PROCESS
from construction_panoptic.config.conversion import ConversionSettings
from construction_panoptic.errors import InputDataError

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


def test_real_exports(real_data: Path, repository: Path) -> None:
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf" / "base" / "taxonomy.json").read_text()))
    settings = ConversionSettings(on_error="fail", execution=ONE_PROCESS)
    exports = read_exports(real_data / "construction_real" / "annotated", taxonomy, settings)
    assert len(exports.images) == 6
    assert exports.rejected.empty
    counts = exports.annotations.frame()["category"].value_counts().to_dict()
    assert counts == {
        "wheel_loader": 2,
        "hydra_crane": 2,
        "cu_piping": 1,
        "dump_truck_tipper_truck": 1,
        "smoke_detectors": 1,
        "vitrified_tiles": 1,
    }
    assert exports.images["key"].is_monotonic_increasing


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    "json_name", ["coco.json", "annotations/instances_default.json", "annotations/instances_t1.json"]
)
def test_shapes_of_an_export(make_export: Make, read: Make, mask_of: Make, json_name: str, archive: bool) -> None:
    path = make_export("yard", json_name=json_name, archive=archive)
    exports = read()
    row = exports.images.iloc[0]
    assert (row["key"], row["source"], row["file_name"]) == ("yard/a.jpg", "yard", "a.jpg")
    assert (row["width"], row["height"]) == (40, 30)
    expected = f"{path}::images/a.jpg" if archive else f"{path}/images/a.jpg"
    assert row["location"] == expected
    with open_location(row["location"]) as file:
        Image.open(file).verify()
    annotations = exports.annotations.frame().iloc[0]
    assert annotations[["annotation_id", "category_id", "category", "iscrowd", "order"]].tolist() == [
        1,
        8,
        "pump",
        0,
        0,
    ]
    assert mask_of(annotations["rle"], 30, 40).nonzero()[0].tolist() == [row for row in range(5, 15) for _ in range(10)]
    assert json.loads(annotations["bbox"]) == [5.0, 5.0, 10.0, 10.0]
    assert annotations["area"] == 100.0
    assert exports.rejected.empty


def test_archive_with_a_folder_around_everything(make_export: Make, read: Make) -> None:
    make_export("yard", archive=True, prefix="export 1/")
    assert read().images["key"].tolist() == ["yard/a.jpg"]


def test_folder_with_a_folder_around_everything(make_export: Make, read: Make) -> None:
    make_export("yard/inner")
    assert read().images["key"].tolist() == ["yard/a.jpg"]


@pytest.mark.parametrize("archive", [False, True])
def test_files_and_hidden_folders_beside_the_folder_around_everything(
    make_export: Make, read: Make, tmp_path: Path, archive: bool
) -> None:
    make_export("yard/task_7")
    folder = tmp_path / "raw" / "yard"
    (folder / "README.txt").write_text("read me")
    if archive:
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
    else:
        (folder / ".ipynb_checkpoints").mkdir()
    assert read().annotations.frame()["key"].tolist() == ["yard/a.jpg"]


def test_subset_folders(make_export: Make, make_document: Make, read: Make) -> None:
    make_export("yard", json_name="annotations/instances_train.json", photos=("train/a.jpg",))
    make_export("bay", make_document(images=[image(file_name="deck/b.jpg")]), photos=("deck/b.jpg",))
    make_export("dock", make_document(images=[image(file_name="images/c.jpg")]), photos=("c.jpg",))
    assert read().images["key"].tolist() == ["bay/deck/b.jpg", "dock/c.jpg", "yard/train/a.jpg"]


def test_several_files_of_one_export(make_export: Make, make_document: Make, read: Make) -> None:
    """Two tasks on one image: its annotations come together, the later file on top; ids may repeat."""
    folder = make_export("yard", json_name="annotations/instances_a.json")
    pipes = make_document(
        categories=[{"id": 1, "name": "pipes"}], images=[image(7)], annotations=[annotation(1, image_id=7)]
    )
    (folder / "annotations" / "instances_b.json").write_text(json.dumps(pipes))
    exports = read()
    assert exports.images["key"].tolist() == ["yard/a.jpg"]
    assert exports.annotations.frame()["category"].tolist() == ["pump", "pipes"]
    assert exports.annotations.frame()["order"].tolist() == [0, 1]
    assert exports.annotations.frame()["annotation_id"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("folder", "category", "expected"),
    [
        ("yard", "pump", "pump"),
        ("yard", "Tower Crane", "tower_crane"),
        ("Tower-crane", "label1", "tower_crane"),
        ("pump", "pipes", "pipes"),
        ("pump", "sky", "sky"),
        ("pump", None, "pump"),
        ("yard", "Sky", "sky"),
        ("ground", "label1", "ground"),
    ],
)
def test_class_of_an_export_with_one(
    *, make_export: Make, make_document: Make, read: Make, folder: str, category: str | None, expected: str
) -> None:
    """The category's own name, else the folder's; categories without annotations do not count."""
    categories: list[dict[str, Any]] = [{"id": 12, "name": "unused"}]
    categories += [{"id": 3, "name": category}] if category else []
    make_export(folder, make_document(categories=categories, annotations=[annotation(category_id=3)]))
    assert read(on_error="fail").annotations.frame()["category"].tolist() == [expected]


def test_classes_of_an_export_with_several(make_export: Make, make_document: Make, read: Make) -> None:
    categories = [{"id": 4, "name": "pipes"}, {"id": 2, "name": "tower crane"}, {"id": 5, "name": "cat"}]
    annotations = [annotation(n, category_id=c) for n, c in enumerate((2, 4, 5, 9, None), start=1)]
    make_export("pump", make_document(categories=categories, annotations=annotations))
    exports = read()
    assert exports.annotations.frame()["category"].tolist() == ["tower_crane", "pipes"]
    assert reasons(exports) == [("unknown_class", "3"), ("unknown_class", "4"), ("unknown_class", "5")]
    assert "'cat' is not in the taxonomy" in exports.rejected["detail"][0]


def test_images_without_annotations_are_kept(make_export: Make, make_document: Make, read: Make) -> None:
    make_export("yard", make_document(annotations=[]))
    bad = [annotation(segmentation=[])]
    make_export("bay", make_document(annotations=bad))
    exports = read()
    assert exports.images["key"].tolist() == ["bay/a.jpg", "yard/a.jpg"]
    assert reasons(exports) == [("no_segmentation", "1")]
    assert not len(exports.annotations)


def test_order_is_that_of_names_not_of_the_file_system(make_export: Make, make_document: Make, read: Make) -> None:
    images = [image(1, file_name="b.jpg"), image(2, file_name="a.jpg")]
    annotations = [annotation(9, image_id=1), annotation(4, image_id=2), annotation(2, image_id=1)]
    for name in ("b", "a", "c"):
        make_export(name, make_document(images=images, annotations=annotations), photos=("a.jpg", "b.jpg"))
    exports = read()
    assert exports.images["key"].tolist() == [f"{f}/{n}.jpg" for f in "abc" for n in "ab"]
    assert exports.annotations.frame()["annotation_id"].tolist() == [4, 9, 2] * 3


@pytest.mark.parametrize("there", [False, True])
def test_no_data_says_how_to_get_some(read: Make, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "raw").mkdir()
    with pytest.raises(InputDataError, match=r"raw.*(?s:.)*coco\.json.*make demo"):
        read()


@pytest.mark.parametrize("json_name", ["coco.json", "annotations/instances_default.json"])
def test_raw_data_that_is_itself_an_export(
    make_export: Make, site_taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch, json_name: str
) -> None:
    folder = make_export("yard", json_name=json_name)
    (folder / "labels.xml").write_bytes(b"x")
    monkeypatch.chdir(folder)
    for raw_data in (folder, Path()):
        exports = read_exports(raw_data, site_taxonomy)
        assert exports.annotations.frame()["key"].tolist() == ["yard/a.jpg"]
        assert exports.rejected.empty


def test_raw_data_that_is_one_archive(make_export: Make, site_taxonomy: Taxonomy, tmp_path: Path) -> None:
    exports = read_exports(make_export("yard", archive=True), site_taxonomy)
    assert exports.annotations.frame()["key"].tolist() == ["yard/a.jpg"]
    (tmp_path / "empty.zip").write_bytes(b"PK\5\6" + bytes(18))
    with pytest.raises(InputDataError, match=r"empty\.zip: there is no CVAT export in it"):
        read_exports(tmp_path / "empty.zip", site_taxonomy)
    (tmp_path / "damaged.zip").write_bytes(b"x")
    with pytest.raises(InputDataError, match="unreadable_archive"):
        read_exports(tmp_path / "damaged.zip", site_taxonomy)


def test_raw_data_that_is_an_export_and_holds_archives(make_export: Make, site_taxonomy: Taxonomy) -> None:
    folder = make_export("yard")
    (folder / "bay.zip").write_bytes(b"damaged")
    with pytest.raises(InputDataError, match="is itself an export, and there are archives in it; move it"):
        read_exports(folder, site_taxonomy)


def test_a_folder_that_holds_only_archives(make_export: Make, read: Make, tmp_path: Path) -> None:
    for folder, *names in (("pump", "task_1"), ("site", "bay", "yard")):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        (tmp_path / "raw" / folder / ".DS_Store").write_bytes(b"x")
        for name in names:
            archive = make_export(name, archive=True)
            archive.rename(tmp_path / "raw" / folder / archive.name)
    exports = read()
    assert exports.images["key"].tolist() == ["bay/a.jpg", "pump/a.jpg", "yard/a.jpg"]
    assert exports.rejected.empty


def test_not_one_usable_image(make_export: Make, read: Make) -> None:
    make_export("yard", photos=())
    with pytest.raises(InputDataError, match=r"not one image can be used.*yard/a\.jpg.*missing_file"):
        read()


@pytest.mark.parametrize("archive", [False, True])
def test_the_order_of_lists_does_not_matter(make_export: Make, make_document: Make, read: Make, archive: bool) -> None:
    document = make_document()
    make_export("yard", {name: document[name] for name in ("annotations", "images", "categories")}, archive=archive)
    make_export("zone", document, archive=archive)
    exports = read()
    first, second = exports.annotations.frame().to_dict("records")
    same = ("annotation_id", "category", "rle", "bbox", "area", "order")
    assert [first[name] for name in same] == [second[name] for name in same]


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_a_list_that_is_there_twice(make_export: Make, make_document: Make, read: Make, name: str) -> None:
    make_export("bay")
    content = json.dumps(make_document())
    make_export("yard", f'{content[:-1]}, "{name}": []}}'.encode())
    rejected = read().rejected
    assert rejected["reason"].tolist() == ["unreadable_json"]
    assert f"`{name}` twice" in rejected["detail"].item()


def test_tables_are_sorted_whatever_the_exports_are_called(make_export: Make, read: Make) -> None:
    for name in ("yard", "yard 2", "yard-2", "Yard", "\u00e9", "yard.b"):
        make_export(name, photos=("b.jpg", "a.jpg"), archive=name == "yard-2")
    exports = read()
    assert exports.images["key"].tolist() == sorted(exports.images["key"])
    assert exports.annotations.frame()["key"].tolist() == sorted(exports.annotations.frame()["key"])
    assert len(exports.annotations) == 6


@pytest.mark.parametrize("archive", [False, True])
def test_annotations_among_the_images_of_each_split(
    make_document: Make, make_photo: Make, read: Make, tmp_path: Path, archive: bool
) -> None:
    source = tmp_path / "raw" / "yard"
    categories = [{"id": 0, "name": "objects"}, {"id": 1, "name": "pump"}]
    for number, split in enumerate(("train", "valid")):
        make_photo(source / split / "a.jpg", number)
        document = make_document(categories=categories, annotations=[annotation(number)])
        (source / split / "_annotations.coco.json").write_text(json.dumps(document))
    if archive:
        with zipfile.ZipFile(f"{source}.zip", "w") as packed:
            for path in source.rglob("*"):
                packed.write(path, path.relative_to(source))
        shutil.rmtree(source)
    exports = read(on_error="fail")
    assert exports.images["key"].tolist() == ["yard/train/a.jpg", "yard/valid/a.jpg"]
    assert exports.annotations.frame()["category"].tolist() == ["pump", "pump"]


def test_one_split_is_an_export_too(make_export: Make, make_photo: Make, read: Make) -> None:
    make_photo(make_export("train", json_name="_annotations.coco.json", photos=()) / "a.jpg")
    exports = read(on_error="fail")
    assert exports.images["key"].tolist() == ["train/a.jpg"]
    assert len(exports.annotations) == 1
