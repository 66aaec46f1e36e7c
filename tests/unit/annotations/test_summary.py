import json

import pandas as pd
import pytest

from construction_panoptic.annotations.records import ConvertedRecord, Rejected, Segment
from construction_panoptic.annotations.rejected import rejected_table
from construction_panoptic.annotations.summary import class_counts_and_summary
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError
from tests.unit.stored import stored

SKY, WALL, CRANE, TRUCK, LIFT = 1, 2, 10, 11, 12


@pytest.fixture
def taxonomy() -> Taxonomy:
    def entry(number: int, name: str) -> dict[str, object]:
        return {"id": number, "name": name, "color": [number, 0, 0]}

    return Taxonomy.from_dict(
        {
            "stuff": [entry(SKY, "sky"), entry(WALL, "wall")],
            "things": [entry(CRANE, "tower_crane"), entry(TRUCK, "truck"), entry(LIFT, "lift")],
        }
    )


def record(key: str, void: int, *segments: tuple[int, int]) -> ConvertedRecord:
    found = [
        Segment(number, class_id, area, (0, 0, 1, 1), "", int(class_id == TRUCK), None)
        for number, (class_id, area) in enumerate(segments, 1)
    ]
    return ConvertedRecord(key, key, key, 10, 20, found, void)


RECORDS = [
    record("tower_crane/a.jpg", 60, (CRANE, 30), (CRANE, 10), (SKY, 100)),
    record("tower_crane/b.jpg", 0, (CRANE, 200)),
    record("mixed/c.jpg", 50, (TRUCK, 50), (WALL, 60), (SKY, 40)),
    record("mixed/d.jpg", 200),
]
RECORDS.sort(key=lambda record: record.key)
SPLIT = pd.DataFrame(
    {
        "key": [record.key for record in RECORDS],
        "group": [1, 2, 0, 1],
        "split": ["train", "train", "train", "val"],
    }
)
REJECTED = rejected_table(
    [
        Rejected("tower_crane", "tower_crane/a.jpg", 5, "zero_area", "…"),
        Rejected("Tower Crane", "", "#3", "bad_polygon", "…"),
        Rejected("mixed", "mixed/c.jpg", 5, "hidden", "…"),
        Rejected("mixed", "mixed/d.jpg", 5, "unknown_class", "an id of one image alone, as in COCO panoptic"),
        Rejected("mixed", "mixed/c.jpg", 6, "unknown_class", "…"),
        Rejected("tower_crane", "tower_crane/e.jpg", None, "unreadable_image", "…"),
    ]
)
ANNOTATIONS = pd.DataFrame(
    {
        "key": ["mixed/c.jpg", "tower_crane/a.jpg"],
        "source": ["mixed", "tower_crane"],
        "annotation_id": [5, 1],
        "category_id": [TRUCK, CRANE],
    }
)

NOTHING = rejected_table([])


def test_every_class_has_a_row_of_counts(taxonomy: Taxonomy) -> None:
    counts, _ = class_counts_and_summary(iter(RECORDS), SPLIT, taxonomy, stored(ANNOTATIONS), REJECTED, NOTHING)
    counted = [f"{what}_{side}" for what in ("images", "segments", "pixels") for side in ("train", "val", "total")]
    assert list(counts.columns) == ["class_id", "class", "kind", *counted, "rejected"]
    expected = [
        (SKY, "sky", "stuff", 2, 0, 2, 2, 0, 2, 140, 0, 140, 0),
        (WALL, "wall", "stuff", 1, 0, 1, 1, 0, 1, 60, 0, 60, 0),
        (CRANE, "tower_crane", "thing", 1, 1, 2, 2, 1, 3, 40, 200, 240, 2),
        (TRUCK, "truck", "thing", 1, 0, 1, 1, 0, 1, 50, 0, 50, 1),
        (LIFT, "lift", "thing", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ]
    assert list(counts.itertuples(index=False, name=None)) == expected


def test_rejected_annotations_of_unknown_class_belong_to_none(taxonomy: Taxonomy) -> None:
    counts, _ = class_counts_and_summary(RECORDS, SPLIT, taxonomy, stored(ANNOTATIONS[:0]), REJECTED, NOTHING)
    assert dict(zip(counts["class_id"], counts["rejected"], strict=True))[TRUCK] == 0


def test_the_summary_describes_each_side(taxonomy: Taxonomy) -> None:
    _, summary = class_counts_and_summary(RECORDS, SPLIT, taxonomy, stored(ANNOTATIONS), REJECTED, REJECTED[:2])
    assert summary["all"] == {
        "images": 4,
        "megapixels": 0.001,
        "segments": 7,
        "thing_segments": 4,
        "crowd_segments": 1,
        "segments_per_image": 1.75,
        "void_share": 0.3875,
        "images_without_stuff": 2,
        "images_without_things": 1,
    }
    assert summary["val"]["images"] == 1
    assert summary["train"]["void_share"] == pytest.approx(310 / 600, abs=1e-6)
    assert {key: summary[key] for key in ("groups", "exports", "classes_present", "classes_absent")} == {
        "groups": 3,
        "exports": 2,
        "classes_present": {"thing": 2, "stuff": 2},
        "classes_absent": {"thing": 1, "stuff": 0},
    }
    assert summary["absent_things"] == ["lift"]
    reasons = ["bad_polygon", "hidden", "unknown_class", "unreadable_image", "zero_area"]
    assert summary["rejected"] == {
        "total": 6,
        "images_or_exports": 1,
        "annotations": 5,
        "by_reason": dict.fromkeys(reasons, 1) | {"unknown_class": 2},
    }
    assert summary["repaired"]["total"] == sum(summary["repaired"]["by_reason"].values()) == 2
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_no_records_have_no_shares(taxonomy: Taxonomy) -> None:
    _, summary = class_counts_and_summary([], SPLIT.iloc[:0], taxonomy, stored(ANNOTATIONS), NOTHING, NOTHING)
    assert summary["all"]["segments_per_image"] is None
    assert summary["val"]["void_share"] is None
    assert summary["rejected"]["total"] == 0


def test_what_does_not_belong_together_is_named(taxonomy: Taxonomy) -> None:
    with pytest.raises(InputDataError, match=r"'tower_crane/b\.jpg' is not in the split"):
        class_counts_and_summary(RECORDS, SPLIT.iloc[:3], taxonomy, stored(ANNOTATIONS), NOTHING, NOTHING)
