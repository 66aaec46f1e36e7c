import numpy as np
import pytest

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.sample.backdrops import COCO_CATEGORIES, LABELS
from construction_panoptic.sample.painting import NoiseBank
from construction_panoptic.sample.scenes import Scene, draw_scene
from construction_panoptic.sample.stuff import SMALLEST_REGION, StuffPrediction, predict_stuff

EXACT = {"border_wobble": 0.0, "fringe_fraction": 0.0, "leak_fraction": 0.0, "without_stuff_fraction": 0.0}


@pytest.fixture(scope="module")
def noise() -> NoiseBank:
    return NoiseBank(np.random.default_rng(0))


@pytest.fixture(scope="module")
def scenes(noise: NoiseBank) -> list[Scene]:
    settings = SampleSettings(worker_fraction=0.5)
    return [draw_scene(settings.classes, settings, np.random.default_rng(seed), noise) for seed in range(20)]


def agreement(scene: Scene, stuff: StuffPrediction) -> float:
    """Share of the pixels outside things whose predicted COCO category is the true one."""
    category = {segment["id"]: segment["category_id"] for segment in stuff.segments}
    predicted = np.vectorize(lambda value: category.get(int(value), 0))(stuff.id_map)
    numbers = np.array([0, *(COCO_CATEGORIES[name][0] for name in LABELS[1:])])
    outside = np.max([instance.visible for instance in scene.instances], axis=0) < 0.02
    return float((predicted == numbers[scene.labels])[outside].mean())


def predict(scenes: list[Scene], noise: NoiseBank, **values: float) -> list[StuffPrediction]:
    settings = SampleSettings.model_validate({**EXACT, **values})
    return [predict_stuff(scene, settings, np.random.default_rng(number), noise) for number, scene in enumerate(scenes)]


def test_without_errors_the_prediction_is_the_truth(scenes: list[Scene], noise: NoiseBank) -> None:
    for scene, stuff in zip(scenes, predict(scenes, noise), strict=True):
        assert agreement(scene, stuff) > 0.995


def test_wobble_moves_borders_modestly(scenes: list[Scene], noise: NoiseBank) -> None:
    shares = [
        agreement(scene, stuff) for scene, stuff in zip(scenes, predict(scenes, noise, border_wobble=1.0), strict=True)
    ]
    assert 0.94 < np.mean(shares) < 0.995


def test_segments_describe_the_id_map(scenes: list[Scene], noise: NoiseBank) -> None:
    for stuff in predict(scenes, noise, border_wobble=1.0, fringe_fraction=1.0, leak_fraction=1.0):
        assert set(np.unique(stuff.id_map)) - {0} == {segment["id"] for segment in stuff.segments}
        for segment in stuff.segments:
            rows, columns = np.nonzero(stuff.id_map == segment["id"])
            assert segment["area"] == len(rows) >= SMALLEST_REGION
            left, top, width, height = segment["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())


def test_each_stuff_category_is_one_segment(scenes: list[Scene], noise: NoiseBank) -> None:
    things = {number for number, thing in COCO_CATEGORIES.values() if thing}
    for stuff in predict(scenes, noise):
        categories = [s["category_id"] for s in stuff.segments if s["category_id"] not in things]
        assert len(categories) == len(set(categories))


def test_trucks_leak_only_when_asked(noise: NoiseBank) -> None:
    settings = SampleSettings(worker_fraction=0)
    scene = draw_scene(("dump_truck_tipper_truck",), settings, np.random.default_rng(1), noise)
    covered = np.max([instance.visible for instance in scene.instances], axis=0) > 0.5
    outside = []
    for share in (0.0, 1.0):
        stuff = predict([scene], noise, leak_fraction=share)[0]
        trucks = [segment["id"] for segment in stuff.segments if segment["category_id"] == 8]
        assert trucks
        outside.append(int((np.isin(stuff.id_map, trucks) & ~covered).sum()))
    assert outside[0] == 0
    assert outside[1] > 50


def test_empty_prediction(scenes: list[Scene], noise: NoiseBank) -> None:
    stuff = predict(scenes[:1], noise, without_stuff_fraction=1.0)[0]
    assert stuff.segments == []
    assert not stuff.id_map.any()
