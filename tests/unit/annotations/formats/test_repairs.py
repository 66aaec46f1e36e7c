import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from construction_panoptic.annotations.formats.checking import box_outline
from construction_panoptic.annotations.formats.cvat_coco import check_annotation_entry
from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.rejected import repaired_and_kept
from construction_panoptic.annotations.taxonomy import Taxonomy

Make = Callable[..., Any]


def annotation(number: int = 1, **changes: Any) -> dict[str, Any]:
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    return {"id": number, "image_id": 1, "category_id": 1, "segmentation": square, "iscrowd": 0} | changes


def repairs(exports: Exports) -> list[tuple[str, str | None]]:
    ids = exports.repaired["annotation_id"].astype(object)
    return list(zip(exports.repaired["reason"], ids.where(ids.notna(), None), strict=True))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"bbox": [5, 5, 10, 10], "area": 100}, []),
        ({"bbox": [5.4, 4.7, 9.5, 10.2], "area": 104.5}, []),
        ({"bbox": None, "area": None}, []),
        ({"bbox": []}, []),
        ({"bbox": [5, 5, 20, 10]}, ["bbox_recomputed"]),
        ({"bbox": [0, 0, 0, 0]}, ["bbox_recomputed"]),
        ({"bbox": [5, 5, 1e308, 1e308]}, ["bbox_recomputed"]),
        ({"bbox": [1, 2, 3]}, ["bbox_recomputed"]),
        ({"area": 50}, ["area_recomputed"]),
        ({"area": -100}, ["area_recomputed"]),
        ({"area": float("nan")}, ["area_recomputed"]),
        ({"bbox": "x", "area": "y"}, ["bbox_recomputed", "area_recomputed"]),
        ({"segmentation": [[-0.3, 5, 15, 5, 15, 15, -0.3, 15]]}, []),
        ({"segmentation": [[-5, 5, 5, 5, 5, 15, -5, 15]], "bbox": [-5, 5, 10, 10], "area": 100}, ["clipped"]),
        ({"segmentation": [[-5, 5, 5, 5, 5, 15, -5, 15]], "bbox": [0, 5, 5, 10], "area": 50}, ["clipped"]),
        ({"segmentation": [[35, 25, 44, 25, 44, 29, 35, 29]]}, ["clipped"]),
        ({"segmentation": [[30, 20, 35, 20, 35, 36, 30, 36]]}, ["clipped"]),
        # The two halves of a bow tie cancel out in CVAT's area.
        ({"segmentation": [[5, 5, 15, 15, 15, 5, 5, 15]], "area": 0}, []),
        ({"segmentation": {"size": [30, 40], "counts": [0, 60, 1140]}, "area": 60, "bbox": [0, 0, 2, 30]}, []),
        ({"segmentation": {"size": [30, 40], "counts": [0, 60, 1140]}, "area": 64}, ["area_recomputed"]),
    ],
)
def test_what_is_changed_is_listed(
    make_export: Make, make_document: Make, read: Make, mask_of: Make, changes: dict[str, Any], expected: list[str]
) -> None:
    make_export("yard", make_document(annotations=[annotation(7, **changes)]))
    exports = read(on_error="fail")
    assert repairs(exports) == [(reason, "7") for reason in expected]
    if expected:
        row = exports.annotations.frame().iloc[0]
        mask = mask_of(row["rle"], 30, 40)
        assert row["area"] == np.count_nonzero(mask)
        assert json.loads(row["bbox"]) == coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8))).tolist()


def test_rounding_is_no_repair(make_export: Make, make_document: Make, read: Make) -> None:
    """Boxes and areas of the outline, rounded as CVAT does, for outlines of any shape."""
    generator = np.random.default_rng(3)
    entries = []
    for number in range(1, 200):
        middle, radii = generator.uniform((10, 10), (30, 20)), generator.uniform(0.8, 9.5, generator.integers(3, 12))
        angles = np.sort(generator.uniform(0, 2 * np.pi, len(radii)))
        points = (middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).round(2)
        mask = coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], 30, 40))
        if coco_mask.area(mask) == 0:
            continue
        x, y = points.T
        area = abs(float(x @ np.roll(y, -1) - np.roll(x, -1) @ y)) / 2
        box = [x.min(), y.min(), np.ptp(x), np.ptp(y)]
        of_mask = number % 2
        stated = {"area": int(coco_mask.area(mask)) if of_mask else area}
        stated |= {"bbox": coco_mask.toBbox(mask).tolist() if of_mask else np.round(box, 2).tolist()}
        entries.append(annotation(number, segmentation=[points.ravel().tolist()], **stated))
    make_export("yard", make_document(annotations=entries))
    exports = read()
    assert len(exports.annotations) == len(entries) > 150
    assert exports.repaired.empty


