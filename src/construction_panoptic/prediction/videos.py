"""Videos with PyAV, which brings its own codecs: frames in, MP4 out, one frame at a time."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self, cast

import av
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream
from numpy.typing import NDArray

from construction_panoptic.errors import InputDataError

CODEC = "libx264" if "libx264" in av.codecs_available else "mpeg4"
QUALITY = "20"  # x264's constant rate factor: 18 is visually lossless, 23 its default


class VideoError(InputDataError):
    """A video cannot be read, or only in part."""


@dataclass(frozen=True)
class VideoFrame:
    """A frame of a video, uint8 [H, W, 3], RGB, upright."""

    number: int  # from 0, counted over all frames of the video
    time: Fraction  # seconds since the first frame
    rate: Fraction  # of the video, frames a second
    pixels: NDArray[np.uint8]


def frame_count(path: Path) -> int | None:
    """Estimate the number of frames from the file's header; None where it does not say or cannot be read."""
    with suppress(FFmpegError, OSError, IndexError, ValueError), av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.frames:
            return int(stream.frames)
        if container.duration and stream.average_rate:
            return round(container.duration / av.time_base * stream.average_rate)
    return None


def read_frames(path: Path, every: int = 1) -> Iterator[VideoFrame]:
    """Decode the frames 0, ``every``, … of a video one by one; `VideoError`: no video, or damaged after them."""
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: there is no video in it.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            start: Fraction | None = None
            for count, frame in enumerate(container.decode(stream), start=1):
                number = count - 1
                if number % every:
                    continue
                time = number / rate
                if frame.pts is not None and frame.time_base is not None:
                    time = frame.pts * Fraction(frame.time_base)
                start = time if start is None else start
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90) % 4)
                yield VideoFrame(number, time - start, rate, np.ascontiguousarray(pixels))
    except VideoError:
        raise
    except (FFmpegError, OSError, ValueError) as error:
        read = f" after {count} frames" if count else ""
        raise VideoError(f"{path}: not a readable video{read} ({error}).") from error
    if not count:
        raise VideoError(f"{path}: the video has no frame.")


class VideoWriter:
    """Writes an MP4 (H.264 where the codec is there) frame by frame; each is shown from its time to the next one's."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._container = av.open(str(path), "w", format="mp4")
        rate = rate.limit_denominator(65535)
        self._stream = cast("VideoStream", self._container.add_stream(CODEC, rate=rate))
        self._stream.pix_fmt = "yuv420p"
        if CODEC == "libx264":
            self._stream.options = {"crf": QUALITY, "preset": "veryfast"}
        # Times finer than the rate, so that a variable frame rate stays as it is.
        self._time_base = self._stream.codec_context.time_base = 1 / (rate * 1000)
        self._size: tuple[int, int] | None = None
        self._last = -1

    def write(self, picture: NDArray[np.uint8], time: Fraction) -> None:
        """Add a frame, uint8 [H, W, 3] RGB, at ``time`` seconds, scaled to the size of the first."""
        if self._size is None:  # even numbers, as the codec needs them
            self._size = (max(2, picture.shape[0] // 2 * 2), max(2, picture.shape[1] // 2 * 2))
            self._stream.height, self._stream.width = self._size
        height, width = self._size
        if picture.shape[0] // 2 * 2 == height and picture.shape[1] // 2 * 2 == width:
            picture = picture[:height, :width]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(width=width, height=height, format="yuv420p")
        frame.time_base = self._time_base
        frame.pts = self._last = max(round(time / self._time_base), self._last + 1)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._size is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
