"""Reading image files at a location: a path, or ``<zip file>::<member>``, which is read in place."""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from construction_panoptic.annotations.records import UnusableError

MAX_PIXELS = 178_956_970  # twice Pillow's warning limit, at which Pillow itself refuses
MAX_FILE_BYTES = 1 << 30
_MAX_RATIO = 200  # of an archive's member, unpacked to packed size; beyond, it is a bomb,
_HARMLESS_BYTES = 16 << 20  # if it is larger than this
_MAX_SCANS = 100  # of a JPEG, of which progressive ones have about ten; each goes through the whole image again
_MAX_JPEG_SIDE = 65_500  # pixels

# No format that runs a program or draws text (EPS, WMF): the files come from elsewhere. Pillow reads MPO as JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "PPM")
_SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe"), "PNG": (".png",)}
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_ORIENTATION = 0x0112
_PHASH_SIDE = 256
_MEMBER = re.compile(r"(?<=\.zip)::", re.IGNORECASE)
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)


class ImageError(UnusableError):
    """An image file cannot be used: its ``reason`` is ``missing_file``, ``unreadable_image`` or ``too_large``."""


class ImageFacts(NamedTuple):
    """What a full check of an image file found: upright size in pixels, two hashes as hexadecimal text."""

    width: int
    height: int
    sha256: str
    phash: str


class NormalisedImage(NamedTuple):
    """An image for the converted data: a path (of what can be used unchanged) or content, and its upright size."""

    content: Path | bytes
    suffix: str
    width: int
    height: int


def _split(location: str | Path) -> tuple[Path, str | None]:
    text = "" if isinstance(location, Path) else location
    for place in _MEMBER.finditer(text):
        if (archive := Path(text[: place.start()])).is_file():
            return archive, text[place.end() :]
    return Path(location), None


@lru_cache(maxsize=8)
def _archive(path: Path, _modified: int, _process: int) -> zipfile.ZipFile:
    # Kept open: reading the directory of a large archive again for each member costs more than the member.
    return zipfile.ZipFile(path)


def open_location(location: str | Path, *, streamed: bool = False) -> BinaryIO:
    """Open a location for reading; the caller closes it. Nothing is unpacked to disk.

    What is ``streamed`` is read once, from beginning to end, and may have any size; damage to a member is found then,
    with whatever exception that leads to. Raises `ImageError`: the file or member is missing (``missing_file``), cannot
    be read (``unreadable_image``) or is larger than `MAX_FILE_BYTES` (``too_large``).
    """
    path, member = _split(location)
    try:
        if member is not None:
            return _open_member(_archive(path, path.stat().st_mtime_ns, os.getpid()), member, location, streamed)
        if path.exists() and not path.is_file():
            raise ImageError("unreadable_image", f"{location}: it is a folder, pipe or device, not a file.")
        if not streamed and path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError("too_large", f"{location}: the file is larger than {MAX_FILE_BYTES} bytes.")
        return path.open("rb")
    except ImageError:
        raise
    except (FileNotFoundError, KeyError):
        raise ImageError("missing_file", f"{location}: there is no such file.") from None
    except Exception as error:
        # Unpacking raises whatever the damage leads it to (BadZipFile, zlib.error, struct.error, …).
        raise ImageError("unreadable_image", f"{location}: cannot be read ({error}).") from None


def _open_member(archive: zipfile.ZipFile, member: str, location: str | Path, streamed: bool) -> BinaryIO:
    info = archive.getinfo(member)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError("unreadable_image", f"{location}: packed by an unusual method; pack it again with Deflate.")
    if not streamed and info.file_size > MAX_FILE_BYTES:
        raise ImageError("too_large", f"{location}: the member is larger than {MAX_FILE_BYTES} bytes.")
    if info.file_size > max(_HARMLESS_BYTES, _MAX_RATIO * info.compress_size):
        raise ImageError("too_large", f"{location}: it unpacks to more than {_MAX_RATIO} times its packed size.")
    if streamed:
        return cast("BinaryIO", archive.open(info))
    with archive.open(info) as packed:
        # No more than it should be: a damaged or false size would let everything be unpacked before it is found.
        return BytesIO(packed.read(info.file_size + 1))


@contextmanager
def _opened(location: str | Path, stream: BinaryIO | None = None) -> Iterator[Image.Image]:
    try:
        with stream or open_location(location) as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if image.mode not in _MODES:
                raise ImageError("unreadable_image", f"{location}: pixels of the kind {image.mode} are not supported.")
            yield image
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"{location}: more than {MAX_PIXELS} pixels ({error}).") from None
    except ImageError:
        raise
    except UnidentifiedImageError:  # whose own text has an address in memory
        raise ImageError("unreadable_image", f"{location}: not a readable image (of no known format).") from None
    except Exception as error:
        # Decoders raise whatever the damage leads them to (OSError, SyntaxError, struct.error, …).
        raise ImageError("unreadable_image", f"{location}: not a readable image ({error}).") from None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # Pillow gives the size of a TIFF as it is shown.
    turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8) and image.format != "TIFF"
    return (image.height, image.width) if turned else image.size


