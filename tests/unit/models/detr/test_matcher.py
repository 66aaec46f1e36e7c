from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.loss.loss_for_object_detection import HungarianMatcher

from construction_panoptic.config.training import MatchSettings
from construction_panoptic.models.detr.matcher import match, match_layers

CLASSES = 7


def random_boxes(*shape: int) -> Tensor:
    return torch.cat([0.2 + 0.6 * torch.rand(*shape, 2), 0.01 + 0.3 * torch.rand(*shape, 2)], dim=-1)


def random_targets(counts: list[int]) -> list[dict[str, Tensor]]:
    return [{"labels": torch.randint(CLASSES, (n,)), "boxes": random_boxes(n)} for n in counts]


def literal_cost(logits: Tensor, box: Tensor, label: int, target: Tensor, costs: MatchSettings) -> float:
    """Cost of one query for one target, in plain numbers."""
    exponentials = np.exp(logits.double().numpy())
    px, py, pw, ph = box.tolist()
    tx, ty, tw, th = target.tolist()
    p = (px - pw / 2, py - ph / 2, px + pw / 2, py + ph / 2)
    t = (tx - tw / 2, ty - th / 2, tx + tw / 2, ty + th / 2)
    overlap = max(0.0, min(p[2], t[2]) - max(p[0], t[0])) * max(0.0, min(p[3], t[3]) - max(p[1], t[1]))
    union = pw * ph + tw * th - overlap
    hull = (max(p[2], t[2]) - min(p[0], t[0])) * (max(p[3], t[3]) - min(p[1], t[1]))
    giou = overlap / union - (hull - union) / hull
    distance = abs(px - tx) + abs(py - ty) + abs(pw - tw) + abs(ph - th)
    probability = float(exponentials[label] / exponentials.sum())
    return costs.bbox * distance - costs.category * probability - costs.giou * giou


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_transformers_matcher(seed: int) -> None:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    queries = int(generator.choice([1, 5, 20, 100]))
    counts = generator.integers(0, 15, size=int(generator.integers(1, 5))).tolist()
    counts[0] += 1  # the other matcher needs an object in the batch
    logits = torch.randn(len(counts), queries, CLASSES + 1) * 2
    boxes = random_boxes(len(counts), queries)
    targets = random_targets(counts)

    ours = match(logits, boxes, targets, MatchSettings(category=1, bbox=5, giou=2))

    theirs = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)(
        {"logits": logits, "pred_boxes": boxes},
        [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets],
    )
    for (query, target), (expected_query, expected_target) in zip(ours, theirs, strict=True):
        assert torch.equal(query, expected_query)
        assert torch.equal(target, expected_target)
        assert query.dtype == target.dtype == torch.int64


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("queries", "objects"), [(4, 3), (3, 3), (2, 4), (1, 1)])
def test_no_other_assignment_is_cheaper(seed: int, queries: int, objects: int) -> None:
    torch.manual_seed(seed)
    costs = MatchSettings(category=2, bbox=1, giou=3)
    logits, boxes = torch.randn(1, queries, CLASSES + 1), random_boxes(1, queries)
    targets = random_targets([objects])
    cost = np.array(
        [
            [
                literal_cost(logits[0, q], boxes[0, q], int(targets[0]["labels"][t]), targets[0]["boxes"][t], costs)
                for t in range(objects)
            ]
            for q in range(queries)
        ]
    )
    if queries >= objects:
        cheapest = min(sum(cost[q, t] for t, q in enumerate(qs)) for qs in permutations(range(queries), objects))
    else:
        cheapest = min(sum(cost[q, t] for q, t in enumerate(ts)) for ts in permutations(range(objects), queries))

    ((query_index, target_index),) = match(logits, boxes, targets, costs)

    assert len(query_index) == min(queries, objects)
    assert query_index.tolist() == sorted(query_index.tolist())
    assert cost[query_index.numpy(), target_index.numpy()].sum() == pytest.approx(cheapest, abs=1e-5)


def test_layers_are_matched_each_by_itself() -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(6, 3, 20, CLASSES + 1), random_boxes(6, 3, 20)
    targets = random_targets([4, 0, 9])
    together = match_layers(logits, boxes, targets)
    for layer, expected_logits, expected_boxes in zip(together, logits, boxes, strict=True):
        apart = match(expected_logits, expected_boxes, targets)
        assert [(q.tolist(), t.tolist()) for q, t in layer] == [(q.tolist(), t.tolist()) for q, t in apart]
    assert len({tuple(layer[2][0].tolist()) for layer in together}) > 1


def test_default_costs_are_those_of_detr() -> None:
    torch.manual_seed(1)
    logits, boxes, targets = (
        torch.randn(2, 30, CLASSES + 1) * 3,
        random_boxes(2, 30),
        random_targets([10, 12]),
    )
    explicit = match(logits, boxes, targets, MatchSettings(category=1, bbox=5, giou=2))
    default = match(logits, boxes, targets)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(explicit, default, strict=True))


def test_images_without_objects_have_empty_matches() -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 5, CLASSES + 1), random_boxes(2, 5)
    for counts in ([0, 0], [0, 3]):
        matches = match(logits, boxes, random_targets(counts))
        assert [(len(q), len(t)) for q, t in matches] == [(n, n) for n in counts]
        assert matches[0][0].dtype == torch.int64


def test_boxes_without_area_can_be_matched() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.0, 0.3]]])
    targets = [{"labels": torch.tensor([1, 1]), "boxes": boxes[0].flip(0)}]
    ((query, target),) = match(torch.zeros(1, 2, CLASSES + 1), boxes, targets)
    assert (query.tolist(), target.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_of_low_precision_predictions_are_computed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(2, 50, CLASSES + 1).to(dtype), random_boxes(2, 50).to(dtype)
    targets = random_targets([12, 20])
    low = match(logits, boxes, targets)
    full = match(logits.float(), boxes.float(), targets)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(low, full, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["logits", "boxes", "targets"])
def test_values_that_are_not_finite_are_reported(value: float, where: str) -> None:
    torch.manual_seed(0)
    logits, boxes, targets = torch.randn(2, 5, CLASSES + 1), random_boxes(2, 5), random_targets([2, 3])
    {"logits": logits[1], "boxes": boxes[1], "targets": targets[1]["boxes"]}[where][1, 2] = value
    message = {"logits": "class logits", "boxes": "model's boxes", "targets": r"images \[1\]"}[where]
    with pytest.raises(FloatingPointError, match=message):
        match(logits, boxes, targets)


@pytest.mark.parametrize("costs", [(0, 0, 0), (-1, 5, 2), (1, float("nan"), 2)])
def test_costs_that_cannot_work_are_refused(costs: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"matching costs are 0|greater than or equal to 0|finite number"):
        MatchSettings(category=costs[0], bbox=costs[1], giou=costs[2])
