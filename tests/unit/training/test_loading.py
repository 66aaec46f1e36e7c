from typing import Any

import numpy as np
import pytest
import torch

from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.training.loading import Batch, EpochBatches, build_loader, collate
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples

EVALUATION = AugmentationSettings(evaluation_side=72)


def test_collate_pads_right_and_bottom(scene: Any) -> None:
    samples = PanopticSamples(scene.panoptic, scene.images, scene.pngs, EVALUATION)
    batch = collate([samples[0], samples[1]])  # 72 x 96 and 96 x 72
    assert batch.images.shape == (2, 3, 96, 96)
    assert batch.padding_mask is not None
    for index in range(2):
        image, target = samples[index]
        height, width = target["size"].tolist()
        assert torch.equal(batch.images[index, :, :height, :width], image)
        assert not batch.padding_mask[index, :height, :width].any()
        assert int(batch.padding_mask[index].sum()) == 96 * 96 - height * width
        assert bool((batch.images[index][:, batch.padding_mask[index]] == 0).all())
        assert torch.equal(batch.targets[index]["id_map"], target["id_map"])
    assert batch.file_names == ["site__001.png", "site__002.png"]
    assert len(batch) == 2


def test_no_mask_without_padding(scene: Any) -> None:
    samples = DetectionSamples(scene.detection, scene.images, EVALUATION)
    assert collate([samples[0], samples[2]]).padding_mask is None


def test_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        batches = EpochBatches(10, 3, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(1, 0) == order(1, 0)
    assert len(order(1, 0)) == 3
    keys = [key for batch in order(1, 4) for key in batch]
    assert len(set(keys)) == 9
    assert {epoch for epoch, _ in keys} == {4}
    assert order(1, 1) != order(1, 0) != order(2, 0)


def test_batches_that_are_not_full() -> None:
    assert [len(batch) for batch in EpochBatches(7, 3, shuffle=False)] == [3, 3, 1]
    assert [len(batch) for batch in EpochBatches(2, 3)] == [2]
    assert len(EpochBatches(2, 3)) == 1
    assert [len(batch) for batch in EpochBatches(3, 3)] == [3]


def test_batches_of_like_aspect() -> None:
    aspects = [1.5 if index % 3 else 0.7 for index in range(32)]  # 21 landscape, 11 portrait

    def batches(epoch: int, **changes: Any) -> list[list[int]]:
        sampler = EpochBatches(32, 4, seed=3, **{"aspects": aspects, **changes})
        sampler.set_epoch(epoch)
        return [[index for _, index in batch] for batch in sampler]

    first = batches(0)
    assert first == batches(0)
    assert [len(batch) for batch in first] == [4] * 8
    assert sorted(index for batch in first for index in batch) == list(range(32))
    assert sum(len({aspects[index] for index in batch}) > 1 for batch in first) == 1
    assert first != batches(1)
    mixed = batches(0, aspects=None)
    assert sum(len({aspects[index] for index in batch}) > 1 for batch in mixed) > 4
    # Within a kind the seeded order is kept.
    plain = [index for batch in mixed for index in batch if aspects[index] > 1]
    assert [index for batch in first for index in batch if aspects[index] > 1] == plain


def test_batches_of_like_aspect_need_less_padding(scene: Any, small_settings: Any) -> None:
    samples = DetectionSamples(scene.detection, scene.images, small_settings().augmentation)
    assert samples.aspects == [96 / 72, 72 / 96] * 3

    def padding(aspects: list[float] | None) -> int:
        loader = build_loader(samples, batch_size=2, shuffle=True, seed=0, aspects=aspects)
        return sum(int(batch.padding_mask.sum()) for batch in loader if batch.padding_mask is not None)

    assert padding(samples.aspects) < padding(None)


def batches_of(samples: Any, workers: int, start_method: str | None, epochs: list[int]) -> list[Batch]:
    loader = build_loader(
        samples,
        batch_size=2,
        shuffle=True,
        seed=5,
        workers=workers,
        start_method=start_method,
        aspects=samples.aspects,
    )
    collected = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        collected += list(loader)
    return collected


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_batches_are_the_same_whatever_the_number_of_workers(
    scene: Any, small_settings: Any, start_method: str
) -> None:
    samples = PanopticSamples(
        scene.panoptic,
        scene.images,
        scene.pngs,
        small_settings().augmentation,
        training=True,
        seed=1,
        cache_mb=4,
    )
    alone = batches_of(samples, 0, None, [0, 1])
    shared = batches_of(samples, 2, start_method, [0, 1])
    assert len(alone) == len(shared) == 6
    for left, right in zip(alone, shared, strict=True):
        assert left.file_names == right.file_names
        assert torch.equal(left.images, right.images)
        for one, other in zip(left.targets, right.targets, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(
        left.images.shape != right.images.shape or not torch.equal(left.images, right.images)
        for left, right in zip(alone[:3], alone[3:], strict=True)
    )


def test_loading_leaves_the_global_generator_alone(scene: Any) -> None:
    samples = DetectionSamples(scene.detection, scene.images, EVALUATION)
    before = torch.get_rng_state()
    list(build_loader(samples, batch_size=2, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_weights_say_how_often_a_sample_comes() -> None:
    weights = [1.0] * 90 + [3.0] * 10  # 120 in all, for 100 places
    counts = np.zeros(100)
    for epoch in range(60):
        batches = EpochBatches(100, 10, seed=1, weights=weights)
        batches.set_epoch(epoch)
        drawn = [index for batch in batches for _, index in batch]
        assert len(drawn) == 100
        each = np.bincount(drawn, minlength=100)
        assert each[:90].max() <= 1  # 0.83 on average
        assert set(each[90:]) <= {2, 3}  # 2.5 on average
        counts += each
    assert counts[:90].mean() / 60 == pytest.approx(1 / 1.2, abs=0.02)
    assert counts[90:].mean() / 60 == pytest.approx(3 / 1.2, abs=0.1)
    equal = EpochBatches(100, 10, seed=1, weights=[0.5] * 100)
    assert sorted(index for batch in equal for _, index in batch) == list(range(100))
