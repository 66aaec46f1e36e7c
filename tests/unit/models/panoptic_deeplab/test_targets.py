"""Targets beside a slow implementation of the definition."""

import math
from typing import Any

import pytest
import torch

from construction_panoptic.config.training import TargetSettings
from construction_panoptic.models.panoptic_deeplab.targets import IGNORED, make_targets

IS_THING = torch.tensor([False, False, False, True, True])
SETTINGS = TargetSettings(small_area=0.02, small_weight=3.0)


def segmentation(id_map: Any, labels: Any) -> Any:
    """Give a segmentation in which the segments of the ids in ``labels`` take part, and those of others do not."""
    return {
        "id_map": id_map.int(),
        "segment_ids": torch.tensor(list(labels), dtype=torch.int64),
        "labels": torch.tensor(list(labels.values()), dtype=torch.int64),
    }


@pytest.fixture
def batch() -> Any:
    """Two images of other sizes; ids as large as 24 bits; 9 is a crowd, 0 is void, 6 has no pixel."""
    first = torch.full((22, 30), 2**24 - 1)
    first[12:] = 4
    first[3:9, 4:11] = 70
    first[8:20, 9:25] = 31
    first[0:2, 25:28] = 5
    first[20:, 20:] = 9
    first[:3, :3] = 0
    second = torch.full((24, 17), 1)
    second[18:] = 0
    return [
        segmentation(first, {70: 3, 2**24 - 1: 1, 4: 2, 31: 4, 5: 3, 6: 4}),
        segmentation(second, {1: 2}),
    ]


def slow_targets(item: Any, size: Any) -> Any:
    """The definition, pixel by pixel, of one image."""
    id_map, labels = item["id_map"], dict(zip(item["segment_ids"].tolist(), item["labels"].tolist(), strict=True))
    rows, columns = id_map.shape
    pixels = {identity: (id_map == identity).nonzero().double() for identity in labels}
    centers = {
        identity: (place + 0.5).mean(0) / 4 - 0.5
        for identity, place in pixels.items()
        if len(place) and IS_THING[labels[identity]]
    }
    semantic = torch.full(size, IGNORED)
    weight = torch.ones(size)
    for row in range(rows):
        for column in range(columns):
            identity = int(id_map[row, column])
            if identity in labels:
                semantic[row, column] = labels[identity]
                if identity in centers and len(pixels[identity]) < 0.02 * rows * columns:
                    weight[row, column] = 3.0
    h, w = math.ceil(size[0] / 4), math.ceil(size[1] / 4)
    heat, heat_weight = torch.zeros(h, w), torch.zeros(h, w)
    offset, offset_weight = torch.zeros(2, h, w), torch.zeros(h, w)
    for row in range(h):
        for column in range(w):
            place = torch.tensor([row, column])
            for center in centers.values():
                if (center.round() - place).abs().max() <= 5:
                    heat[row, column] = max(
                        float(heat[row, column]), math.exp(-float((center - place).square().sum()) / 4.5)
                    )
            y, x = 4 * row + 2, 4 * column + 2
            identity = int(id_map[y, x]) if y < rows and x < columns else 0
            heat_weight[row, column] = float(identity in labels)
            if identity in centers:
                offset[:, row, column] = centers[identity] - place
                offset_weight[row, column] = 1.0
    return semantic, weight, heat, heat_weight, offset, offset_weight


def test_the_targets_are_those_of_the_definition(batch: Any) -> None:
    found = make_targets(batch, (26, 33), IS_THING, SETTINGS)
    for image, item in enumerate(batch):
        for name, expected in zip(vars(found), slow_targets(item, (26, 33)), strict=True):
            torch.testing.assert_close(getattr(found, name)[image], expected, msg=f"{name} of image {image} differs")


def test_small_things_alone_weigh_more(batch: Any) -> None:
    found = make_targets(batch, (24, 30), IS_THING, SETTINGS)
    assert (found.semantic_weight[0] == 3.0).sum() == 6  # the segment 5
    assert (found.semantic_weight[1] == 1.0).all()


def test_crowds_void_and_padding_have_no_part(batch: Any) -> None:
    found = make_targets(batch, (32, 40), IS_THING, SETTINGS)
    assert (found.semantic[0, 20:22, 20:30] == IGNORED).all()
    assert (found.semantic[:, 24:] == IGNORED).all()
    assert (found.center_weight[1, :, 5:] == 0).all()
    assert found.offset_weight[1].sum() == 0
    assert found.center[1].max() == 0


def test_an_image_without_segments() -> None:
    found = make_targets([segmentation(torch.zeros(8, 8), {})], (8, 8), IS_THING, SETTINGS)
    assert (found.semantic == IGNORED).all()
    assert found.center_weight.sum() == 0
