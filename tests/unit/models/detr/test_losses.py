from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

from construction_panoptic.models.detr.losses import detection_losses, mask_losses, matched_target_masks, normalisers
from construction_panoptic.models.detr.matcher import Matches, match

CLASSES = 9
DIVISOR = {
    "loss_ce": "queries", "loss_bbox": "boxes", "loss_giou": "boxes", "class_error": "matched",
    "cardinality_error": "images", "loss_mask": "boxes", "loss_dice": "boxes",
}  # fmt: skip
WEIGHT_OF = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2, "loss_mask": 1, "loss_dice": 1}

Target = dict[str, Tensor]


def random_boxes(*shape: int) -> Tensor:
    return torch.cat([0.2 + 0.6 * torch.rand(*shape, 2), 0.01 + 0.3 * torch.rand(*shape, 2)], dim=-1)


def random_outputs(images: int, queries: int, layers: int) -> dict[str, Any]:
    every = [
        {
            "pred_logits": (2 * torch.randn(images, queries, CLASSES + 1)).requires_grad_(),
            "pred_boxes": random_boxes(images, queries).requires_grad_(),
        }
        for _ in range(layers)
    ]
    return {**every[0], "aux_outputs": every[1:]}


def random_targets(counts: list[int], size: tuple[int, int] = (24, 32)) -> list[Target]:
    return [
        {
            "labels": torch.randint(CLASSES, (n,)),
            "boxes": random_boxes(n),
            "masks": torch.rand(n, *size) > 0.6,
        }
        for n in counts
    ]


def random_counts(seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 8, size=int(generator.integers(1, 5))).tolist()
    return [counts[0] + 1, *counts[1:]]


def transformers_losses(outputs: dict[str, Any], targets: list[Target], terms: list[str]) -> dict[str, Tensor]:
    def renamed(layer: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "logits": layer["pred_logits"],
            **{k: v for k, v in layer.items() if k in ("pred_boxes", "pred_masks")},
        }

    theirs = {
        **renamed(outputs),
        "auxiliary_outputs": [renamed(layer) for layer in outputs.get("aux_outputs", [])],
    }
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = ImageLoss(matcher, num_classes=CLASSES, eos_coef=0.1, losses=terms)
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"], "masks": t["masks"]} for t in targets]
    losses: dict[str, Tensor] = criterion(theirs, labels)
    return losses


def matched_masks(pred_masks: Tensor, matches: Matches) -> Tensor:
    return torch.cat([masks[query] for masks, (query, _) in zip(pred_masks, matches, strict=True)])


def our_detection_losses(outputs: dict[str, Any], targets: list[Target], no_object: float = 0.1) -> dict[str, Tensor]:
    """Divided, under the names of the other implementation."""
    layers = detection_losses(outputs, targets, no_object_weight=no_object)
    counts = normalisers(targets, outputs["pred_logits"].shape[1], no_object)
    return {
        name + (f"_{number - 1}" if number else ""): value / (counts[DIVISOR[name]] or 1)
        for number, layer in enumerate(layers)
        for name, value in layer.items()
    }


def our_mask_losses(outputs: dict[str, Any], targets: list[Target], size: tuple[int, int]) -> dict[str, Tensor]:
    matches = match(outputs["pred_logits"], outputs["pred_boxes"], targets)
    height, width = size
    truth = torch.cat(
        [
            nn.functional.pad(t["masks"][chosen], (0, width - t["masks"].shape[2], 0, height - t["masks"].shape[1]))
            for t, (_, chosen) in zip(targets, matches, strict=True)
        ]
    )
    number = sum(len(target["labels"]) for target in targets)
    losses = mask_losses(matched_masks(outputs["pred_masks"], matches), truth)
    return {name: value / max(number, 1) for name, value in losses.items()}


def all_losses(outputs: dict[str, Any], targets: list[Target], size: tuple[int, int]) -> dict[str, Tensor]:
    return our_detection_losses(outputs, targets) | our_mask_losses(outputs, targets, size)


def weighted(losses: dict[str, Tensor]) -> Tensor:
    kinds = {name: name.rstrip("_0123456789") for name in losses}
    return torch.stack([WEIGHT_OF[kinds[name]] * losses[name] for name in losses if kinds[name] in WEIGHT_OF]).sum()


