"""Panoptic PNGs of the COCO format: segment ids as colours, id = R + 256 G + 65536 B, 0 = void."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from construction_panoptic.errors import InputDataError

MAX_SEGMENT_ID = 2**24 - 1
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2


def encode_id_map(id_map: NDArray[np.integer]) -> bytes:
    """Encode an id map, [H, W] of any integer type, as an RGB PNG file; `ValueError`: it is none, or empty."""
    if id_map.ndim != 2 or id_map.size == 0:
        raise ValueError(f"an id map is [H, W] with at least one pixel, not {id_map.shape}")
    if id_map.min() < 0 or id_map.max() > MAX_SEGMENT_ID:
        raise ValueError(f"segment ids must lie in 0…{MAX_SEGMENT_ID}, not {id_map.min()}…{id_map.max()}")
    # Of little-endian integers, the lowest bytes are R, G and B; most images need R alone.
    octets = np.ascontiguousarray(id_map, dtype="<u4").view(np.uint8).reshape(*id_map.shape, 4)
    used = max(1, -(-int(id_map.max()).bit_length() // 8))
    return encode_png([octets[:, :, channel] for channel in range(used)], 3)


def encode_png(planes: Sequence[NDArray[np.uint8]], channels: Literal[1, 3]) -> bytes:
    """Encode planes, uint8 [H, W] each, as a grey or RGB PNG file; of three channels, those that are left out are 0."""
    # Pillow would take several times as long, since it tries every filter on every row.
    height, width = planes[0].shape
    # On label maps, the difference to the row above is nearly all zeros.
    rows = np.zeros((height, 1 + channels * width), dtype=np.uint8)
    rows[:, 0] = _FILTER_UP
    for channel, values in enumerate(planes, start=1):
        plane = np.ascontiguousarray(values)
        rows[0, channel::channels] = plane[0]
        rows[1:, channel::channels] = plane[1:] - plane[:-1]
    packer = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    pixels = packer.compress(rows.data) + packer.flush()
    colour_type = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)  # not interlaced
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def decode_id_map(png: Path | str | bytes) -> NDArray[np.uint32]:
    """Decode a panoptic PNG, a path or the file's content, to uint32 [H, W], 0 = void.

    Raises `InputDataError`: the file is missing, damaged, or not an RGB PNG.
    """
    name = "panoptic PNG" if isinstance(png, bytes) else str(png)
    try:
        with Image.open(BytesIO(png) if isinstance(png, bytes) else png, formats=["PNG"]) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise InputDataError(f"{name}: expected a 24-bit RGB PNG, not the mode {image.mode}.")
            rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB
            data = rgb.tobytes("raw", "RGBX")
            width, height = image.size
    except FileNotFoundError:
        raise InputDataError(f"{name}: there is no such file.") from None
    except InputDataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputDataError(f"{name}: cannot be read as a PNG ({error}).") from None
    ids = np.frombuffer(data, dtype="<u4").reshape(height, width)
    return (ids & MAX_SEGMENT_ID).astype(np.uint32, copy=False)
