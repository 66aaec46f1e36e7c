import numpy as np
import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.summary import survey
from tests.unit.stored import stored

NOTHING = stored(pd.DataFrame({"key": [], "area": [], "is_thing": []}))
NONE_REJECTED = pd.DataFrame({"image": [], "annotation_id": []})
NO_CLASS = pd.DataFrame({"class_id": [], "class": [], "kind": [], "images_total": []})


def record(name: str, *areas: int, void: int = 0, class_id: int = 8) -> ConvertedRecord:
    segments = [Segment(n, class_id, area, (0, 0, 1, 1), "", 0, n) for n, area in enumerate(areas, 1)]
    return ConvertedRecord(f"s/{name}", name, f"{name}.jpg", 100, 100, segments, void)


def class_counts(images_of: dict[str, int]) -> pd.DataFrame:
    ids = {"ground": 2, "pump": 8, "crane": 9}
    rows = [(ids[name], name, "stuff" if name == "ground" else "thing", count) for name, count in images_of.items()]
    return pd.DataFrame(rows, columns=NO_CLASS.columns)


def test_the_most_suspicious_come_with_their_reasons() -> None:
    records = [record("fine", 50), record("hidden", 25), record("lost", 10, void=900), record("void", 50, void=4000)]
    annotations = pd.DataFrame(
        {
            "key": ["s/fine", "s/fine", "s/hidden", "s/hidden", "s/lost", "s/void"],
            "area": [51.0, 900.0, 50.0, 50.0, None, 50.0],
            "is_thing": [True, False, True, True, True, True],  # things may hide stuff
        }
    )
    rejected = pd.DataFrame({"image": ["s/lost", "s/lost", "s/gone"], "annotation_id": ["1", "2", None]})
    counts = class_counts({"pump": 4})
    chosen = {r.stem: note for r, note in survey(records, stored(annotations), rejected, counts).suspicious}
    assert chosen == {
        "lost": "2 rejected, 9 % void",
        "void": "40 % void",
        "hidden": "75 % of the things hidden",
    }
    assert list(chosen) == ["lost", "void", "hidden"]


def test_of_equally_suspicious_images_the_first_are_chosen() -> None:
    records = [record(str(n), void=1000 * (1 + n // 5)) for n in range(9)]
    found = survey(records, NOTHING, NONE_REJECTED, NO_CLASS).suspicious
    assert [r.stem for r, _ in found] == ["5", "6", "7", "8"]


def test_sizes_are_counted_by_hand() -> None:
    records = [record("a"), record("b", 1023, 1024, 9216), record("c", *[1] * 60)]
    found = survey(records, NOTHING, NONE_REJECTED, class_counts({"pump": 2})).sizes
    assert found["Segments an image"] == {
        "0": 1, "1 to 2": 0, "3 to 5": 1, "6 to 10": 0, "11 to 20": 0, "21 to 50": 0, "51 or more": 1
    }  # fmt: skip
    assert list(found["Sizes of things"].values()) == [61, 1, 1]
    assert list(found["Sizes of images"].values()) == [3, 0, 0, 0]


def test_each_class_has_random_images() -> None:
    records = [record(str(n), 5, 6, class_id=8) for n in range(9)] + [record("x", 5, class_id=2)]
    counts = class_counts({"ground": 1, "pump": 9, "crane": 0})
    chosen = survey(iter(records), NOTHING, NONE_REJECTED, counts).of_class
    assert list(chosen) == ["pump", "ground"]
    drawn = np.random.default_rng(0).permutation(9)[:2]
    assert chosen == {"pump": [records[place] for place in drawn], "ground": [records[9]]}
