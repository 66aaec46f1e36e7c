import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from construction_panoptic.visualisation.comparison_report import ComparedRun, comparison_page
from construction_panoptic.visualisation.page import PICTURE_SIDE, ReportPicture

NAN = float("nan")


def run(name: str) -> ComparedRun:
    classes = pd.DataFrame({"category_id": [1], "name": ["sky"], "kind": ["stuff"]})
    segments = pd.DataFrame({"image_id": [1, 2]})
    return ComparedRun(f"id of {name}", name, {}, {"PQ/All": 0.4}, {}, "today", "0" * 64, classes, segments, None)


def differences(low: float, high: float) -> pd.DataFrame:
    names = ["All", "Things", "Stuff", "sky", "tower_crane"]
    difference = [(low + high) / 2] * 4 + [NAN]
    known = {"one": [0.1] * 4 + [NAN], "other": 0.3, "difference": difference, "low": low, "high": high}
    return pd.DataFrame({"name": names, "kind": "", "images": 2, **known})


def page(low: float = -0.1, high: float = 0.2, picture: ReportPicture | None = None) -> str:
    parameters = pd.DataFrame([["seed", "1", "<2>"]], columns=["parameter", "one", "two"])
    pictures = {} if picture is None else {"a.jpg": [picture]}
    return comparison_page([run("one"), run("<two>")], {"<two>": differences(low, high)}, parameters, pictures)


def test_texts_are_escaped_and_markup_is_not() -> None:
    text = page()
    assert "<h2>&lt;two&gt; against one</h2>" in text
    assert "<td>&lt;2&gt;</td>" in text
    assert "<td><b>All</b></td>" in text
    assert "<p>Predicted by one of the two only, and not in the truth: tower crane.</p>" in text
    assert "&lt;p&gt;" not in text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.2, "<b>Better</b>: PQ +15.0 points, 95 % interval +10.0 to +20.0."),
        (-0.2, -0.1, "<b>Worse</b>: PQ -15.0"),
        (-0.1, 0.2, "<b>Not told apart</b> by these images: PQ +5.0"),
    ],
)
def test_a_run_is_better_when_the_whole_interval_is(low: float, high: float, verdict: str) -> None:
    assert verdict in page(low, high)


def test_pictures_are_inside_and_small() -> None:
    text = page(picture=(np.full((900, 600, 3), 200, np.uint8), 'a "1" <b>'))
    [encoded] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    size = Image.open(io.BytesIO(base64.b64decode(encoded))).size
    assert max(size) == PICTURE_SIDE
    assert f'width="{size[0]}" height="{size[1]}"' in text
    assert 'alt="a &#34;1&#34; &lt;b&gt;"' in text
    assert "No pictures" in page()