def test_real_exports_need_no_repair(real_data: Path, repository: Path) -> None:
    taxonomy = Taxonomy.from_dict(json.loads((repository / "conf" / "base" / "taxonomy.json").read_text()))
    assert read_exports(real_data / "construction_real" / "annotated", taxonomy).repaired.empty


def test_images_without_annotations_are_listed(make_export: Make, make_document: Make, read: Make) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in (1, 2, 3)]
    annotations = [annotation(1), annotation(2, image_id=2, segmentation=[]), annotation(3, image_id=2, area=[])]
    document = make_document(images=images, annotations=[*annotations[:2], annotations[2] | {"segmentation": [[1]]}])
    make_export("yard", document, photos=("1.jpg", "2.jpg", "3.jpg"))
    exports = read()
    assert repairs(exports) == [("image_without_annotations", None)] * 2
    assert exports.repaired["image"].tolist() == ["yard/2.jpg", "yard/3.jpg"]
    assert "all of its 2 annotations are rejected" in exports.repaired["detail"][0]


def test_boxes_are_rejected_or_kept(make_export: Make, make_document: Make, read: Make) -> None:
    boxes = [
        annotation(1, segmentation=[], bbox=[4, 6, 10, 8], area=80),
        annotation(2, segmentation=[], bbox=[30, 20, 20, 20], area=400),
        annotation(3, segmentation=None, bbox=[10, 10, 10, 4], area=40, attributes={"rotation": 90.0}),
        annotation(4, segmentation=[], bbox=[5, 5, -3, 4]),
        annotation(5, segmentation=[]),
        annotation(6, segmentation=[], bbox=[50, 50, 10, 10]),
    ]
    make_export("yard", make_document(annotations=boxes))
    exports = read()
    assert not len(exports.annotations)
    assert exports.rejected["reason"].tolist() == ["no_segmentation"] * 6

    exports = read(boxes_without_polygon="keep")
    assert exports.annotations.frame()["annotation_id"].tolist() == [1, 2, 3]
    assert exports.annotations.frame()["area"].tolist() == [80, 100, 40]
    assert [json.loads(box) for box in exports.annotations.frame()["bbox"]] == [
        [4, 6, 10, 8],
        [30, 20, 10, 10],
        [13, 7, 4, 10],
    ]
    assert exports.rejected["reason"].tolist() == ["no_segmentation", "no_segmentation", "outside_image"]
    assert repairs(exports) == [("box_as_mask", "1"), ("box_as_mask", "2"), ("clipped", "2"), ("box_as_mask", "3")]


def test_crowds_are_kept_or_single(make_export: Make, make_document: Make, read: Make) -> None:
    mask = {"size": [30, 40], "counts": [0, 60, 1140]}
    entries = [annotation(1, segmentation=mask, iscrowd=1, area=60), annotation(2)]
    make_export("yard", make_document(annotations=entries))
    assert read().annotations.frame()["iscrowd"].tolist() == [1, 0]
    assert read().repaired.empty
    exports = read(crowds="single")
    assert exports.annotations.frame()["iscrowd"].tolist() == [0, 0]
    assert repairs(exports) == [("crowd_as_single", "1")]


@pytest.mark.parametrize("angle", [None, "45", True, float("nan"), 1e9, 0, 360, -360])
def test_other_rotations_are_none(angle: Any) -> None:
    fields = check_annotation_entry(annotation(attributes={"rotation": angle}))
    assert box_outline([1, 2, 3, 4], fields["rotation"]) == [[1, 2, 4, 2, 4, 6, 1, 6]]


def test_what_was_rejected_later_is_not_repaired() -> None:
    names = ["source", "image", "annotation_id", "reason", "detail"]
    rows = [("yard", "yard/a.jpg", "1", "clipped", ""), ("yard", "yard/b.jpg", "1", "clipped", "")]
    repaired = pd.DataFrame([*rows, ("yard", "yard/a.jpg", None, "x", "")], columns=names, dtype="string")
    hidden = [("yard", "yard/a.jpg", "1", "fully_hidden", ""), ("yard", "yard/a.jpg", None, "y", "")]
    rejected = pd.DataFrame(hidden, columns=names, dtype="string")
    kept = repaired_and_kept(repaired, rejected)
    assert kept["image"].tolist() == ["yard/b.jpg", "yard/a.jpg"]
    assert repaired_and_kept(repaired.iloc[:0], rejected.iloc[:0]).empty


def test_a_second_annotation_of_an_id_does_not_hide_the_repair_of_the_first(
    make_export: Make, make_document: Make, read: Make
) -> None:
    [usual] = make_document()["annotations"]
    make_export(document=make_document(annotations=[usual | {"area": 5000}, usual]))
    exports = read()
    assert exports.rejected["reason"].tolist() == ["duplicate_annotation_id"]
    assert repaired_and_kept(exports.repaired, exports.rejected)["reason"].tolist() == ["area_recomputed"]
