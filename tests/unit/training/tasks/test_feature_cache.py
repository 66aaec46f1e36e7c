import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from construction_panoptic.config.base import parse
from construction_panoptic.config.training import MaskHeadSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.detr.model import DetrPanoptic, PanopticFeatures, build_detr_panoptic
from construction_panoptic.training.loading import build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.feature_cache import DiskCache, FeatureCache, open_cache
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from tests.unit.training.conftest import SPEC

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
LIMIT = 10_000  # bytes
STILL = {"sides": [64], "max_side": 112, "flip": 0, "crop": 0, "evaluation_side": 72}


def mask_head_settings(folder: Path, **changes: Any) -> MaskHeadSettings:
    data: dict[str, Any] = {
        "epochs": 3,
        "batch_size": 1,
        "workers": 0,
        "device": "cpu",
        "optimizer": {"lr": 5e-3, "clip_max_norm": 0},
        "augmentation": STILL,
        "cache_folder": str(folder),
    }
    return parse(MaskHeadSettings, data | changes, "mask_head")


class Trained:
    """A short training of the mask head, and how many images its detector saw."""

    def __init__(
        self, scene: Any, small_model: dict[str, Any], settings: MaskHeadSettings, cache: FeatureCache | None = None
    ) -> None:
        samples = PanopticSamples(
            scene.panoptic, scene.images, scene.pngs, settings.augmentation, training=True, seed=settings.seed
        )
        loader = build_loader(samples, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)
        with own_randomness(1):
            model = Counting(build_detr_panoptic(**small_model).detr)
        self.cache = open_cache(settings, {"data": "scene"}) if cache is None else cache
        task = MaskHeadTask(model, settings, SPEC, self.cache)
        results = list(train(task, loader))
        self.images_seen = model.images_seen
        self.weights = results[-1].checkpoint["model"]
        self.losses = [result.metrics["train/loss"] for result in results]


class Counting(DetrPanoptic):
    images_seen = 0

    def features(self, images: Tensor, padding_mask: Tensor | None = None) -> PanopticFeatures:
        self.images_seen += len(images)
        return super().features(images, padding_mask)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.losses == other.losses
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_cached_training_equals_one_without_bit_for_bit(
    scene: Any, small_model: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    plain = Trained(scene, small_model, mask_head_settings(tmp_path))
    cached = Trained(scene, small_model, mask_head_settings(tmp_path, cache=kind))
    assert_same(plain, cached)
    assert (plain.images_seen, cached.images_seen) == (18, 6)
    assert cached.losses[-1] < cached.losses[0]
    if kind == "disk":
        again = Trained(scene, small_model, mask_head_settings(tmp_path, cache=kind))
        assert_same(plain, again)
        assert again.images_seen == 0


def test_padded_batches_do_not_depend_on_what_is_kept(
    scene: Any, small_model: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Six images, portrait and landscape, in batches of three: their padding depends on the batch."""

    def run(kind: str, cache: FeatureCache | None = None) -> Trained:
        settings = mask_head_settings(tmp_path, batch_size=3, epochs=6, cache=kind)
        return Trained(scene, small_model, settings, cache)

    limit = 500_000  # bytes
    bounded = run("memory", FeatureCache(limit))
    memory, disk, plain = run("memory"), run("disk"), run("none")
    assert_same(memory, disk)
    assert_same(memory, bounded)
    assert memory.images_seen == disk.images_seen < bounded.images_seen < plain.images_seen == 36
    assert bounded.cache is not None
    assert 0 < bounded.cache.used <= limit
    assert sum("full" in message for message in caplog.messages) == 1
    # Without a cache the detector sees whole batches: the same but for rounding.
    assert plain.losses == pytest.approx(memory.losses, rel=1e-4)


def test_what_changes_between_epochs_is_refused(tmp_path: Path) -> None:
    message = r"mask_head: cache: memory needs .* set augmentation\.flip: 0, one number in augmentation\.sides, or"
    with pytest.raises(ParameterError, match=message):
        mask_head_settings(tmp_path, cache="memory", augmentation=STILL | {"flip": 0.5, "sides": [64, 72]})
    with pytest.raises(ParameterError, match=r"set augmentation\.crop: 0, or cache: none"):
        mask_head_settings(tmp_path, cache="disk", augmentation=STILL | {"crop": 0.1, "crop_min": 40})
    assert open_cache(mask_head_settings(tmp_path), {}) is None


def test_fingerprint_knows_rounding_but_not_what_is_kept(tmp_path: Path) -> None:
    single = [mask_head_settings(tmp_path, cache=kind).fingerprint() for kind in ("none", "memory", "disk")]
    assert single[0] == single[1] == single[2]
    batches = [mask_head_settings(tmp_path, cache=kind, batch_size=2).fingerprint() for kind in ("none", "memory")]
    assert batches[0] != batches[1]


def entry(value: float, count: int = 4) -> dict[str, Tensor]:
    return {"values": torch.full((count,), value)}


def test_files_of_other_content_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    store = DiskCache(LIMIT, tmp_path, {"detector": "a"})
    store.put("one", entry(1))
    same = DiskCache(LIMIT, tmp_path, {"detector": "a"})
    found = same.get("one", CPU)
    assert found is not None
    assert torch.equal(found["values"], torch.ones(4))
    assert same.used == store.used > 0
    other = DiskCache(LIMIT, tmp_path, {"detector": "b"})
    assert other.get("one", CPU) is None
    assert (len(other), other.used) == (0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frozen_features.json", "notes.txt"]


def test_a_damaged_file_counts_as_missing(tmp_path: Path) -> None:
    store = DiskCache(LIMIT, tmp_path, {})
    store.put("one", entry(1))
    path = next(tmp_path.glob("*.pt"))
    path.write_bytes(path.read_bytes()[:100])
    again = DiskCache(LIMIT, tmp_path, {})
    assert again.get("one", CPU) is None
    assert again.used == 0
    again.put("one", entry(2))
    found = again.get("one", CPU)
    assert found is not None
    assert found["values"][0] == 2


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(LIMIT, tmp_path / "features", {})
    (tmp_path / "features" / "frozen_features.json").unlink()
    (tmp_path / "features").rmdir()
    (tmp_path / "features").write_text("a file where the folder was")
    with caplog.at_level(logging.WARNING):
        cache.put("one", entry(1))
        cache.put("two", entry(2))
    assert ["takes no more than 0 entries" in message for message in caplog.messages] == [True]
    assert cache.get("one", CPU) is None


def test_kept_tensors_are_copies() -> None:
    cache = FeatureCache(1000)
    original = entry(1)
    cache.put("one", original)
    original["values"].zero_()
    kept = cache.get("one", CPU)
    assert kept is not None
    assert torch.equal(kept["values"], torch.ones(4))