@pytest.mark.parametrize("seed", range(12))
def test_every_term_of_every_layer_equals_transformers(seed: int) -> None:
    torch.manual_seed(seed)
    counts = random_counts(seed)
    outputs = random_outputs(len(counts), queries=[1, 10, 100][seed % 3], layers=[1, 3, 6][seed % 3])
    targets = random_targets(counts)
    expected = transformers_losses(outputs, targets, ["labels", "boxes", "cardinality"])

    losses = our_detection_losses(outputs, targets)

    # class_error is no part of the other implementation; it has a test of its own. Errors are of the last layer.
    compared = {name for name in expected if not name.startswith("cardinality_error_")}
    assert set(losses) == compared | {"class_error"}
    for name, value in [(name, expected[name]) for name in compared]:
        assert losses[name].shape == ()
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_equal_transformers(seed: int) -> None:
    torch.manual_seed(seed)
    counts = random_counts(seed)
    outputs = random_outputs(len(counts), queries=20, layers=3)
    targets = random_targets(counts)
    leaves = [layer[name] for layer in (outputs, *outputs["aux_outputs"]) for name in ("pred_logits", "pred_boxes")]
    theirs = transformers_losses(outputs, targets, ["labels", "boxes"])
    expected_loss = weighted(theirs)

    loss = weighted(our_detection_losses(outputs, targets))

    torch.testing.assert_close(loss, expected_loss, atol=1e-4, rtol=1e-6)
    expected = torch.autograd.grad(expected_loss, leaves)
    for ours, theirs_ in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs_, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_mask_losses_equal_transformers(seed: int) -> None:
    torch.manual_seed(seed)
    counts = random_counts(seed)
    outputs = random_outputs(len(counts), queries=12, layers=1)
    outputs["pred_masks"] = torch.randn(len(counts), 12, 6, 8) * 4
    targets = random_targets(counts, size=(24, 32))
    for number, target in enumerate(targets):  # images of several sizes, padded to the largest
        target["masks"] = target["masks"][:, : 24 - number, : 32 - 2 * number]
    expected = transformers_losses(outputs, targets, ["masks"])

    losses = our_mask_losses(outputs, targets, (24, 32))

    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(losses[name], expected[name], atol=1e-5, rtol=1e-5)


