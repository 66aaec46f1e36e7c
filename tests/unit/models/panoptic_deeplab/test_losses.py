"""Losses beside a slow implementation of the definition."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from construction_panoptic.config.training import DeeplabLossSettings
from construction_panoptic.models.panoptic_deeplab.losses import deeplab_losses, normalisers
from construction_panoptic.models.panoptic_deeplab.targets import IGNORED, Targets

SETTINGS = DeeplabLossSettings()
SIZE, CLASSES = (22, 30), 5


@pytest.fixture
def targets() -> Any:
    generator = torch.Generator().manual_seed(0)
    semantic = torch.randint(0, CLASSES, (3, *SIZE), generator=generator)
    semantic[0, :9] = IGNORED
    semantic[2] = IGNORED
    cells = torch.rand(3, 6, 8, generator=generator)
    return Targets(
        semantic=semantic,
        semantic_weight=1.0 + 2.0 * (torch.rand(3, *SIZE, generator=generator) > 0.8),
        center=cells,
        center_weight=(cells > 0.3).float(),
        offset=torch.randn(3, 2, 6, 8, generator=generator),
        offset_weight=(cells > 0.7).float(),
    )


@pytest.fixture
def outputs() -> Any:
    generator = torch.Generator().manual_seed(1)
    return {
        "semantic": (5 * torch.randn(3, CLASSES, 11, 15, generator=generator)).requires_grad_(),
        "center": torch.randn(3, 6, 8, generator=generator).requires_grad_(),
        "offset": torch.randn(3, 2, 6, 8, generator=generator).requires_grad_(),
    }


def part(values: Any, rows: Any) -> Any:
    """Give some images of outputs or targets."""
    if isinstance(values, Targets):
        return Targets(**{name: value[rows] for name, value in vars(values).items()})
    return {name: value[rows] for name, value in values.items()}


def slow_sums(outputs: Any, targets: Any) -> Any:
    """The definition, image by image and pixel by pixel."""
    sums = {"semantic": 0.0, "center": 0.0, "offset": 0.0}
    counts = dict.fromkeys(sums, 0)
    full = F.interpolate(outputs["semantic"], size=SIZE, mode="bilinear", align_corners=False)
    for image in range(len(full)):
        each = [
            -full[image, :, y, x].log_softmax(0)[targets.semantic[image, y, x]] * targets.semantic_weight[image, y, x]
            for y in range(SIZE[0])
            for x in range(SIZE[1])
            if targets.semantic[image, y, x] != IGNORED
        ]
        hardest = sorted(each, reverse=True)[: math.ceil(len(each) / 4)]
        sums["semantic"] = sums["semantic"] + sum(hardest)
        counts["semantic"] += len(hardest)
        for cell in targets.center_weight[image].nonzero().tolist():
            heat = outputs["center"][image][*cell].sigmoid()
            sums["center"] = sums["center"] + (heat - targets.center[image][*cell]) ** 2
            counts["center"] += 1
        for y, x in targets.offset_weight[image].nonzero().tolist():
            for axis in range(2):
                error = outputs["offset"][image, axis, y, x] - targets.offset[image, axis, y, x]
                sums["offset"] = sums["offset"] + error.abs()
            counts["offset"] += 1
    return sums, counts


def test_losses_and_gradients_are_those_of_the_definition(outputs: Any, targets: Any) -> None:
    sums, counts = slow_sums(outputs, targets)
    found = deeplab_losses(outputs, targets, SETTINGS)
    assert normalisers(targets, SETTINGS) == counts
    for name, value in found.items():
        torch.testing.assert_close(value, sums[name])
        ours = torch.autograd.grad(value, outputs[name])
        torch.testing.assert_close(ours, torch.autograd.grad(sums[name], outputs[name]))


def test_sums_and_normalisers_of_parts_add_up(outputs: Any, targets: Any) -> None:
    whole = deeplab_losses(outputs, targets, SETTINGS)
    parts = [deeplab_losses(part(outputs, [k]), part(targets, [k]), SETTINGS) for k in range(3)]
    counts = [normalisers(part(targets, [k]), SETTINGS) for k in range(3)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(each[name] for each in parts), value)
        assert sum(each[name] for each in counts) == normalisers(targets, SETTINGS)[name]


def test_what_takes_no_part_gets_no_gradient(outputs: Any, targets: Any) -> None:
    total = torch.stack(list(deeplab_losses(outputs, targets, SETTINGS).values())).sum()
    total.backward()
    assert not outputs["semantic"].grad[2].any()
    assert not outputs["semantic"].grad[0, :, :4].any()
    assert not outputs["center"].grad[targets.center_weight == 0].any()
    assert not outputs["offset"].grad.abs().sum(1)[targets.offset_weight == 0].any()


def test_logits_far_apart_stay_finite(outputs: Any, targets: Any) -> None:
    with torch.no_grad():
        outputs["semantic"] *= 200
    value = deeplab_losses(outputs, targets, SETTINGS)["semantic"]
    assert value.isfinite()
    assert torch.autograd.grad(value, outputs["semantic"])[0].isfinite().all()
