import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from construction_panoptic.visualisation.page import (
    PICTURE_SIDE,
    Line,
    Markup,
    ReportPicture,
    bars,
    html_page,
    line_chart,
    sheet,
    stacked_bar,
    table,
)


def test_a_page_is_ascii_and_fits_a_phone() -> None:
    page = html_page("Größe <1>", ["<p>ü</p>"])
    assert page.isascii()
    assert "<h1>Gr&#246;&#223;e &lt;1&gt;</h1><p>&#252;</p>" in page
    assert 'name="viewport" content="width=device-width' in page


def test_cells_are_escaped_unless_they_are_markup() -> None:
    text = table(["<a>"], [["<b>", Markup("<i>x</i>")]])
    assert "<th>&lt;a&gt;</th>" in text
    assert "<td>&lt;b&gt;</td><td><i>x</i></td>" in text


def test_bars_are_to_each_other_as_their_counts() -> None:
    widths = [float(width) for width in re.findall(r"width:([\d.]+)rem", bars({"a": 40, "b": 10}))]
    assert widths[0] == pytest.approx(4 * widths[1])
    assert bars({}) == ""


def test_a_stacked_bar_leaves_out_what_is_nothing() -> None:
    bar = stacked_bar({"x": 75.0, "y": 0.0, "z": 25.0}, {"x": "red", "y": "green", "z": "blue"})
    assert re.findall(r"flex:([\d.]+) 0 0;background:(\w+)", bar) == [("75.0000", "red"), ("25.0000", "blue")]


def test_pictures_are_inside_and_small() -> None:
    page = sheet([ReportPicture(np.full((900, 600, 3), 200, np.uint8), 'a "1"')])
    [encoded] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert max(Image.open(io.BytesIO(base64.b64decode(encoded))).size) == PICTURE_SIDE
    assert 'alt="a &quot;1&quot;"' in page
    assert sheet([]) == ""


def test_points_of_a_line_stand_where_they_belong() -> None:
    nan = float("nan")
    chart = line_chart(
        [Line("PQ", "red", [(0.0, 0.0), (0.5, nan), (1.0, 100.0)])], x_title="x", y_title="y & z", y_top=100
    )
    svg = ElementTree.fromstring(chart[: chart.index("</svg>") + 6])
    [line] = svg.findall("polyline")
    (x0, y0), (x1, y1) = ([float(v) for v in point.split(",")] for point in line.attrib["points"].split())
    assert (x0, y1) == (46, 10)
    assert x1 == pytest.approx(408)
    assert y0 == pytest.approx(220)
    assert "100" in [text.text for text in svg.findall("text")]
