import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.suspicion import images_of_classes, size_distributions, suspicious_images
from construction_panoptic.annotations.taxonomy import Taxonomy


def record(name: str, *areas: int, void: int = 0, class_id: int = 8) -> ConvertedRecord:
    segments = [Segment(n, class_id, area, (0, 0, 1, 1), 0, n) for n, area in enumerate(areas, 1)]
    return ConvertedRecord(f"s/{name}", name, f"{name}.jpg", 100, 100, segments, void)


def test_the_most_suspicious_come_with_their_reasons() -> None:
    records = [record("fine", 50), record("void", 50, void=4000), record("hidden", 25), record("lost", 10, void=900)]
    annotations = pd.DataFrame(
        {"key": ["s/fine", "s/void", "s/hidden", "s/hidden", "s/lost"], "area": [51.0, 50.0, 50.0, 50.0, None]}
    )
    rejected = pd.DataFrame({"image": ["s/lost", "s/lost", "s/gone"], "annotation_id": ["1", "2", None]})
    chosen = {r.stem: note for r, note in suspicious_images(records, annotations, rejected)}
    assert chosen == {
        "lost": "2 rejected, 9 % void",
        "void": "40 % void",
        "hidden": "75 % of the things hidden",
    }
    assert len(suspicious_images(records, annotations, rejected, each=1)) == 3


def test_sizes_are_counted_by_hand() -> None:
    found = size_distributions([record("a"), record("b", 1023, 1024, 9216), record("c", *[1] * 60)])
    assert found["Segments an image"] == {
        "0": 1, "1 to 2": 0, "3 to 5": 1, "6 to 10": 0, "11 to 20": 0, "21 to 50": 0, "51 or more": 1
    }  # fmt: skip
    assert list(found["Sizes of things"].values()) == [61, 1, 1]
    assert list(found["Sizes of images"].values()) == [3, 0, 0, 0]


def test_each_class_has_random_images(site_taxonomy: Taxonomy) -> None:
    records = [record(str(n), 5, class_id=8) for n in range(9)] + [record("x", 5, class_id=2)]
    chosen = images_of_classes(records, site_taxonomy, each=3)
    assert list(chosen) == ["pump", "ground"]
    assert [len(images) for images in chosen.values()] == [3, 1]
    assert chosen == images_of_classes(records[::-1], site_taxonomy, each=3)
