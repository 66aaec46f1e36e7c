"""Finding files in exports: odd names, odd files, archives that are damaged or say what is not true."""

import json
import os
import shutil
import signal
import struct
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError

pytestmark = pytest.mark.medium

Make = Callable[..., Any]
Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD")


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Opening a pipe waits for ever where it is not avoided."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"signal {number} in {frame}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def reasons(exports: Exports) -> list[str]:
    return exports.rejected["reason"].tolist()


def link_in_a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("put", [os.mkfifo, link_in_a_circle, link_to_zeros, Path.mkdir])
@pytest.mark.parametrize(
    "place", ["yard/coco.json", "yard/annotations/instances_default.json", "yard/images/a.jpg", "yard.zip"]
)
def test_what_is_no_file_is_not_opened(
    make_export: Make, read: Make, tmp_path: Path, place: str, put: Callable[[Path], None]
) -> None:
    make_export("bay")
    if place.endswith("a.jpg"):
        make_export("yard", photos=())
    path = tmp_path / "raw" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path)
    exports = read()
    assert exports.annotations.frame()["source"].tolist() == ["bay"]
    assert set(exports.rejected["source"]) <= {"yard", "yard.zip"}
    expected = {"missing_file"} if place.endswith("a.jpg") else {"unreadable_json", "unreadable_archive"}
    assert set(reasons(exports)) <= expected | {"no_annotation_file"}
    assert reasons(exports)


