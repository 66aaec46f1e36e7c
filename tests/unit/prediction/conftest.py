"""A small model with random weights, and pictures and a video to predict."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.videos import VideoWriter
from tests.unit.small_model import small_model


@pytest.fixture(scope="session")
def trained() -> PanopticModel:
    """A model that keeps some queries at the threshold 0.2."""
    return small_model()


def pixels(seed: int, height: int = 80, width: int = 120) -> np.ndarray:
    """Smooth colours that differ by seed, uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def write_video(path: Path, times: list[Fraction], rate: Fraction, height: int = 80, width: int = 120) -> None:
    """A video whose k-th frame is grey with the value 20 + 10 k."""
    with VideoWriter(path, rate) as video:
        for number, time in enumerate(times):
            video.write(np.full((height, width, 3), 20 + 10 * number, dtype=np.uint8), time)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header states a size, and that has hardly a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with two images of one name, one in a subfolder, a video of seven frames, and three bad files."""
    folder = tmp_path / "site"
    (folder / "north").mkdir(parents=True)
    Image.fromarray(pixels(1)).save(folder / "a.jpg")
    Image.fromarray(pixels(2, 90, 70)).save(folder / "a.png")
    Image.fromarray(pixels(3)).save(folder / "north" / "b.JPG")
    rate = Fraction(30000, 1001)
    write_video(folder / "film.mp4", [k / rate for k in range(7)], rate, 81, 121)
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "north" / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not wanted")
    (folder / ".hidden.jpg").write_bytes(b"not wanted")
    return folder
