import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from construction_panoptic.annotations.records import (
    ConvertedImage,
    ConvertedRecord,
    Rejected,
    Segment,
)
from construction_panoptic.annotations.rejected import (
    ConservationError,
    RejectedRecords,
    all_rejected,
    check_conservation,
    rejected_table,
)
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.errors import InputDataError
from tests.unit.stored import stored

SEGMENTS = [Segment(1, 3, 10, (0, 1, 5, 2), "0:", 0, None), Segment(2, 17, 4, (3, 3, 2, 2), "04", 1, 12)]
HIDDEN = Rejected("yard", "yard/a.jpg", 13, "fully_hidden", "covered")
RECORD = ConvertedRecord("yard/a.jpg", "yard__a", "yard__a.jpg", 8, 6, SEGMENTS, 34, [HIDDEN], "ab" * 32)


def test_record_goes_through_json() -> None:
    assert ConvertedRecord.from_dict(json.loads(json.dumps(RECORD.to_dict()))) == RECORD
    assert RECORD.source == "yard"
    assert RECORD.png_file == "yard__a.png"


def test_record_of_an_image() -> None:
    assert "content" not in repr(ConvertedImage(RECORD, b"content", Path("a.jpg")))


def test_rejected_table_keeps_ids_as_written() -> None:
    rows = [HIDDEN, Rejected("yard", "", None, "no_images", "empty"), Rejected("b", "", "#4", "x", "y")]
    table = rejected_table(rows)
    assert table.columns.tolist() == ["source", "image", "annotation_id", "reason", "detail"]
    again = pd.read_csv(StringIO(table.to_csv(index=False)), dtype="string", keep_default_na=False)
    assert again["annotation_id"].tolist() == ["13", "", "#4"]
    assert rejected_table([]).columns.tolist() == table.columns.tolist()


def inputs(*ids: int) -> StoredTable:
    return stored(pd.DataFrame({"source": ["yard"] * len(ids), "annotation_id": ids}))


IMAGES = pd.DataFrame({"key": [RECORD.key]})


def test_conservation_holds() -> None:
    rejected = check_conservation(inputs(12, 13), IMAGES, [RECORD])
    assert rejected["annotation_id"].tolist() == ["13"]
    read = rejected_table([Rejected("yard", "", 4, "x", "y"), Rejected("bay", "b.jpg", None, "x", "y")])
    assert all_rejected(read, rejected)["source"].tolist() == ["bay", "yard", "yard"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((12, 13, 14), "1 annotations are neither in the output nor rejected .*14"),
        ((12, 12, 13), "1 annotations are neither in the output nor rejected .*12"),
        ((13,), "1 annotations are counted twice, or not in the input .*12"),
        ((12,), "1 annotations are counted twice, or not in the input .*13"),
    ],
)
def test_conservation_fails(ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConservationError, match=message):
        check_conservation(inputs(*ids), IMAGES, [RECORD])


def test_annotated_stuff_is_conserved() -> None:
    stuff = Segment(1, 3, 10, (0, 1, 5, 2), "0:", 0, None, (4, 5))
    record = ConvertedRecord("yard/a.jpg", "yard__a", "yard__a.jpg", 8, 6, [stuff], 38)
    check_conservation(inputs(4, 5), IMAGES, [record])
    with pytest.raises(ConservationError, match="6"):
        check_conservation(inputs(4, 5, 6), IMAGES, [record])


@pytest.mark.parametrize("keys", [[], [RECORD.key, RECORD.key], [RECORD.key, "yard/other.jpg"]])
def test_images_are_conserved_too(keys: list[str]) -> None:
    with pytest.raises(ConservationError, match="1 images were lost or converted twice"):
        check_conservation(inputs(12, 13), pd.DataFrame({"key": keys}), [RECORD])


def test_rejected_text_is_valid_and_short() -> None:
    rejected = RejectedRecords(fail=False)
    rejected.add("yard", "\ud800.jpg\0", 1, "unsafe_path", "x" * 10_000)
    rejected.add("bay", "", None, "no_images", "empty")
    assert [record.source for record in rejected.records] == ["bay", "yard"]
    table = rejected_table(rejected.records)
    table.to_csv(StringIO())
    assert table["image"][1] == "?.jpg"
    assert len(table["detail"][1]) < 600


def test_fail_mode_names_everything() -> None:
    with pytest.raises(InputDataError, match=r"'yard', image 'yard/a.jpg', annotation 3: too thin \(zero_area\)"):
        RejectedRecords(fail=True).add("yard", "yard/a.jpg", 3, "zero_area", "too thin")
