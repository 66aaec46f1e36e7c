import re
import subprocess
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from construction_panoptic.visualisation.page import about, render


def test_a_page_is_ascii_and_fits_a_phone() -> None:
    page = render("page.html.j2", title="Größe <1>", about={"run": "<ä>", "date": "today"})
    assert page.isascii()
    assert "<h1>Gr&#246;&#223;e &lt;1&gt;</h1>\n<p><b>run</b>: &lt;&#228;&gt;; <b>date</b>: today</p>" in page
    assert 'name="viewport" content="width=device-width' in page


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
