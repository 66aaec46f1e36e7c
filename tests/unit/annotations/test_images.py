import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from construction_panoptic.annotations.images import (
    ImageError,
    check_image,
    normalise_image,
    open_location,
    read_rgb,
)

PIXELS = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
SMOOTH = np.kron(PIXELS, np.ones((8, 8, 1), dtype=np.uint8))


def save(path: Path, image: Image.Image, orientation: int | None = None, **options: Any) -> Path:
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF orientations as the standard words them: where row 0 and column 0 of the stored pixels are."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels[::-1].swapaxes(0, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels[:, ::-1].swapaxes(0, 1),
    }[orientation]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS), orientation)
    upright = turn(PIXELS, orientation)
    size = (upright.shape[1], upright.shape[0])
    assert (check_image(path).width, check_image(path).height) == size
    assert np.array_equal(read_rgb(path), upright)
    normalised = normalise_image(path)
    assert (normalised.width, normalised.height) == size
    if orientation == 1 and suffix == "png":
        assert normalised.content == path
    else:
        assert isinstance(normalised.content, bytes)
        with Image.open(BytesIO(normalised.content)) as image:
            assert not image.getexif()
            assert image.size == size
            if suffix == "png":
                assert np.array_equal(np.asarray(image), upright)


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.jpg", ".jpg"), ("a.JPEG", ".jpeg"), ("a.png", ".png"), ("a.b.jpg", ".jpg")]
)
def test_plain_images_are_handed_on(tmp_path: Path, name: str, suffix: str) -> None:
    path = save(tmp_path / name, Image.fromarray(SMOOTH))
    normalised = normalise_image(path)
    assert (normalised.content, normalised.suffix) == (path, suffix)
    assert (normalised.width, normalised.height) == (72, 48)


def test_suffix_follows_the_content(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(SMOOTH), format="JPEG")
    assert normalise_image(path).suffix == ".jpg"


