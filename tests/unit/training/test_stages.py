from typing import Any

import pytest
import torch
from torch import nn

from construction_panoptic.models.detr.losses import mask_losses, total_loss
from construction_panoptic.models.detr.matcher import match
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.training.loading import build_loader, collate
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from construction_panoptic.training.tasks.stages import DetectionStage, MaskHeadStage, evaluate_losses

CPU = torch.device("cpu")


@pytest.fixture
def batch(scene: Any, small_settings: Any) -> Any:
    samples = PanopticSamples(scene.panoptic, scene.images, scene.pngs, small_settings().augmentation)
    return collate([samples[0], samples[1]])


def test_detection_loss_is_the_weighted_sum_of_its_terms(
    batch: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    torch.manual_seed(0)
    losses = {"ce": 2, "bbox": 3, "giou": 4, "no_object": 0.5}
    stage = DetectionStage(build_detr(**small_model).eval(), small_settings(losses=losses))
    loss, terms = stage.step(batch)
    assert set(terms) == {"loss_ce", "loss_bbox", "loss_giou", "class_error", "cardinality_error"}
    expected = 2 * terms["loss_ce"] + 3 * terms["loss_bbox"] + 4 * terms["loss_giou"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())
    stage.model.train()
    with_auxiliary, terms = stage.step(batch)
    assert with_auxiliary.item() > loss.item()
    assert not any(name.endswith("_0") for name in terms)


def test_mask_loss_equals_that_of_all_queries_masks(
    batch: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    torch.manual_seed(0)
    model = build_detr_panoptic(**small_model).train()
    stage = MaskHeadStage(model, small_settings())
    loss, terms = stage.step(batch)
    outputs = model(batch.images, batch.padding_mask)
    pairs = match(outputs["pred_logits"], outputs["pred_boxes"], batch.targets, stage.costs)
    predicted, truth = [], []
    for index, (queries, objects) in enumerate(pairs):
        for query, item in zip(queries.tolist(), objects.tolist(), strict=True):
            target = batch.targets[index]
            mask = torch.zeros(batch.images.shape[-2:], dtype=torch.bool)
            height, width = target["size"].tolist()
            mask[:height, :width] = target["id_map"] == target["segment_ids"][item]
            predicted.append(outputs["pred_masks"][index, query])
            truth.append(mask)
    losses = mask_losses(torch.stack(predicted), torch.stack(truth), len(truth))
    assert terms.keys() == losses.keys()
    assert loss.item() == pytest.approx(total_loss(losses).item(), rel=1e-4)
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
    loss, _ = MaskHeadStage(build_detr_panoptic(**small_model), small_settings()).step(single)
    loss.backward()
    assert loss.item() == 0


def test_mask_head_needs_id_maps(scene: Any, small_model: dict[str, Any], small_settings: Any) -> None:
    samples = DetectionSamples(scene.detection, scene.images, small_settings().augmentation)
    stage = MaskHeadStage(build_detr_panoptic(**small_model), small_settings())
    with pytest.raises(ValueError, match="no id maps"):
        stage.step(collate([samples[0]]))


def test_outputs_that_are_not_finite_stop(batch: Any, small_model: dict[str, Any], small_settings: Any) -> None:
    model = build_detr(**small_model)
    nn.init.constant_(model.class_embed.bias, float("nan"))
    with pytest.raises(FloatingPointError):
        DetectionStage(model, small_settings()).step(batch)


def test_evaluate_losses_is_the_mean_and_leaves_the_mode(
    scene: Any, small_model: dict[str, Any], small_settings: Any
) -> None:
    torch.manual_seed(0)
    settings = small_settings()
    stage = DetectionStage(build_detr(**small_model).train(), settings)
    samples = DetectionSamples(scene.detection, scene.images, settings.augmentation)
    loader = build_loader(samples, batch_size=2, shuffle=False)
    means = evaluate_losses(stage, loader, CPU)
    assert stage.model.training
    stage.model.eval()
    with torch.no_grad():
        losses = [stage.step(batch)[0].item() for batch in loader]
    assert means["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert {"loss_ce", "class_error"} <= means.keys()
    assert evaluate_losses(stage, [], CPU) == {}
