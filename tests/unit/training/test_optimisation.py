import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from construction_panoptic.config.training import OptimizerSettings, ScheduleSettings
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.training.optimisation import backbone_and_rest, rate_factor


def optimizer_of(model: nn.Module, **changes: Any) -> torch.optim.AdamW:
    settings = OptimizerSettings(**changes)
    return torch.optim.AdamW(backbone_and_rest(model, settings), lr=settings.lr, weight_decay=settings.weight_decay)


def test_groups_hold_every_trained_parameter_once(small_model: dict[str, Any]) -> None:
    model = build_detr(**small_model)
    optimizer = optimizer_of(model)
    main, backbone = optimizer.param_groups
    assert (main["lr"], backbone["lr"], main["weight_decay"]) == (1e-4, 1e-5, 1e-4)
    expected = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("backbone.")}
    assert {id(parameter) for parameter in backbone["params"]} == expected
    assert len(main["params"]) + len(backbone["params"]) == len(list(model.parameters()))


def test_frozen_detector_has_no_group(small_model: dict[str, Any]) -> None:
    model = build_detr_panoptic(**small_model)
    (group,) = optimizer_of(model).param_groups
    trained = [*model.bbox_attention.parameters(), *model.mask_head.parameters()]
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in trained}


def test_backbone_rate_0_freezes_it(small_model: dict[str, Any]) -> None:
    model = build_detr(**small_model)
    optimizer = optimizer_of(model, lr_backbone=0)
    assert [group["name"] for group in optimizer.param_groups] == ["main"]
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def rates(settings: ScheduleSettings, epochs: int, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = LambdaLR(optimizer, rate_factor(settings, epochs=epochs, steps_per_epoch=steps))
    values = []
    for _ in range(epochs * steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_step_equals_torch() -> None:
    ours = rates(ScheduleSettings(drop_epoch=2), epochs=5, steps=3)
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = StepLR(optimizer, 2)
    expected = []
    for _ in range(5):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        schedule.step()
    assert ours == pytest.approx(expected)
    assert ours[-1] == pytest.approx(0.02)


def test_warmup_rises_to_the_full_rate() -> None:
    ours = rates(ScheduleSettings(warmup_epochs=1.5), epochs=3, steps=4)
    assert ours[:7] == pytest.approx([2 / 6, 4 / 6, 1, 8 / 6, 10 / 6, 2, 2])


def test_cosine() -> None:
    ours = rates(ScheduleSettings(kind="cosine", final_factor=0.1), epochs=5, steps=4)
    assert ours == pytest.approx([2 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 20))) for step in range(20)])
    warmed = rates(ScheduleSettings(kind="cosine", warmup_epochs=1), epochs=5, steps=4)
    assert warmed[:5] == pytest.approx([0.5, 1, 1.5, 2, 2])
    assert warmed == sorted(warmed[:4]) + sorted(warmed[4:], reverse=True)


def test_one_cycle_equals_torch() -> None:
    settings = ScheduleSettings(kind="one_cycle", warmup_fraction=0.3, start_factor=0.04, final_factor=0.04 / 1e4)
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=2.0)
    schedule = OneCycleLR(optimizer, max_lr=2.0, total_steps=41, pct_start=12 / 41 + 1 / 41, cycle_momentum=False)
    expected = []
    for _ in range(41):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 41:
            schedule.step()
    assert rates(settings, epochs=41, steps=1) == pytest.approx(expected)


def test_one_step_is_enough() -> None:
    for kind in ("step", "cosine", "one_cycle"):
        factor = rate_factor(ScheduleSettings(kind=kind), epochs=1, steps_per_epoch=1)
        assert math.isfinite(factor(0))
        assert math.isfinite(factor(1))