class SmallHeads(nn.Module):
    """Classes, boxes and masks of two layers from a few numbers: enough to carry every gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 16)
        self.classes = nn.Linear(16, CLASSES + 1)
        self.boxes = nn.Linear(16, 4)
        self.masks = nn.Linear(16, 6 * 8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        first = self.trunk(x).tanh()
        layers = [{"pred_logits": self.classes(h), "pred_boxes": self.boxes(h).sigmoid()} for h in (first.sin(), first)]
        return {**layers[1], "aux_outputs": layers[:1], "pred_masks": self.masks(first).unflatten(-1, (6, 8))}


def test_one_adamw_step_equals_transformers() -> None:
    torch.manual_seed(0)
    ours = SmallHeads()
    theirs = copy.deepcopy(ours)
    x, targets = torch.randn(3, 10, 6), random_targets([4, 0, 6])
    # A large rate, so that a gradient of the wrong size or sign shows after one step.
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.05, eps=1e-3, weight_decay=1e-2) for m in (ours, theirs)]
    before = copy.deepcopy(ours.state_dict())

    weighted(all_losses(ours(x), targets, (24, 32))).backward()
    expected = transformers_losses(theirs(x), targets, ["labels", "boxes", "masks"])
    weighted(expected).backward()
    for optimizer in optimizers:
        optimizer.step()

    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-5, msg=name)
        assert (value - before[name]).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_class_error_is_the_percentage_of_wrong_matched_queries(seed: int) -> None:
    torch.manual_seed(seed)
    outputs, targets = random_outputs(3, queries=10, layers=1), random_targets([5, 0, 7])
    wrong = total = 0
    matches = match(outputs["pred_logits"], outputs["pred_boxes"], targets)
    for logits, target, (queries, chosen) in zip(outputs["pred_logits"], targets, matches, strict=True):
        for query, number in zip(queries.tolist(), chosen.tolist(), strict=True):
            total += 1
            wrong += int(logits[query].argmax()) != int(target["labels"][number])
    losses = our_detection_losses(outputs, targets)
    assert losses["class_error"].item() == pytest.approx(100 * wrong / total, abs=1e-4)


def test_normalisers_follow_from_the_targets() -> None:
    targets = random_targets([3, 0, 7])
    counts = normalisers(targets, 5, 0.4)
    assert counts == {"images": 3, "boxes": 10, "matched": 8, "queries": pytest.approx(8 + 0.4 * 7)}
    parts = [normalisers([target], 5, 0.4) for target in targets]
    assert counts == {name: pytest.approx(sum(part[name] for part in parts)) for name in counts}


def test_no_object_weight_is_the_weight_of_the_last_class() -> None:
    torch.manual_seed(0)
    outputs, targets = random_outputs(1, queries=5, layers=1), random_targets([2])
    ((queries, chosen),) = match(outputs["pred_logits"], outputs["pred_boxes"], targets)
    label_of = dict(zip(queries.tolist(), targets[0]["labels"][chosen].tolist(), strict=True))
    log_probability = outputs["pred_logits"][0].detach().log_softmax(-1)
    weighted = [(0.4 if q not in label_of else 1.0, -log_probability[q, label_of.get(q, CLASSES)]) for q in range(5)]
    expected = sum(w * float(nll) for w, nll in weighted) / sum(w for w, _ in weighted)
    losses = our_detection_losses(outputs, targets, 0.4)
    assert losses["loss_ce"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("queries", [1, 5])
def test_images_without_any_object_give_finite_gradients(queries: int) -> None:
    torch.manual_seed(0)
    outputs, targets = random_outputs(2, queries=queries, layers=2), random_targets([0, 0])
    outputs["pred_masks"] = torch.randn(2, queries, 6, 8, requires_grad=True)
    losses = all_losses(outputs, targets, (24, 32))
    for name in ("loss_bbox", "loss_giou", "loss_mask", "loss_dice", "loss_bbox_0"):
        assert losses[name].item() == 0
    assert losses["class_error"].item() == 0
    weighted(losses).backward()
    for leaf in (outputs["pred_logits"], outputs["pred_boxes"], outputs["pred_masks"]):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert outputs["pred_logits"].grad.abs().sum() > 0
    assert outputs["pred_boxes"].grad.abs().sum() == 0


def test_boxes_without_area_and_a_single_query_give_finite_losses_and_gradients() -> None:
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    outputs = {
        "pred_logits": torch.zeros(2, 1, CLASSES + 1, requires_grad=True),
        "pred_boxes": point.repeat(2, 1)[:, None].requires_grad_(),
    }
    targets = [
        {"labels": torch.tensor([2]), "boxes": point},
        {"labels": torch.tensor([2, 3]), "boxes": torch.tensor([[0.2, 0.2, 0.0, 0.1], [0.5, 0.5, 0.2, 0.2]])},
    ]
    losses = our_detection_losses(outputs, targets)
    weighted(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in outputs.values())


def test_predictions_that_are_not_finite_are_reported() -> None:
    outputs, targets = random_outputs(1, queries=3, layers=2), random_targets([2])
    outputs["aux_outputs"][0]["pred_logits"] = torch.full((1, 3, CLASSES + 1), float("nan"))
    with pytest.raises(FloatingPointError, match="class logits"):
        detection_losses(outputs, targets)


def test_losses_are_float32_under_autocast_and_from_low_precision() -> None:
    torch.manual_seed(0)
    outputs, targets = random_outputs(2, queries=6, layers=2), random_targets([3, 2])
    outputs["pred_masks"] = torch.randn(2, 6, 6, 8)
    exact = all_losses(outputs, targets, (24, 32))
    low = {name: value.bfloat16() for name, value in outputs.items() if name != "aux_outputs"}
    low["pred_boxes"] = outputs["pred_boxes"]
    with torch.autocast("cpu", torch.bfloat16):
        losses = all_losses(low, targets, (24, 32))
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], atol=0.05, rtol=0.05)


def test_matched_masks_are_those_of_the_segments_in_the_padded_image() -> None:
    torch.manual_seed(0)
    id_maps = [torch.randint(0, 4, (5, 7)), torch.randint(0, 3, (6, 4)), torch.randint(0, 2, (3, 3))]
    ids = [torch.tensor([3, 1, 2]), torch.tensor([70000, 1]), torch.tensor([], dtype=torch.int64)]
    id_maps[1][id_maps[1] == 2] = 70000
    matches = [
        (torch.tensor([0, 4]), torch.tensor([2, 0])),
        (torch.tensor([7]), torch.tensor([1])),
        (ids[2], ids[2]),
    ]
    targets = [{"id_map": m.int(), "segment_ids": i} for m, i in zip(id_maps, ids, strict=True)]

    masks = matched_target_masks(targets, matches, (6, 7))

    assert masks.shape == (3, 6, 7)
    assert masks.dtype == torch.bool
    assert torch.equal(masks[0, :5], id_maps[0] == 2)
    assert torch.equal(masks[1, :5], id_maps[0] == 3)
    assert torch.equal(masks[2, :, :4], id_maps[1] == 1)
    assert not masks[0, 5].any()
    assert not masks[2, :, 4:].any()


@pytest.mark.gpu
def test_losses_on_cuda_equal_those_on_the_cpu() -> None:
    torch.manual_seed(0)
    outputs, targets = random_outputs(2, queries=20, layers=3), random_targets([5, 0])
    outputs["pred_masks"] = torch.randn(2, 20, 6, 8)
    expected = all_losses(outputs, targets, (24, 32))

    def to_cuda(layer: dict[str, Any]) -> dict[str, Any]:
        return {name: value.cuda() for name, value in layer.items() if name != "aux_outputs"}

    there = {**to_cuda(outputs), "aux_outputs": [to_cuda(layer) for layer in outputs["aux_outputs"]]}
    losses = all_losses(there, [to_cuda(target) for target in targets], (24, 32))
    for name, value in losses.items():
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), expected[name], atol=1e-4, rtol=1e-4)
