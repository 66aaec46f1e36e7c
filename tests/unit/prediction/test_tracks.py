"""A clip of the sample's drawings moving, with the segments that a perfect model would see."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.evaluation.predictions import ImagePrediction, read_predictions
from construction_panoptic.prediction.results import write_results
from construction_panoptic.prediction.running import Picture, PredictedPicture
from construction_panoptic.prediction.sources import SourceFile, frame_name
from construction_panoptic.prediction.tables import seen_table
from construction_panoptic.prediction.tracks import PATIENCE, Tracker
from construction_panoptic.sample.export import noise_bank
from construction_panoptic.sample.shapes import DRAWINGS, Sprite, draw_sprite

HEIGHT, WIDTH, FRAMES = 120, 240, 20
NAMES = {1: "ground", 2: "dump_truck_tipper_truck", 3: "wheel_loader"}
CATEGORIES = [{"id": n, "name": name, "isthing": int(n > 1), "color": [60 * n, 90, 90]} for n, name in NAMES.items()]


@pytest.fixture(scope="module")
def clip() -> list[tuple[np.ndarray, ImagePrediction]]:
    """Frames of two trucks that pass each other, one hidden in part on the way, and a loader that stands."""
    rng, noise = np.random.default_rng(0), noise_bank(SampleSettings())
    sprites = [draw_sprite(DRAWINGS[NAMES[n]], rng, noise, size) for n, size in ((3, 60.0), (2, 60.0), (2, 70.0))]
    frames = []
    for time in range(FRAMES):
        lefts = (170, 8 * time, 150 - 8 * time)
        rgb, id_map = np.full((HEIGHT, WIDTH, 3), 0.6, np.float32), np.ones((HEIGHT, WIDTH), np.int32)
        # Segment ids say nothing of the thing: they are other ones in each frame.
        ids = (np.arange(3) + time) % 3 + 2
        for sprite, left, bottom, segment_id in zip(sprites, lefts, (60, 80, 115), ids, strict=True):
            placed = sprite.placed(left, bottom)
            paint(placed, rgb, id_map, int(segment_id))
        segments = [(1, 1), *zip(ids.tolist(), (3, 2, 2), strict=True)]
        frames.append(((rgb * 255).clip(0, 255).astype(np.uint8), prediction(time, id_map, segments)))
    return frames


def paint(sprite: Sprite, rgb: np.ndarray, id_map: np.ndarray, segment_id: int) -> None:
    rows, columns = np.nonzero(sprite.alpha > 0.5)
    y, x = rows + sprite.top, columns + sprite.left
    inside = (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    id_map[y[inside], x[inside]] = segment_id
    rgb[y[inside], x[inside]] = sprite.rgb[rows[inside], columns[inside]]


def prediction(time: int, id_map: np.ndarray, segments: list[tuple[int, int]]) -> ImagePrediction:
    infos: list[dict[str, Any]] = [
        {
            "id": n,
            "category_id": c,
            "isthing": c > 1,
            "score": 0.9,
            "bbox": [0, 0, 1, 1],
            "area": int((id_map == n).sum()),
        }
        for n, c in segments
    ]
    return ImagePrediction(time + 1, frame_name("clip.mp4", time), WIDTH, HEIGHT, infos, [], CATEGORIES, id_map)


def tracks(found: list[ImagePrediction]) -> list[list[int]]:
    """Of each frame the identity of loader, first and second truck."""
    return [[s["track_id"] for s in each.segments_info if s["isthing"]] for each in found]


def test_things_keep_their_identity(clip: list[tuple[np.ndarray, ImagePrediction]]) -> None:
    tracker = Tracker()
    found = [tracker.follow(each) for _, each in clip]
    assert tracks(found) == [[1, 2, 3]] * FRAMES
    assert all("track_id" not in each.segments_info[0] for each in found)
    # PNGs, as processes send them, give the same; what went in is untouched.
    again = Tracker()
    assert tracks([again.follow(each.packed()) for _, each in clip]) == [[1, 2, 3]] * FRAMES
    assert "track_id" not in clip[0][1].segments_info[1]


@pytest.mark.parametrize(("missing", "same"), [(PATIENCE, True), (PATIENCE + 1, False)])
def test_a_thing_may_be_missing_for_some_frames(
    clip: list[tuple[np.ndarray, ImagePrediction]], missing: int, same: bool
) -> None:
    tracker = Tracker()
    standing = [clip[0][1]] * (missing + 2)
    gone = prediction(0, np.ones((HEIGHT, WIDTH), np.int32), [(1, 1)])
    found = [tracker.follow(each) for each in (standing[0], *[gone] * missing, standing[1])]
    assert tracks(found)[-1] == ([1, 2, 3] if same else [4, 5, 6])


def test_a_thing_of_another_class_is_another_thing(clip: list[tuple[np.ndarray, ImagePrediction]]) -> None:
    tracker = Tracker()
    first = clip[0][1]
    tracker.follow(first)
    renamed = [s | {"category_id": 3} for s in first.segments_info if s["isthing"]]
    other = prediction(1, first.id_map, [(s["id"], s["category_id"]) for s in renamed])
    assert tracks([tracker.follow(other)]) == [[1, 4, 5]]


@pytest.mark.medium
def test_the_table_counts_things_and_not_frames(clip: list[tuple[np.ndarray, ImagePrediction]], tmp_path: Path) -> None:
    file, tracker = SourceFile(Path("clip.mp4"), "clip.mp4"), Tracker()
    write_results(
        (
            PredictedPicture(
                Picture(each.file_name, file, pixels, time, Fraction(time, 10), Fraction(10)), tracker.follow(each), 0.5
            )
            for time, (pixels, each) in enumerate(clip)
        ),
        tmp_path,
    )
    assert seen_table(tmp_path)[["image", "class", "kind", "count"]].values.tolist() == [
        ["clip.mp4", "ground", "stuff", 1],
        ["clip.mp4", "dump_truck_tipper_truck", "thing", 2],
        ["clip.mp4", "wheel_loader", "thing", 1],
    ]
    assert tracks(list(read_predictions(tmp_path / "panoptic"))) == [[1, 2, 3]] * FRAMES