def check_image(location: str | Path) -> ImageFacts:
    """Read an image from beginning to end and return its upright size and hashes; raises `ImageError`.

    JPEGs are decoded at a reduced size, which finds truncated files as well and is several times faster.
    """
    with open_location(location) as file:
        content = file.read()
    with _opened(location, BytesIO(content)) as image:
        _refuse_many_scans(location, image, content)
        width, height = _upright_size(image)
        return ImageFacts(width, height, hashlib.sha256(content).hexdigest(), _phash(image))


def stated_size(location: str | Path, content: bytes) -> tuple[int, int]:
    """Return width and height as an image file's header states them; no pixel is decoded, so no damage found there."""
    with _opened(location, BytesIO(content)) as image:
        _refuse_many_scans(location, image, content)
        return image.size  # not the upright one: for that, Pillow decodes a PNG


def _refuse_many_scans(location: str | Path, image: Image.Image, content: bytes) -> None:
    if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > _MAX_SCANS < _scans(content):
        raise ImageError("too_large", f"{location}: a JPEG of more than {_MAX_SCANS} scans.")


def _scans(jpeg: bytes) -> int:
    # Up to its end: what other programs append may look like more of them.
    found = place = 0
    while (marker := _JPEG_MARKER.search(jpeg, place)) and marker[1] != b"\xd9":
        found += marker[1] == b"\xda"
        has_length = marker[1] not in b"\x01\xd8"
        place = marker.end() + (int.from_bytes(jpeg[marker.end() : marker.end() + 2]) if has_length else 0)
    return found


def perceptual_hash(location: str | Path) -> str:
    """Return the hash of `ImageFacts` alone; raises `ImageError`."""
    with _opened(location) as image:
        return _phash(image)


def _phash(image: Image.Image) -> str:
    # The hash is one of brightness, which a JPEG has as a channel of its own; 64 pixels a side go into it.
    image.draft("L", (_PHASH_SIDE, _PHASH_SIDE))
    upright = ImageOps.exif_transpose(image) if image.mode == "L" else upright_rgb(image)
    return str(imagehash.phash(upright, hash_size=16))


def read_rgb(location: str | Path, stream: BinaryIO | None = None) -> NDArray[np.uint8]:
    """Return the upright image, uint8 [H, W, 3]; of a given stream the location is only the name.

    Raises `ImageError`, also for truncated pixel data.
    """
    with _opened(location, stream) as image:
        return np.asarray(upright_rgb(image))


def normalise_image(location: str | Path) -> NormalisedImage:
    """Return an image in the form in which every COCO tool reads the same pixels; raises `ImageError`.

    An upright 8-bit RGB JPEG or PNG is handed on unchanged (its path, or a zip member's bytes). Any other is
    written anew, upright and as 8-bit RGB: PNG stays PNG, all else becomes JPEG (quality 95, 4:4:4), or PNG if a
    side is too long for a JPEG. An alpha channel is dropped, 16-bit values lose their low byte.
    """
    path, member = _split(location)
    with open_location(location) as stream, _opened(location, stream) as image:
        # Pillow reads 16-bit PNGs as RGB too; the raw mode of the data, gone after loading, tells them apart.
        raw_modes = [tile[3] for tile in getattr(image, "tile", [])]
        eight_bit_rgb = image.mode == "RGB" and (image.format != "PNG" or raw_modes == ["RGB"])
        width, height = _upright_size(image)
        kind = "PNG" if image.format == "PNG" or max(image.size) > _MAX_JPEG_SIDE else "JPEG"
        suffixes, named = _SUFFIXES[kind], Path(member or path).suffix.lower()
        if eight_bit_rgb and _usable_unchanged(image):
            stream.seek(0)
            content = path if member is None else stream.read()
            return NormalisedImage(content, named if named in suffixes else suffixes[0], width, height)
        # A colour profile of grey or CMYK pixels would be wrong for the new ones.
        profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
        rgb = upright_rgb(image)
        rgb.info = {}  # else Pillow would write a PNG's transparent colour again
        output = BytesIO()
        options = {"compress_level": 3} if kind == "PNG" else {"quality": 95, "subsampling": 0}
        rgb.save(output, format=kind, icc_profile=profile, **options)
        return NormalisedImage(output.getvalue(), suffixes[0], width, height)


def _usable_unchanged(image: Image.Image) -> bool:
    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        return False
    if image.format == "PNG":
        return "transparency" not in image.info and getattr(image, "n_frames", 1) == 1
    return image.format in ("JPEG", "MPO")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image upright and as 8-bit RGB; alpha is dropped, 16-bit values lose their low byte."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # Pillow's own conversion would clip 16-bit values at 255.
        values = np.asarray(upright).astype(np.int64) >> 8
        upright = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return upright if upright.mode == "RGB" else upright.convert("RGB")
