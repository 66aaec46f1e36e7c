from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from construction_panoptic.models.detr.matcher import generalized_iou


def random_corners(*shape: int) -> Tensor:
    start = torch.rand(*shape, 2)
    return torch.cat([start, start + torch.rand(*shape, 2) * 0.5 + 1e-3], dim=-1)


def test_generalized_iou_of_boxes_worked_out_by_hand() -> None:
    box = torch.tensor([0.0, 0.0, 2.0, 2.0])
    others = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    # Overlap 1 of union 7 in a hull of 9; the same box; no overlap, and 4 of the hull's 12 belong to neither.
    expected = torch.tensor([1 / 7 - 2 / 9, 1.0, -4 / 12])
    torch.testing.assert_close(generalized_iou(box, others), expected)


@pytest.mark.parametrize("seed", range(5))
def test_all_pairs_equal_torchvision(seed: int) -> None:
    torch.manual_seed(seed)
    first, second = random_corners(17), random_corners(9)
    expected = torchvision.ops.generalized_box_iou(first, second)
    torch.testing.assert_close(generalized_iou(first[:, None], second[None]), expected, atol=1e-6, rtol=1e-6)


def test_gradient_equals_torchvision() -> None:
    torch.manual_seed(3)
    first, second = random_corners(12).requires_grad_(), random_corners(12)
    (ours,) = torch.autograd.grad(generalized_iou(first, second).sum(), first)
    pairs = torchvision.ops.generalized_box_iou(first, second)
    (expected,) = torch.autograd.grad(pairs.diagonal().sum(), first)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_tiny_boxes_keep_their_exact_value() -> None:
    # Half a pixel of a 20-megapixel image beside itself moved by half its width: 1/3, not something below it.
    side = 1e-4
    box = torch.tensor([0.5, 0.5, 0.5 + side, 0.5 + side], dtype=torch.float64)
    moved = box + torch.tensor([side / 2, 0, side / 2, 0], dtype=torch.float64)
    assert generalized_iou(box, moved).item() == pytest.approx(1 / 3, rel=1e-9)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], 0.0),  # the same point
        ([0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.9, 0.9], -1.0),  # two points
        ([0.1, 0.5, 0.4, 0.5], [0.6, 0.5, 0.9, 0.5], 0.0),  # two pieces of one line: a hull without area
        ([0.2, 0.2, 0.2, 0.6], [0.1, 0.1, 0.5, 0.7], 0.0),  # a line in a box
    ],
)
def test_boxes_without_area_are_finite(first: list[float], second: list[float], value: float) -> None:
    boxes1 = torch.tensor(first).requires_grad_()
    boxes2 = torch.tensor(second).requires_grad_()
    giou = generalized_iou(boxes1, boxes2)
    gradients = torch.autograd.grad(giou, [boxes1, boxes2])
    assert giou.item() == pytest.approx(value, abs=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)