def test_a_folder_that_is_a_link_out_of_its_export(make_export: Make, read: Make, tmp_path: Path) -> None:
    make_export("bay")
    make_export("yard").rename(tmp_path / "elsewhere")
    (tmp_path / "raw" / "yard").mkdir()
    (tmp_path / "raw" / "yard" / "inner").symlink_to(tmp_path / "elsewhere")
    exports = read()
    assert exports.images["source"].tolist() == ["bay"]
    assert "leads out" in exports.rejected["detail"].item()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(("stated", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accented_letters_in_two_parts(
    make_export: Make, make_document: Make, read: Make, stated: Form, stored: Form, archive: bool
) -> None:
    images = [{"id": 1, "file_name": unicodedata.normalize(stated, "größe.jpg"), "width": 40, "height": 30}]
    photo = unicodedata.normalize(stored, "größe.jpg")
    make_export(document=make_document(images=images), photos=(photo,), archive=archive)
    exports = read()
    assert exports.annotations.frame()["key"].tolist() == [f"yard/{photo}"]
    assert exports.rejected.empty


def test_both_spellings_are_two_images(make_export: Make, make_document: Make, read: Make) -> None:
    names = [unicodedata.normalize(form, "é.jpg") for form in FORMS]
    images = [{"id": number, "file_name": name, "width": 40, "height": 30} for number, name in enumerate(names)]
    make_export(document=make_document(images=images), photos=names)
    assert sorted(read().images["key"]) == sorted(f"yard/{name}" for name in names)


def test_an_archive_with_utf8_names_that_does_not_say_so(make_export: Make, make_document: Make, read: Make) -> None:
    images = [{"id": 1, "file_name": "größe.jpg", "width": 40, "height": 30}]
    path = make_export(document=make_document(images=images), photos=("größe.jpg",), archive=True)
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        place = -1
        while (place := content.find(signature, place + 1)) >= 0:
            content[place + flags] &= ~8
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert "images/größe.jpg" not in archive.namelist()
    exports = read()
    assert exports.annotations.frame()["key"].tolist() == ["yard/größe.jpg"]
    assert exports.rejected.empty


@pytest.mark.parametrize("name", ["yard.zip::b", "a.zip"])
@pytest.mark.parametrize("archive", [False, True])
def test_names_like_those_of_members(
    make_export: Make, make_document: Make, read: Make, name: str, archive: bool
) -> None:
    photo = "c.zip::d.jpg"
    images = [{"id": 1, "file_name": photo, "width": 40, "height": 30}]
    make_export(name, make_document(images=images), photos=(photo,), archive=archive)
    exports = read()
    assert exports.annotations.frame()["key"].tolist() == [f"{name}/{photo}"]


def test_files_beside_the_exports_are_named(make_export: Make, read: Make, tmp_path: Path) -> None:
    make_export("bay")
    for name in ("coco.json", "yard.tar.gz", "yard.7z", "readme.txt"):
        (tmp_path / "raw" / name).write_bytes(b"x")
    rejected = read().rejected
    assert rejected["source"].tolist() == ["coco.json", "yard.7z", "yard.tar.gz"]
    assert set(rejected["reason"]) == {"stray_file"}


@pytest.mark.parametrize("place", ["folder", "image"])
def test_a_carriage_return_in_a_name(make_export: Make, make_document: Make, read: Make, place: str) -> None:
    make_export("bay")
    if place == "folder":
        make_export("ya\rrd")
        with pytest.raises(InputDataError, match=r"ya\\rrd.*rename it"):
            read()
        return
    images = [{"id": 1, "file_name": "a\r.jpg", "width": 40, "height": 30}]
    make_export(document=make_document(images=images), photos=("a\r.jpg",))
    exports = read()
    assert reasons(exports) == ["unsafe_path", "unsafe_path"]
    assert not exports.rejected["image"].str.contains("\r").any()


@pytest.mark.parametrize("name", ["coco.json", "panoptic_val.json"])
def test_two_members_of_one_name(make_export: Make, read: Make, name: str) -> None:
    make_export("bay")
    path = make_export(archive=True, json_name=name)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, "{}")
    exports = read()
    assert reasons(exports) == ["unreadable_json"]
    assert "twice" in exports.rejected["detail"].item()


def test_an_image_that_an_archive_holds_twice(make_export: Make, read: Make) -> None:
    """It is not known which of them is annotated."""
    make_export("bay")
    path = make_export(archive=True)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("images/a.jpg", b"x")
    exports = read()
    assert reasons(exports) == ["unreadable_archive", "unreadable_archive"]
    assert set(exports.rejected["image"]) == {"yard/a.jpg"}


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "images/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
@pytest.mark.parametrize("prefix", ["", "task_7/"])
def test_members_that_lead_out_of_an_archive_are_named(make_export: Make, read: Make, name: str, prefix: str) -> None:
    path = make_export(archive=True, prefix=prefix)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    exports = read()
    assert len(exports.annotations) == 1
    assert reasons(exports) == ["unsafe_path"]
    assert repr(name) in exports.rejected["detail"].item()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("folder", ["", "images/"])
def test_an_archive_in_an_export_is_named(make_export: Make, read: Make, *, archive: bool, folder: str) -> None:
    inner = make_export("inner", archive=True)
    path = make_export("yard")
    inner.rename(path / folder / "inner.ZIP")
    if archive:
        with zipfile.ZipFile(f"{path}.zip", "w") as packed:
            for file in path.rglob("*.*"):
                packed.write(file, file.relative_to(path))
        shutil.rmtree(path)
    exports = read()
    assert len(exports.annotations) == 1
    assert reasons(exports) == ["stray_file"]
    assert f"{folder}inner.ZIP" in exports.rejected["detail"].item()


@pytest.mark.parametrize(
    ("member", "method"),
    [
        ("coco.json", zipfile.ZIP_DEFLATED),
        ("images/a.jpg", zipfile.ZIP_DEFLATED),
        ("images/a.jpg", zipfile.ZIP_BZIP2),
        ("images/a.jpg", zipfile.ZIP_LZMA),
    ],
)
def test_a_bomb_that_states_a_harmless_size(
    make_export: Make, make_document: Make, site_taxonomy: Taxonomy, member: str, method: int
) -> None:
    raw = make_export("bay").parent
    members = {"coco.json": json.dumps(make_document()).encode(), "images/a.jpg": b"x", member: b"[" * (60 << 20)}
    path = raw / "yard.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            packing = method if name == member else zipfile.ZIP_STORED
            archive.writestr(name, text, compress_type=packing, compresslevel=1)
    packed = bytearray(path.read_bytes())
    place = packed.rfind(b"PK\1\2", 0, packed.rfind(member.encode()))
    struct.pack_into("<I", packed, place + 24, 900)
    path.write_bytes(packed)
    del members, text, packed
    tracemalloc.start()
    exports = read_exports(raw, site_taxonomy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 << 20
    assert exports.images["source"].tolist() == ["bay"]
    assert set(reasons(exports)) == {"unreadable_json" if member == "coco.json" else "unreadable_image"}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    directory_only=st.booleans(),
    keep=st.sampled_from([1.0, 1.0, 1.0, 0.95, 0.5]),
    deflated=st.booleans(),
)
def test_no_damage_to_an_archive_stops_the_conversion(
    make_export: Make,
    read: Make,
    changes: list[tuple[float, int]],
    directory_only: bool,
    keep: float,
    deflated: bool,
) -> None:
    make_export("bay")
    path = make_export(archive=True)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    content = bytearray(path.read_bytes())
    first = content.find(b"PK\1\2") if directory_only else 0
    for share, value in changes:
        content[first + int(share * (len(content) - first))] = value
    path.write_bytes(content[: int(len(content) * keep)])
    exports = read()
    assert exports.annotations.frame()["source"].tolist().count("bay") == 1
    listed = pd.concat([exports.annotations.frame()["source"], exports.rejected.dropna()["source"]])
    if not listed.eq("yard").any():
        assert len(exports.rejected) == 1 or "yard" in exports.images["source"].tolist()
