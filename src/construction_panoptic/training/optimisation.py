"""The optimiser's parameter groups and the schedule of the learning rates."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from construction_panoptic.config.training import OptimizerSettings, ScheduleSettings


def backbone_and_rest(
    model: nn.Module, settings: OptimizerSettings, parts: tuple[str, ...] = ("backbone",)
) -> list[dict[str, Any]]:
    """The parameters that learn in the groups ``main`` and ``backbone``, for those with one of ``parts`` in their name,
    as in DETR. With ``lr_backbone`` 0 the backbone is frozen.
    """
    main, backbone = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if any(part in name for part in parts) else main).append(parameter)
    if settings.lr_backbone == 0:
        for parameter in backbone:
            parameter.requires_grad_(False)
        backbone = []
    groups = [
        {"name": "main", "params": main, "lr": settings.lr},
        {"name": "backbone", "params": backbone, "lr": settings.lr_backbone},
    ]
    return [group for group in groups if group["params"]]


def rate_factor(settings: ScheduleSettings, *, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor of the learning rates as a function of the steps done; see `ScheduleSettings`.

    ``cosine`` is that of Loshchilov and Hutter 2017, eq. 5; ``one_cycle`` of Smith 2018, as in torch's OneCycleLR. A
    warm-up multiplies ``step`` and ``cosine`` by a straight line that reaches 1 with its last step.
    """
    steps = epochs * steps_per_epoch
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    peak = settings.warmup_fraction * (steps - 1)

    def factor(step: int) -> float:
        if settings.kind == "one_cycle":
            if step <= peak:
                return _half_cosine(settings.start_factor, 1.0, step, peak)
            return _half_cosine(1.0, settings.final_factor, step - peak, steps - 1 - peak)
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if settings.kind == "cosine":
            return warmup * _half_cosine(1.0, settings.final_factor, step - warmup_steps, steps - warmup_steps)
        return warmup * settings.drop_factor ** (step // steps_per_epoch // settings.drop_epoch)

    return factor


def _half_cosine(start: float, end: float, done: float, whole: float) -> float:
    fraction = min(1.0, max(0.0, done / whole)) if whole > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
