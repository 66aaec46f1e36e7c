import base64
import io
import re

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from construction_panoptic.visualisation.page import (
    PICTURE_SIDE,
    Markup,
    ReportPicture,
    html_page,
    picture_row,
    render,
    sheet,
    table,
)


def test_a_page_is_ascii_and_fits_a_phone() -> None:
    page = html_page("Größe <1>", ["<p>ü</p>"])
    assert page.isascii()
    assert "<h1>Gr&#246;&#223;e &lt;1&gt;</h1>\n<p>&#252;</p>" in page
    assert 'name="viewport" content="width=device-width' in page


def test_cells_are_escaped_unless_they_are_markup() -> None:
    text = table(["<a>"], [["<b>", Markup("<i>x</i>")]])
    assert "<th>&lt;a&gt;</th>" in text
    assert "<td>&lt;b&gt;</td><td><i>x</i></td>" in text


@pytest.mark.parametrize("place", [sheet, picture_row])
def test_pictures_are_inside_and_small(place: object) -> None:
    assert callable(place)
    page = place([ReportPicture(np.full((900, 600, 3), 200, np.uint8), 'a "1" <b>')])
    [encoded] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    size = Image.open(io.BytesIO(base64.b64decode(encoded))).size
    assert max(size) == PICTURE_SIDE
    assert f'width="{size[0]}" height="{size[1]}"' in page
    assert 'alt="a &#34;1&#34; &lt;b&gt;"' in page


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("data_report.html.j2", title="Data report")
