from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from construction_panoptic.prediction.videos import VideoError, frame_count, read_frames
from tests.unit.prediction.conftest import write_video

RATE = Fraction(30000, 1001)


def test_frames_come_back_in_order_at_their_times(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, [k / RATE for k in range(10)], RATE)
    frames = list(read_frames(path))
    assert [frame.number for frame in frames] == list(range(10))
    assert [float(frame.time) for frame in frames] == pytest.approx([k / RATE for k in range(10)], abs=1e-4)
    assert {frame.rate for frame in frames} == {RATE}
    assert frame_count(path) == 10
    for frame in frames:
        assert frame.pixels.shape == (80, 120, 3)
        assert np.abs(frame.pixels.astype(int) - (20 + 10 * frame.number)).max() <= 4


def test_every_third_frame(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, [k / RATE for k in range(8)], RATE)
    frames = list(read_frames(path, every=3))
    assert [frame.number for frame in frames] == [0, 3, 6]
    assert [round(float(frame.pixels.mean()) / 10) * 10 for frame in frames] == [20, 50, 80]


def test_a_variable_frame_rate_stays(tmp_path: Path) -> None:
    times = [Fraction(k) for k in (0, 1, 5, 6)]
    write_video(tmp_path / "film.mp4", times, Fraction(10))
    assert [float(frame.time) for frame in read_frames(tmp_path / "film.mp4")] == pytest.approx([0, 1, 5, 6], abs=1e-3)


def test_odd_sizes_are_cut_and_other_sizes_scaled(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, [Fraction(0), Fraction(1)], Fraction(1), 81, 121)
    assert {frame.pixels.shape for frame in read_frames(path)} == {(80, 120, 3)}


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    path, turned = tmp_path / "film.mp4", tmp_path / "turned.mp4"
    write_video(path, [Fraction(0)], Fraction(1))
    content = path.read_bytes()
    # The transformation matrix of the track header, 16.16 fixed point: from identity to a turn by 90 degrees.
    start = content.index(b"tkhd") + 4 + 40
    one = (1 << 16).to_bytes(4, "big")
    zero = bytes(4)
    assert content[start : start + 20] == one + zero * 3 + one
    matrix = zero + one + zero + (-(1 << 16)).to_bytes(4, "big", signed=True) + zero
    turned.write_bytes(content[:start] + matrix + content[start + 20 :])
    (frame,) = read_frames(turned)
    assert frame.pixels.shape == (120, 80, 3)


@pytest.mark.parametrize("content", [b"", b"no video"])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"bad\.mp4: not a readable video"):
        list(read_frames(path))
    assert frame_count(path) is None


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="there is no video in it"):
        list(read_frames(path))
