from pathlib import Path

import pytest

from construction_panoptic.errors import InputDataError
from construction_panoptic.prediction.sources import find_files

ALL = ["a.jpg", "a.png", "bad.jpg", "bad.mp4", "film.mp4", "north/b.JPG", "north/empty.png"]


def test_a_folder_gives_its_images_and_videos_and_those_below(site: Path) -> None:
    files = find_files(site)
    assert [file.name for file in files] == ALL
    assert [file.name for file in files if file.is_video] == ["bad.mp4", "film.mp4"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a.jpg", "bad.jpg"]),
        ("**/*.JPG", ["b.JPG"]),
        ("**/[ab].*", ["a.jpg", "a.png", "north/b.JPG"]),
        ("notes.*", ["notes.txt"]),
    ],
)
def test_a_pattern_gives_what_it_matches(site: Path, pattern: str, names: list[str]) -> None:
    assert [file.name for file in find_files(site / pattern)] == names


def test_a_file_is_taken_by_its_name(site: Path) -> None:
    (file,) = find_files(site / "north" / "b.JPG")
    assert (file.path, file.name) == (site / "north" / "b.JPG", "b.JPG")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(site: Path) -> None:
    odd = (site / "a.jpg").rename(site / "[1] a*.jpg")
    assert [file.path for file in find_files(odd)] == [odd]


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.jpg", "empty"])
def test_nothing_to_predict_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match=r"(no image or video|no such file).*Name an image"):
        find_files(tmp_path / name)
