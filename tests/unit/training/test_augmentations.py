from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.training import augmentations as transforms
from construction_panoptic.training.augmentations import Annotated

SMALL = AugmentationSettings(sides=(48, 60), max_side=90, first_sides=(50, 70), crop_min=20, crop_max=48)


def augment(original: Annotated, settings: AugmentationSettings, random: np.random.Generator) -> Annotated:
    for augmentation in transforms.build_augmentations(settings):
        original = augmentation(original, lambda: pytest.fail("none of these needs another sample"), random)
    return transforms.drop_empty(original)


def sample(height: int, width: int, seed: int = 0) -> Annotated:
    """An image with a map of rectangular segments with large ids, and exact boxes."""
    random = np.random.default_rng(seed)
    id_map = np.zeros((height, width), np.int32)
    for segment_id in (3, 70_001, 16_777_215, 256, 9):
        top, left = random.integers(0, height - 6), random.integers(0, width - 6)
        id_map[top : top + random.integers(2, height), left : left + random.integers(2, width)] = segment_id
    segment_ids = torch.tensor(sorted({*id_map.ravel().tolist()} - {0}))
    ids = torch.from_numpy(id_map)
    boxes = masks_to_boxes(ids == segment_ids[:, None, None])
    boxes[:, 2:] += 1
    image = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
    return Annotated(image, boxes, torch.arange(len(segment_ids)), ids, segment_ids)


def test_resized_image_equals_pillow() -> None:
    gradient = np.linspace(0, 255, 50 * 70 * 3).reshape(50, 70, 3).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    for pixels, size in ((gradient, (80, 112)), (noise, (31, 44)), (noise, (80, 112))):
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        ours = transforms.resize(Annotated(image, torch.zeros(0, 4), torch.zeros(0).long()), size).image
        theirs = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs.astype(int)).max() <= 1


def each_mask(original: Annotated, ids: Tensor, operation: Any) -> Tensor:
    return torch.stack([operation((original.id_map == segment_id)[None, None])[0, 0] for segment_id in ids])


@pytest.mark.parametrize("size", [(97, 133), (23, 31), (60, 61)])
def test_id_map_is_resized_as_each_mask_would_be(size: tuple[int, int]) -> None:
    original = sample(50, 70)
    assert original.segment_ids is not None
    resized = transforms.resize(original, size)
    assert resized.id_map is not None
    assert resized.id_map.dtype == torch.int32

    def nearest(mask: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(mask.float(), size=size, mode="nearest") > 0.5

    expected = each_mask(original, original.segment_ids, nearest)
    assert torch.equal(resized.id_map == original.segment_ids[:, None, None], expected)


def test_flip() -> None:
    original = sample(30, 44)
    flipped = transforms.flip(original)
    assert flipped.id_map is not None
    assert flipped.segment_ids is not None
    boxes = masks_to_boxes(flipped.id_map == flipped.segment_ids[:, None, None])
    boxes[:, 2:] += 1
    assert torch.equal(flipped.boxes, boxes)
    assert torch.equal(flipped.image, original.image.flip(-1))
    again = transforms.flip(flipped)
    assert torch.equal(again.boxes, original.boxes)


def test_crop_clips_boxes_and_drops_what_is_outside() -> None:
    id_map = torch.zeros(40, 60, dtype=torch.int32)
    id_map[0:10, 0:10] = 5  # outside
    id_map[10:30, 20:50] = 6
    id_map[5:8, 15:25] = 7  # reaches in
    id_map[12:14, 22:24] = 8
    # The box of 9 reaches in, its pixels do not.
    id_map[0:2, 0:40] = 9
    id_map[0:40, 59] = 9
    ids = torch.tensor([5, 6, 7, 8, 9])
    boxes = torch.tensor([[0, 0, 10, 10], [20, 10, 50, 30], [15, 5, 25, 8], [22, 12, 24, 14], [0, 0, 60, 40.0]])
    original = Annotated(torch.zeros(3, 40, 60, dtype=torch.uint8), boxes, torch.tensor([1, 2, 3, 4, 5]), id_map, ids)
    cropped = transforms.crop(original, top=6, left=20, height=20, width=30)
    assert cropped.size == (20, 30)
    assert cropped.segment_ids is not None
    assert cropped.segment_ids.tolist() == [6, 7, 8]
    assert cropped.labels.tolist() == [2, 3, 4]
    assert cropped.boxes.tolist() == [[0, 4, 30, 20], [0, 0, 5, 2], [2, 6, 4, 8]]
    assert cropped.id_map is not None
    assert torch.equal(cropped.id_map, id_map[6:26, 20:50])


def test_boxes_alone_are_dropped_by_their_area() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [5, 5, 30, 30.0]])
    cropped = transforms.crop(
        Annotated(torch.zeros(3, 40, 40, dtype=torch.uint8), boxes, torch.tensor([1, 2])), 12, 12, 20, 20
    )
    assert cropped.boxes.tolist() == [[0, 0, 18, 18]]
    assert cropped.labels.tolist() == [2]


