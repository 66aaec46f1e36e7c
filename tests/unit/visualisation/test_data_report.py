import base64
import io
import re

import numpy as np
import pandas as pd
from PIL import Image

from construction_panoptic.visualisation.page import PICTURE_SIDE, SHEET_WIDTH
from construction_panoptic.visualisation.reports import data_report

ABOUT = {"run": "first <try>"}
SIDE = {"images": 3}
SUMMARY = {
    "all": {
        "images": 1234,
        "segments": 9,
        "thing_segments": 4,
        "segments_per_image": 2.25,
        "void_share": 0.125,
        "images_without_stuff": 1,
        "images_without_things": 0,
    },
    "train": SIDE,
    "val": SIDE,
    "groups": 4,
    "rejected": {"total": 7, "by_reason": {"zero_area": 5, "missing_file": 2}},
    "repaired": {"total": 3, "by_reason": {"clipped": 3}},
    "fringe": {"within_pixels": 10, "pixels_before": 5000, "pixels_after": 20},
}
AUDIT = pd.DataFrame({"name": ["wheel_loader"], "groups": [321]})
SHEET = Image.new("RGB", (2400, 300))
SHOWN = (AUDIT, SHEET)
COUNTS = pd.DataFrame(
    {
        "class": ["wheel_loader", "<b>bad</b>", "absent"],
        "kind": ["thing", "stuff", "thing"],
        **{name: [2, 1, 0] for name in ("images_train", "images_val", "segments_train", "segments_val")},
        "images_total": [4, 2, 0],
        "segments_total": [4, 2, 0],
        "rejected": [1, 0, 0],
    }
)


def test_the_page_holds_the_numbers_and_stands_alone() -> None:
    picture = (np.full((900, 600, 3), 200, np.uint8), 'yard/a "1" & ü.jpg: 40 % void')
    page = data_report(
        ABOUT, SUMMARY, COUNTS, {"Sizes of things": {"small": 3, "large": 0}}, [picture], {"wheel_loader": []}, *SHOWN
    )
    assert page.isascii()
    for text in (
        "<b>run</b>: first &lt;try&gt;",
        "1,234",
        "12.5 %",
        "wheel loader",
        "<td>321</td>",
        "zero_area",
        "clipped",
        "5,000",
        "Sizes of things",
        'name="viewport"',
    ):
        assert text in page
    assert "absent" not in page
    assert "<b>bad" not in page
    widths = [float(width) for width in re.findall(r"width:([\d.]+)rem", page[page.index("Rejected records") :])]
    assert widths[:2] == [8, 3.2]
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sides = [max(Image.open(io.BytesIO(base64.b64decode(picture))).size) for picture in encoded]
    assert sides == [PICTURE_SIDE, SHEET_WIDTH]
    assert "2 of 3 classes occur" in page[page.index("<svg") : page.index("</svg>")]


def test_an_empty_data_set_has_a_page() -> None:
    summary = SUMMARY | {key: {"total": 0, "by_reason": {}} for key in ["rejected", "repaired"]}
    page = data_report(ABOUT, summary, COUNTS.iloc[:0], {}, [], {}, *SHOWN)
    assert "Nothing was rejected" in page
    assert "Nothing was changed" in page
    assert "No image stands out" in page
