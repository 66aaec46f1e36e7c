"""Grouping beside a slow implementation of the definition."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from construction_panoptic.config.model import GroupingSettings
from construction_panoptic.models.panoptic_deeplab import grouping

pytestmark = pytest.mark.medium

IS_THING = {1: False, 2: False, 4: True, 5: True}
SETTINGS = GroupingSettings(center_window=3, min_thing_area=0.01, min_stuff_area=0.02)
SIZE = (46, 57)


def random_maps(seed: Any = 0, scale: Any = 3.0) -> Any:
    """Smooth random maps of six classes, with some padding."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels: Any, stride: Any) -> Any:
        coarse = torch.randn(1, channels, 4, 5, generator=generator)
        size = (56 // stride, 64 // stride)
        return scale * F.interpolate(coarse, size=size, mode="bicubic")[0]

    center = smooth(1, 4)[0] + 0.5 * torch.randn(14, 16, generator=generator)
    return {"semantic": smooth(6, 2), "center": center, "offset": smooth(2, 4)}


def grouped(maps: Any, settings: Any = SETTINGS, size: Any = SIZE) -> Any:
    return grouping.group(**maps, size=size, is_thing=IS_THING, settings=settings)


def slow_groups(maps: Any, size: Any) -> Any:
    """The definition, pixel by pixel: the set of pixels, category and score of each segment."""
    height, width = size
    h, w = -(-height // 4), -(-width // 4)
    semantic = maps["semantic"][:, : -(-height // 2), : -(-width // 2)]
    full = F.interpolate(semantic[None], scale_factor=2, mode="bilinear")[0].numpy()
    moved = F.interpolate(maps["offset"][None, :, :h, :w], scale_factor=4, mode="bilinear")[0].numpy()
    probability = semantic[sorted(IS_THING)].softmax(0).numpy()
    heat = maps["center"][:h, :w].sigmoid().numpy()
    centers = [
        (y, x)
        for y in range(h)
        for x in range(w)
        if heat[y, x] > SETTINGS.center_threshold
        and heat[y, x] == heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max()
    ]
    stuff: dict[Any, Any] = {}
    things: dict[Any, Any] = {}
    for y in range(height):
        for x in range(width):
            category = max(IS_THING, key=lambda k: full[k, y, x])
            if not IS_THING[category]:
                stuff.setdefault(category, []).append((y, x))
            elif centers:
                place = (y + 0.5) / 4 - 0.5 + moved[0, y, x], (x + 0.5) / 4 - 0.5 + moved[1, y, x]
                nearest = min(centers, key=lambda c: (c[0] - place[0]) ** 2 + (c[1] - place[1]) ** 2)
                things.setdefault(nearest, []).append(((y, x), category))
    found = []
    for center, members in things.items():
        category = Counter(category for _, category in members).most_common(1)[0][0]
        found.append(([pixel for pixel, _ in members], category, heat[center], 0.01))
    found += [(pixels, category, 1.0, 0.02) for category, pixels in stuff.items()]
    return [
        (
            set(pixels),
            category,
            factor * np.mean([probability[sorted(IS_THING).index(category), y // 2, x // 2] for y, x in pixels]),
        )
        for pixels, category, factor, least in found
        if len(pixels) >= least * height * width
    ]


def pixel_sets(segmentation: Any) -> Any:
    return {
        frozenset(map(tuple, np.argwhere(segmentation.id_map == segment["id"]).tolist())): segment
        for segment in segmentation.segments
    }


def scores_of(segmentation: Any) -> Any:
    return [segment["score"] for segment in segmentation.segments]


@pytest.mark.parametrize("seed", range(4))
def test_segments_are_those_of_the_definition(seed: Any) -> None:
    maps = random_maps(seed)
    found = pixel_sets(grouped(maps))
    expected = slow_groups(maps, SIZE)
    assert len(expected) > 3
    assert found.keys() == {frozenset(pixels) for pixels, _, _ in expected}
    for pixels, category, score in expected:
        segment = found[frozenset(pixels)]
        assert (segment["category_id"], segment["area"]) == (category, len(pixels))
        assert segment["isthing"] == IS_THING[category]
        assert segment["score"] == pytest.approx(score, abs=1e-5)


def test_the_memory_limit_changes_nothing(monkeypatch: Any) -> None:
    maps = random_maps(1)
    whole = grouped(maps)
    monkeypatch.setattr(grouping, "_CHUNK", 500)
    strips = grouped(maps)
    np.testing.assert_array_equal(strips.id_map, whole.id_map)
    assert scores_of(strips) == pytest.approx(scores_of(whole))


def test_thresholds_leave_out_segments_and_number_the_rest() -> None:
    groups = grouped(random_maps(2))
    threshold = sorted(scores_of(groups))[2]
    every, some = groups.resized(SIZE), groups.resized(SIZE, least_scores={True: threshold, False: threshold})
    assert len(some.segments) == len(every.segments) - 3
    assert [segment["id"] for segment in some.segments] == list(range(1, len(some.segments) + 1))
    kept = {pixels for pixels, segment in pixel_sets(every).items() if segment["score"] > threshold}
    assert pixel_sets(some).keys() == kept


@pytest.mark.parametrize("size", [(92, 114), (23, 20), (7, 9)])
def test_boxes_and_areas_are_those_of_the_masks(size: Any) -> None:
    found = grouped(random_maps(3)).resized(size).with_boxes()
    assert found.id_map.shape == size
    for segment, box in zip(found.segments, found.boxes, strict=True):
        rows, columns = np.nonzero(found.id_map == segment["id"])
        assert segment["area"] == len(rows) > 0
        sides = [np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert box["bbox"] == [columns.min(), rows.min(), *sides]
        assert (box["category_id"], box["score"]) == (segment["category_id"], segment["score"])
    assert set(np.unique(found.id_map)) <= {0, *(segment["id"] for segment in found.segments)}


def test_without_centres_things_are_void() -> None:
    maps = random_maps(0)
    maps["center"].fill_(-9.0)
    found = grouped(maps)
    assert found.segments
    assert not any(segment["isthing"] for segment in found.segments)
    assert (found.id_map == 0).any()


def test_thousands_of_things() -> None:
    side = 400
    semantic = torch.zeros(6, side, side)
    semantic[4] = 1.0
    center = torch.full((side // 2, side // 2), -5.0)
    center[1::3, 1::3] = 5.0
    settings = GroupingSettings(center_window=3, min_thing_area=0.0)
    groups = grouped({"semantic": semantic, "center": center, "offset": torch.zeros(2, 200, 200)}, settings, (800, 800))
    assert len(groups.segments) == 66**2 + 1 * (200 % 3 == 2) * (2 * 66 + 1)
    assert np.bincount(groups.id_map.ravel())[1] == 12 * 12