@given(st.integers(0, 10_000), st.integers(20, 90), st.integers(20, 90))
def test_augmented_samples_are_consistent(seed: int, height: int, width: int) -> None:
    augmented = augment(sample(height, width, seed), SMALL, np.random.default_rng(seed))
    assert augmented.id_map is not None
    assert augmented.segment_ids is not None
    new_height, new_width = augmented.size
    assert augmented.id_map.shape == (new_height, new_width)
    assert len(augmented.boxes) == len(augmented.labels) == len(augmented.segment_ids)
    assert set(augmented.segment_ids.tolist()) == set(augmented.id_map.unique().tolist()) - {0}
    limits = torch.tensor([new_width, new_height, new_width, new_height])
    assert bool((augmented.boxes >= 0).all() and (augmented.boxes <= limits + 1e-3).all())
    assert bool((augmented.boxes[:, 2:] > augmented.boxes[:, :2]).all())
    # Every pixel of a segment lies in its box, up to the rounding of two resizes.
    masks = masks_to_boxes(augmented.id_map == augmented.segment_ids[:, None, None])
    assert bool((masks[:, :2] >= augmented.boxes[:, :2] - 5).all())
    assert bool((masks[:, 2:] <= augmented.boxes[:, 2:] + 5).all())


def test_augmentation_follows_its_generator_alone() -> None:
    def run(seed: int) -> Annotated:
        return augment(sample(60, 80), SMALL, np.random.default_rng(seed))

    torch.manual_seed(0)
    first = run(5)
    torch.manual_seed(1)
    assert torch.equal(run(5).image, first.image)
    assert len({(run(seed).size, int(run(seed).image.sum())) for seed in range(10)}) > 5


def test_flip_and_crop_happen_as_often_as_asked() -> None:
    plain = AugmentationSettings(sides=(60,), max_side=200, flip=0.0, crop=0.0)
    original = sample(60, 80)
    assert torch.equal(augment(original, plain, np.random.default_rng(0)).image, original.image)
    mirrored = plain.model_copy(update={"flip": 0.25})
    count = sum(
        not torch.equal(augment(original, mirrored, np.random.default_rng(seed)).image, original.image)
        for seed in range(400)
    )
    assert 70 <= count <= 130


def test_normalised_boxes() -> None:
    boxes = transforms.normalised_boxes(torch.tensor([[10.0, 20, 30, 40]]), (80, 100))
    assert boxes[0].tolist() == pytest.approx([0.2, 0.375, 0.2, 0.25])


@given(st.integers(0, 1000), st.tuples(st.integers(20, 60), st.integers(20, 60)))
def test_paste_puts_whole_things_on_top_and_keeps_the_rest(seed: int, size: tuple[int, int]) -> None:
    below, above = sample(40, 50, seed), sample(*size, seed + 1)
    chosen = torch.tensor([index % 2 == 0 for index in range(len(above.labels))])
    pasted = transforms.paste(below, above, chosen)
    assert pasted.id_map is not None
    assert below.id_map is not None
    assert above.id_map is not None
    assert pasted.segment_ids is not None
    assert above.segment_ids is not None
    height, width = min(40, size[0]), min(50, size[1])
    wanted = torch.zeros(40, 50, dtype=torch.bool)
    wanted[:height, :width] = torch.isin(above.id_map, above.segment_ids[chosen])[:height, :width]
    assert torch.equal(pasted.id_map[~wanted], below.id_map[~wanted])
    assert torch.equal(pasted.image[:, ~wanted], below.image[:, ~wanted])
    assert torch.equal(pasted.image[:, wanted], above.image[:, :height, :width][:, wanted[:height, :width]])
    assert not torch.isin(pasted.id_map[wanted], below.id_map).any()
    # Every pixel of a pasted thing has the class it had; ids are those of the map, boxes those of their pixels.
    label_of = dict(zip(pasted.segment_ids.tolist(), pasted.labels.tolist(), strict=True))
    theirs = dict(zip(above.segment_ids.tolist(), above.labels.tolist(), strict=True))
    old = above.id_map[:height, :width][wanted[:height, :width]].tolist()
    assert [label_of[new] for new in pasted.id_map[wanted].tolist()] == [theirs[number] for number in old]
    assert sorted(label_of) == sorted(set(pasted.id_map.unique().tolist()) - {0})
    if wanted.any():
        boxes = masks_to_boxes(pasted.id_map == pasted.segment_ids[:, None, None])
        assert torch.equal(pasted.boxes, boxes + torch.tensor([0.0, 0, 1, 1]))


def test_copy_paste_takes_things_of_the_other_image_only() -> None:
    below, above = sample(40, 50), sample(40, 50, 1)
    settings, things = AugmentationSettings(copy_paste=1.0, flip=1.0), frozenset({1, 3})
    paste = partial(transforms.copy_paste, settings, things, [partial(transforms.random_flip, settings)])
    seen: set[int] = set()
    for seed in range(20):
        pasted = paste(below, lambda: above, np.random.default_rng(seed))
        assert pasted.segment_ids is not None
        assert below.segment_ids is not None
        seen |= set(pasted.labels[torch.isin(pasted.segment_ids, below.segment_ids, invert=True)].tolist())
        assert torch.equal(paste(below, lambda: above, np.random.default_rng(seed)).image, pasted.image)
    assert seen == things & set(above.labels.tolist())
    never = partial(transforms.copy_paste, AugmentationSettings(), things, [])
    assert never(below, pytest.fail, np.random.default_rng(0)) is below


def test_colour_jitter_stays_within_its_strength() -> None:
    settings = AugmentationSettings(color_jitter=0.2)
    grey = Annotated(torch.full((3, 4, 4), 100, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0))
    values = {
        int(transforms.color_jitter(settings, grey, pytest.fail, np.random.default_rng(seed)).image[0, 0, 0])
        for seed in range(50)
    }
    assert len(values) > 10
    assert min(values) >= 79
    assert max(values) <= 121
