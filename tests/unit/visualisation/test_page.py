import base64
import io
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from construction_panoptic.visualisation.page import (
    PICTURE_SIDE,
    Markup,
    ReportPicture,
    about,
    html_page,
    picture_row,
    render,
    sheet,
    table,
)


def test_a_page_is_ascii_and_fits_a_phone() -> None:
    page = html_page("Größe <1>", {"run": "<a>", "date": "today"}, ["<p>ü</p>"])
    assert page.isascii()
    assert "<h1>Gr&#246;&#223;e &lt;1&gt;</h1>\n<p><b>run</b>: &lt;a&gt;; <b>date</b>: today</p>\n<p>&#252;</p>" in page
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


def test_a_report_says_what_it_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    known = {"run": "first", "model": "mask_head, epoch 8", "images": "12 images", "digest": "0123456789abcdef"}
    said = about(**known)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d \S+", said.pop("date"))
    expected = {"run": "first", "model": "mask_head, epoch 8", "data set": "12 images", "digest": "01234567"}
    assert said == expected  # no commit outside git
    assert set(about(images="12 images", digest="01234567")) == {"data set", "digest", "date"}

    def git(*arguments: str) -> str:
        person = ("-c", "user.name=n", "-c", "user.email=e")
        return subprocess.run(["git", *person, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "start")
    assert about(**known)["commit"] == git("rev-parse", "HEAD")[:8]
    (tmp_path / "new.txt").touch()
    assert about(**known)["commit"].endswith(", with changes that are not committed")
