from typing import Any

import pytest
import torch
from torch import nn

from construction_panoptic.models.detr.losses import mask_losses
from construction_panoptic.models.detr.matcher import match
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.training.loading import build_loader, collate
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from construction_panoptic.training.tasks.protocol import Loss, TrainingTask, total_loss
from construction_panoptic.training.watch import NonFiniteLossError
from tests.unit.training.conftest import SPEC


@pytest.fixture
def batch(scene: Any, small_settings: Any) -> Any:
    samples = PanopticSamples(scene.panoptic, scene.images, scene.pngs, small_settings().augmentation)
    return collate([samples[0], samples[1]])


def computed(task: TrainingTask, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return total_loss(task.losses(batch), task.normalisers(batch))


def test_total_loss_weighs_every_loss_by_what_it_says() -> None:
    """Whatever it is called, and divides by at least 1."""
    value = torch.tensor(6.0, requires_grad=True)
    losses = {
        "keypoints": Loss(value, "points", 5.0),
        "loss_2": Loss(value, "images"),
        "error": Loss(torch.tensor(9.0), "nothing", 0.0),
    }
    total, terms = total_loss(losses, {"points": 3, "images": 2, "nothing": 0})
    assert total.item() == 5 * 2 + 3
    assert {name: term.item() for name, term in terms.items()} == {"keypoints": 2, "loss_2": 3, "error": 9}
    assert not any(term.requires_grad for term in terms.values())
    total.backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(5 / 3 + 1 / 2)


def test_detection_loss_is_the_weighted_sum_of_its_terms(
    batch: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    torch.manual_seed(0)
    weights = {"ce": 2, "bbox": 3, "giou": 4}
    task = DetectionTask(build_detr(**small_model).eval(), small_settings(losses=weights | {"no_object": 0.5}), SPEC)
    loss, terms = computed(task, batch)
    assert set(terms) == {"loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error"}
    expected = sum(weight * terms[f"loss_{name}"] for name, weight in weights.items())
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)
    assert loss.requires_grad
    task.model.train()
    loss, terms = computed(task, batch)
    both = sum(weight * (terms[f"loss_{name}"] + terms[f"loss_{name}_aux"]) for name, weight in weights.items())
    assert loss.item() == pytest.approx(float(both), rel=1e-5)


def test_mask_loss_equals_that_of_all_queries_masks(
    batch: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    torch.manual_seed(0)
    model = build_detr_panoptic(**small_model).train()
    task = MaskHeadTask(model, small_settings(), SPEC)
    loss, terms = computed(task, batch)
    outputs = model(batch.images, batch.padding_mask)
    predicted, truth = [], []
    for index, (queries, objects) in enumerate(match(outputs["pred_logits"], outputs["pred_boxes"], batch.targets)):
        for query, item in zip(queries.tolist(), objects.tolist(), strict=True):
            target = batch.targets[index]
            mask = torch.zeros(batch.images.shape[-2:], dtype=torch.bool)
            height, width = target["size"].tolist()
            mask[:height, :width] = target["id_map"] == target["segment_ids"][item]
            predicted.append(outputs["pred_masks"][index, query])
            truth.append(mask)
    losses = mask_losses(torch.stack(predicted), torch.stack(truth))
    assert terms.keys() == losses.keys()
    assert loss.item() == pytest.approx(sum(value.item() for value in losses.values()) / len(truth), rel=1e-4)
    assert not model.detr.training
    loss.backward()
    assert all(parameter.grad is None for parameter in model.detr.parameters())
    assert all(parameter.grad is not None for parameter in model.mask_head.parameters())


def test_mask_head_learns_from_an_image_without_segments(
    batch: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    target = batch.targets[0]
    target["id_map"].zero_()
    for name in ("labels", "boxes", "segment_ids"):
        target[name] = target[name][:0]
    single = collate([(batch.images[0], {**target, "file_name": "empty.png"})])
    loss, _ = computed(MaskHeadTask(build_detr_panoptic(**small_model), small_settings(), SPEC), single)
    loss.backward()
    assert loss.item() == 0


def test_outputs_that_are_not_finite_stop(
    batch: Any, scene: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    model = build_detr(**small_model)
    nn.init.constant_(model.class_embed.bias, float("nan"))
    task = DetectionTask(model, small_settings(), SPEC)
    with pytest.raises(FloatingPointError):
        task.losses(batch)
    with pytest.raises(NonFiniteLossError, match=r"detection: in validation, images site__001\.png, site__002\.png: "):
        task.validate([batch], lambda predictions: {"ap": float(len(list(predictions)))})


@pytest.mark.parametrize("kind", ["detection", "mask_head"])
def test_validation_losses_are_those_of_the_whole_set(
    kind: str, scene: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    """Of all layers, as in training; of batches of two, and of all images at once."""
    torch.manual_seed(0)
    settings = small_settings(precision="float32")
    samples = PanopticSamples(scene.panoptic, scene.images, scene.pngs, settings.augmentation)
    task: TrainingTask
    if kind == "detection":
        task = DetectionTask(build_detr(**small_model | {"norm": "frozen", "dropout": 0.0}), settings, SPEC)
    else:
        task = MaskHeadTask(build_detr_panoptic(**small_model), settings, SPEC)
    whole = collate([samples[index] for index in range(6)])
    with torch.no_grad():
        total, terms = computed(task, whole)
        task.model.eval()
        metrics = task.validate(whole.parts(6), lambda predictions: {"images": float(len(dict(predictions)))})
    assert metrics.pop("val/images") == 6
    assert metrics.keys() == {"val/loss", *(f"val/{name}" for name in terms)}
    assert metrics["val/loss"] == pytest.approx(total.item(), rel=1e-4)
    for name, value in terms.items():
        assert metrics[f"val/{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_loader_of_validation_may_be_any(scene: Any, small_model: dict[str, Any], small_settings: Any) -> None:
    samples = DetectionSamples(scene.detection, scene.images, small_settings().augmentation)
    task = DetectionTask(build_detr(**small_model).eval(), small_settings(), SPEC)
    seen: dict[int, Any] = {}

    def measure(predictions: Any) -> dict[str, float]:
        seen.update(predictions)
        return {}

    with torch.no_grad():
        task.validate(build_loader(samples, batch_size=4, shuffle=False), measure)
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    assert {box["category_id"] for boxes in seen.values() for box in boxes} <= {1, 2, 3, 4}