def sixteen_bit_rgb(path: Path) -> Path:
    """Pillow writes no 16-bit RGB, so the PNG is put together from its chunks."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS.astype(np.uint16) * 256 + 99)
    header = struct.pack(">IIBBBBB", PIXELS.shape[1], PIXELS.shape[0], 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def odd_images(folder: Path) -> dict[str, tuple[Path, np.ndarray]]:
    """Images that tools read differently, and the 8-bit RGB pixels that they stand for."""
    grey = PIXELS[..., 0]
    grey_rgb = np.repeat(grey[..., None], 3, axis=2)
    alpha = np.concatenate([PIXELS, grey[..., None]], axis=2)
    palette = Image.fromarray(PIXELS).quantize(200)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 200)
    transparent = Image.fromarray(PIXELS)
    return {
        "grey": (save(folder / "grey.png", Image.fromarray(grey)), grey_rgb),
        "alpha": (save(folder / "alpha.png", Image.fromarray(alpha)), PIXELS),
        "palette": (save(folder / "palette.png", palette), np.asarray(palette.convert("RGB"))),
        "16-bit grey": (save(folder / "deep.png", deep), grey_rgb),
        "16-bit RGB": (sixteen_bit_rgb(folder / "deeprgb.png"), PIXELS),
        "transparent colour": (
            save(folder / "colour.png", transparent, transparency=tuple(map(int, PIXELS[0, 0]))),
            PIXELS,
        ),
        "1-bit": (
            save(folder / "bit.png", Image.fromarray(grey > 127)),
            np.where(grey_rgb > 127, 255, 0),
        ),
    }


ODD = ["grey", "alpha", "palette", "16-bit grey", "16-bit RGB", "transparent colour", "1-bit"]


@pytest.mark.parametrize("kind", ODD)
def test_odd_pngs_become_upright_rgb(tmp_path: Path, kind: str) -> None:
    path, expected = odd_images(tmp_path)[kind]
    normalised = normalise_image(path)
    assert normalised.suffix == ".png"
    assert isinstance(normalised.content, bytes)
    with Image.open(BytesIO(normalised.content)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), expected)
    again = tmp_path / "again.png"
    again.write_bytes(normalised.content)
    assert normalise_image(again).content == again


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "L", {}),
        ("a.jpg", "CMYK", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.bmp", "RGB", {}),
        ("a.tiff", "RGB", {}),
        ("a.gif", "P", {}),
    ],
)
def test_other_formats_become_jpeg(tmp_path: Path, name: str, mode: str, options: dict[str, object]) -> None:
    path = save(tmp_path / name, Image.fromarray(SMOOTH).convert(mode), None, **options)
    normalised = normalise_image(path)
    assert normalised.suffix == ".jpg"
    assert isinstance(normalised.content, bytes)
    with Image.open(BytesIO(normalised.content)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (72, 48))
        # 4:4:4: all components are sampled alike.
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]
        difference = np.abs(np.asarray(image).astype(int) - read_rgb(path))
        assert difference.mean() < 4


def test_zip_members(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.jpg", Image.fromarray(SMOOTH))
    turned = save(tmp_path / "turned.jpg", Image.fromarray(SMOOTH), 6)
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(plain, "images/plain.jpg")
        packed.write(turned, "images/turned.jpg")
    inside = f"{archive}::images/plain.jpg"
    assert normalise_image(inside).content == plain.read_bytes()
    assert check_image(inside) == check_image(plain)
    facts = check_image(f"{archive}::images/turned.jpg")
    assert (facts.width, facts.height) == (48, 72)
    with open_location(inside) as file:
        assert file.read() == plain.read_bytes()
    with pytest.raises(ImageError, match=r"export\.zip::images/b\.jpg") as caught:
        check_image(f"{archive}::images/b.jpg")
    assert caught.value.reason == "missing_file"


def test_a_rewritten_archive_is_read_anew(tmp_path: Path) -> None:
    archive = tmp_path / "export.zip"
    for time, content in enumerate((b"first", b"second")):
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr("a", content)
        os.utime(archive, (time, time))
        with open_location(f"{archive}::a") as file:
            assert file.read() == content


def test_hash_is_imagehash_own(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(SMOOTH))
    expected = str(imagehash.phash(Image.fromarray(SMOOTH), hash_size=16))
    assert check_image(path).phash == expected
    assert len(expected) == 64


def test_hash_of_a_large_jpeg_is_close_to_that_of_a_full_decode(real_data: Path, tmp_path: Path) -> None:
    photo = next(real_data.glob("construction_real/annotated/hydra_crane/images/*.jpg"))
    with Image.open(photo) as image:
        path = save(tmp_path / "large.jpg", image.resize((4000, 3000)))
        exact = imagehash.phash(image, hash_size=16)
    assert imagehash.hex_to_hash(check_image(path).phash) - exact <= 8


Damage = Callable[[Path], None]


def write_text(path: Path) -> None:
    path.write_text("no image")


def cut_off(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-20_000])


def huge_header(path: Path) -> None:
    # A bitmap header that promises 60000 x 60000 pixels.
    header = b"BM" + bytes(12) + (40).to_bytes(4, "little") + (60000).to_bytes(4, "little") * 2
    path.write_bytes(header + b"\1\0\x18\0" + bytes(64))


def many_scans(path: Path) -> None:
    # Each scan goes through all pixels of the image, and takes but a few bytes.
    Image.new("L", (64, 64)).save(path, progressive=True)
    content = path.read_bytes()
    last, end = content.rfind(b"\xff\xda"), content.rfind(b"\xff\xd9")
    path.write_bytes(content[:end] + content[last:end] * 200 + content[end:])


def make_folder(path: Path) -> None:
    path.mkdir()


def test_what_follows_a_jpeg_is_not_taken_for_scans(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(PIXELS), progressive=True)
    path.write_bytes(path.read_bytes() + b"\xff\xda" * 1000)
    assert check_image(path).width == PIXELS.shape[1]


@pytest.mark.parametrize("size", [(70_000, 2), (2, 70_000)])
def test_what_is_too_long_for_a_jpeg_becomes_a_png(tmp_path: Path, size: tuple[int, int]) -> None:
    path = save(tmp_path / "strip.tif", Image.new("RGB", size, (9, 99, 199)))
    normalised = normalise_image(path)
    assert normalised.suffix == ".png"
    assert isinstance(normalised.content, bytes)
    with Image.open(BytesIO(normalised.content)) as image:
        assert image.size == size
        assert image.getpixel((1, 1)) == (9, 99, 199)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("missing.jpg", lambda path: None, "missing_file"),
        ("empty.jpg", Path.touch, "unreadable_image"),
        ("text.jpg", write_text, "unreadable_image"),
        ("folder.jpg", make_folder, "unreadable_image"),
        ("cut.jpg", cut_off, "unreadable_image"),
        ("cut.png", cut_off, "unreadable_image"),
        ("huge.bmp", huge_header, "too_large"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, damage: Damage, reason: str) -> None:
    path = tmp_path / name
    damage(path)
    for use in (check_image, read_rgb):
        with pytest.raises(ImageError, match=name) as caught:
            use(path)
        assert caught.value.reason == reason
        assert " at 0x" not in str(caught.value)  # rejected_records.csv is the same in each run


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    many_scans(tmp_path / "scans.jpg")
    with pytest.raises(ImageError, match="more than 100 scans") as caught:
        check_image(tmp_path / "scans.jpg")
    assert caught.value.reason == "too_large"


def test_unsupported_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "float.tiff", Image.fromarray(np.ones((4, 4), dtype=np.float32)))
    with pytest.raises(ImageError, match="not supported"):
        check_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif", "jp2", "ppm", "mpo"])
def test_every_promised_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (40, 30), (200, 100, 50)).save(path)
    pixels = read_rgb(path)
    assert pixels.shape == (30, 40, 3)
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 12


ODD_FORMATS = [
    ("JPEG", "CMYK"),
    ("JPEG", "L"),
    ("PNG", "P"),
    ("PNG", "RGB"),
    ("TIFF", "RGB"),
    ("TIFF", "1"),
    ("GIF", "P"),
    ("WEBP", "RGB"),
]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(ODD_FORMATS),
    orientation=st.sampled_from([1, 3, 6]),
    # Most damage near the beginning, where sizes and kinds are stated.
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    reach=st.sampled_from([40, 200, 10_000]),
    keep=st.sampled_from([1.0, 1.0, 0.9]),
)
def test_damaged_images_are_refused_at_once_or_usable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: tuple[str, str],
    orientation: int,
    changes: list[tuple[float, int]],
    reach: int,
    keep: float,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    Image.fromarray(PIXELS).convert(kind[1]).save(file, format=kind[0], exif=exif)
    content = bytearray(file.getvalue())
    for share, value in changes:
        content[int(share * min(reach, len(content)))] = value
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: int(len(content) * keep)])
    monkeypatch.setattr("construction_panoptic.annotations.images.MAX_PIXELS", 1 << 20)  # for the time that it takes
    try:
        facts = check_image(path)
    except ImageError:
        return
    assert read_rgb(path).shape == (facts.height, facts.width, 3)
    normalised = normalise_image(path)
    assert (normalised.width, normalised.height) == (facts.width, facts.height)
    changed = normalised.content if isinstance(normalised.content, bytes) else normalised.content.read_bytes()
    with Image.open(BytesIO(changed)) as image:
        image.load()
        assert (image.size, image.mode) == ((facts.width, facts.height), "RGB")
