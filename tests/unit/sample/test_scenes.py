import numpy as np
import pytest

from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.sample.backdrops import COCO_CATEGORIES, LABELS, LAYOUTS, draw_backdrop
from construction_panoptic.sample.painting import NoiseBank
from construction_panoptic.sample.scenes import Scene, altered, draw_scene


@pytest.fixture(scope="module")
def noise() -> NoiseBank:
    return NoiseBank(np.random.default_rng(0))


@pytest.fixture(scope="module")
def crowded(noise: NoiseBank) -> list[Scene]:
    settings = SampleSettings(things=(3, 5), spans=(0.3, 0.6))
    return [draw_scene(settings.classes, settings, np.random.default_rng(seed), noise, fewest=3) for seed in range(25)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_backdrop_is_labelled_everywhere_in_large_regions(name: str, noise: NoiseBank) -> None:
    for seed in range(8):
        backdrop = draw_backdrop(LAYOUTS[name], np.random.default_rng(seed), noise, 96, 128)
        values, counts = np.unique(backdrop.labels, return_counts=True)
        assert values[0] > 0
        assert 2 <= len(values) <= 5
        assert counts.min() > 150
        assert not any(COCO_CATEGORIES[LABELS[value]][1] for value in values)
        assert 0 < backdrop.standing[0] < backdrop.standing[1] < 96


def test_later_things_lie_on_top_and_hide_no_more_than_the_limit(crowded: list[Scene]) -> None:
    hidden = []
    for scene in crowded:
        left = np.ones_like(scene.instances[0].coverage)
        for instance in reversed(scene.instances):
            np.testing.assert_allclose(instance.visible, instance.coverage * left, atol=1e-5)
            left = left * (1 - instance.coverage)
            hidden.append(instance.hidden)
    assert max(hidden) <= 0.4
    assert sum(share > 0.05 for share in hidden) >= 10


def test_masks_lie_where_the_picture_shows_the_things(noise: NoiseBank) -> None:
    settings = SampleSettings(worker_fraction=0)
    for seed in range(8):
        scene = draw_scene(("hydra_crane",), settings, np.random.default_rng(seed), noise)
        red, green, blue = np.moveaxis(scene.rgb.astype(int), -1, 0)
        orange = (red > 190) & (green < 150) & (blue < 60)
        coverage = np.max([instance.coverage for instance in scene.instances], axis=0)
        assert orange[coverage > 0.5].mean() > 0.25
        assert orange[coverage < 0.02].mean() < 0.001


def test_a_scene_of_one_class_holds_that_class_only(noise: NoiseBank) -> None:
    settings = SampleSettings()
    for name in (*settings.classes, "distribution_transformer"):
        scene = draw_scene((name,), settings, np.random.default_rng(5), noise)
        assert {instance.name for instance in scene.instances} == {name}
        assert 1 <= len(scene.instances) <= 4
        assert scene.rgb.shape == (*scene.labels.shape, 3)
        assert scene.labels.shape[0] == 96
        assert scene.labels.shape[1] in settings.widths


def test_workers_are_labelled_where_they_stand(noise: NoiseBank) -> None:
    settings = SampleSettings(worker_fraction=1)
    person = LABELS.index("person")
    scenes = [draw_scene(("wheel_loader",), settings, np.random.default_rng(seed), noise) for seed in range(10)]
    seen = [
        int(((scene.labels == person) & (np.max([one.visible for one in scene.instances], 0) < 0.5)).sum())
        for scene in scenes
    ]
    assert min(seen) > 60
    without = draw_scene(("wheel_loader",), SampleSettings(worker_fraction=0), np.random.default_rng(1), noise)
    assert not (without.labels == person).any()


def test_no_room_is_told(noise: NoiseBank) -> None:
    settings = SampleSettings(spans=(0.9, 0.9), hidden_limit=0, widths=(48,))
    with pytest.raises(ParameterError, match="spans"):
        draw_scene(("hydra_crane",), settings, np.random.default_rng(0), noise)


def test_altered_frames_keep_their_things(crowded: list[Scene]) -> None:
    scene = crowded[0]
    assert altered(scene, "recompressed") is scene
    brighter = altered(scene, "brighter")
    assert brighter.rgb.mean() > scene.rgb.mean() + 3
    assert brighter.instances == scene.instances
    shifted = altered(scene, "shifted")
    before, after = scene.instances[-1].coverage, shifted.instances[-1].coverage
    columns = np.arange(before.shape[1])
    moved = (after.sum(0) @ columns) / after.sum() - (before.sum(0) @ columns) / before.sum()
    assert moved == pytest.approx(0.5, abs=0.3)
    assert not np.array_equal(shifted.rgb, scene.rgb)
