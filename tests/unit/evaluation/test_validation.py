import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from construction_panoptic.config.training import (
    AugmentationSettings,
    DetectionSettings,
    MaskHeadSettings,
    OptimizerSettings,
)
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.precision import average_precision
from construction_panoptic.evaluation.predictions import predict_boxes, predict_images, write_predictions
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.validation import detection_validator, panoptic_validator
from construction_panoptic.models.detr import DetrModel, DetrPanoptic, PanopticFeatures
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.parallel import collectives as team
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.tasks.stages import DetectionStage, MaskHeadStage
from tests.unit.small_model import CATEGORIES

SURE = 12.0  # a logit
NUM_CLASSES = 6
SPEC = ModelSpec(categories=CATEGORIES, threshold=0.3)


def truth_logits(labels: Tensor, queries: int) -> Tensor:
    """[1, Q, C + 1]: query i is sure of label i; the queries beyond are sure of no-object."""
    logits = torch.zeros(1, queries, NUM_CLASSES + 1)
    logits[0, torch.arange(queries), NUM_CLASSES] = SURE
    logits[0, torch.arange(len(labels)), NUM_CLASSES] = 0
    logits[0, torch.arange(len(labels)), labels] = SURE
    return logits


class KnowsBoxes(nn.Module):
    """A detector that answers with the targets of the batches it is shown, in their order."""

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answers = [answer(batch)[:2] for batch in batches]

    def forward(self, images: Tensor, padding_mask: Tensor | None) -> dict[str, Tensor]:
        logits, boxes = self.answers.pop(0)
        return {"pred_logits": logits, "pred_boxes": boxes}


class KnowsMasks(nn.Module):
    """A panoptic model that answers with the targets of the batches it is shown, in their order."""

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answers = [answer(batch) for batch in batches]

    def features(self, images: Tensor, padding_mask: Tensor | None) -> PanopticFeatures:
        logits, boxes, masks = self.answers.pop(0)
        return PanopticFeatures(logits, boxes, masks, masks, masks, padding_mask, (masks, masks, masks))

    def masks(self, features: PanopticFeatures, batch_index: Tensor, query_index: Tensor) -> Tensor:
        return features.queries[batch_index, query_index]


def answer(batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, boxes and mask logits (rubbish in the padding) that say what the targets of a batch are."""
    queries = 12
    size, height, width = len(batch), batch.images.shape[-2] // 4, batch.images.shape[-1] // 4
    boxes = torch.full((size, queries, 4), 0.5)
    masks = torch.zeros(size, queries, height, width)
    masks[:, -1] = 50.0
    logits = []
    for index, target in enumerate(batch.targets):
        labels = target["labels"]
        logits.append(truth_logits(labels, queries))
        boxes[index, : len(labels)] = target["boxes"]
        if "id_map" in target:
            cells = target["id_map"][2::4, 2::4]
            masks[index, :, : cells.shape[0], : cells.shape[1]] = -SURE
            for query, identity in enumerate(target["segment_ids"]):
                masks[index, query, : cells.shape[0], : cells.shape[1]][cells == identity] = SURE
    return torch.cat(logits), boxes, masks


def test_a_detector_that_knows_the_truth_scores_one(small_data: Any) -> None:
    loader = small_data.detection_loader(2)
    metrics = detection_validator(loader, small_data.detection)(KnowsBoxes(loader), 1)
    assert metrics.pop("val/ap") == pytest.approx(1)
    assert set(metrics) == {f"val/{name}" for name in ("ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")}
    assert list(metrics.values()) == pytest.approx([1] * 6)


def test_a_size_without_objects_has_no_metric(small_data: Any) -> None:
    annotations = [a for a in small_data.detection["annotations"] if a["area"] > 32**2]
    loader = small_data.detection_loader(2)
    metrics = detection_validator(loader, {**small_data.detection, "annotations": annotations})(KnowsBoxes(loader), 1)
    assert "val/ap_small" not in metrics
    assert metrics["val/ap_medium"] > 0


def test_a_model_that_knows_the_truth_scores_one(small_data: Any) -> None:
    """Images of different sizes in one batch, so that masks have padding to be cut off."""
    loader = small_data.panoptic_loader(3)
    assert any(batch.padding_mask is not None for batch in loader)
    metrics = panoptic_validator(loader, small_data.panoptic, small_data.pngs)(KnowsMasks(loader), 1)
    names = [f"val/{score}{kind}" for kind in ("", "_things", "_stuff") for score in ("pq", "sq", "rq")]
    assert set(metrics) == set(names)
    assert [metrics[name] for name in names if "rq" in name] == [1, 1, 1]
    assert min(metrics.values()) > 0.95


def test_detection_metrics_are_those_of_the_predictions(small_data: Any) -> None:
    loader = small_data.detection_loader()

    def model() -> Any:
        detector = KnowsBoxes(loader)
        for _, boxes in detector.answers:
            boxes[..., 2] *= 0.8
        return detector

    metrics = detection_validator(loader, small_data.detection, engine="pycocotools")(model(), 3)
    boxes = predict_boxes(DetrModel(model(), SPEC), loader)
    expected = average_precision(small_data.detection, boxes)
    assert metrics["val/ap"] == pytest.approx(expected["AP"])
    assert metrics["val/ar"] == pytest.approx(expected["AR100"])
    assert 0.2 < metrics["val/ar"] < 0.9


def test_panoptic_metrics_are_those_of_the_predictions(model: DetrPanoptic, small_data: Any, tmp_path: Path) -> None:
    loader = small_data.panoptic_loader()
    validate = panoptic_validator(
        loader, small_data.pngs.parent / "panoptic.json", small_data.pngs, SPEC, scratch=tmp_path
    )
    metrics = validate(model, 1)
    assert list(tmp_path.iterdir()) == []
    predictions = predict_images(DetrModel(model, SPEC), loader)
    write_predictions(predictions, tmp_path)
    quality = panoptic_quality(small_data.panoptic, small_data.pngs, tmp_path / "predictions.json", tmp_path)
    assert metrics["val/pq"] == quality["All"]["pq"]
    assert metrics["val/sq_stuff"] == quality["Stuff"]["sq"]
    assert validate(model, 2) == metrics


def test_scratch_files_go_after_an_error(model: DetrPanoptic, small_data: Any, tmp_path: Path) -> None:
    validate = panoptic_validator(
        small_data.panoptic_loader(), small_data.panoptic, tmp_path / "nowhere", scratch=tmp_path
    )
    with pytest.raises(InputDataError, match="nowhere"):
        validate(model, 1)
    assert list(tmp_path.iterdir()) == []


class AsksToStop:
    """A loader during whose second batch the process is asked to stop."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.stop, self.given = loader, StopRequest(), 0

    def __iter__(self) -> Any:
        for batch in self.loader:
            self.given += 1
            if self.given == 2:
                self.stop.number = signal.SIGTERM
            yield batch


def test_a_validation_ends_after_the_batch_in_which_it_is_asked_to_stop(
    model: DetrPanoptic, small_data: Any, tmp_path: Path
) -> None:
    loader = AsksToStop(small_data.detection_loader(1))
    with pytest.raises(team.StoppedError):
        detection_validator(loader, small_data.detection, stop=loader.stop)(model.detr, 1)
    assert loader.given == 2
    loader = AsksToStop(small_data.panoptic_loader(1))
    validate = panoptic_validator(loader, small_data.panoptic, small_data.pngs, scratch=tmp_path, stop=loader.stop)
    with pytest.raises(team.StoppedError):
        validate(model, 1)
    assert loader.given == 2
    assert list(tmp_path.iterdir()) == []
    assert model.training


def test_a_kind_of_class_that_is_absent_has_no_metric(small_data: Any) -> None:
    categories = [{**category, "isthing": 0} for category in small_data.panoptic["categories"]]
    truth = {**small_data.panoptic, "categories": categories}
    loader = small_data.panoptic_loader(2)
    metrics = panoptic_validator(loader, truth, small_data.pngs)(KnowsMasks(loader), 1)
    assert {"val/pq", "val/pq_stuff"} <= set(metrics)
    assert not any("things" in name for name in metrics)


def test_nothing_to_validate_on_is_said_before_training(small_data: Any, tmp_path: Path) -> None:
    crowd = [{**annotation, "iscrowd": 1} for annotation in small_data.detection["annotations"]]
    with pytest.raises(InputDataError, match="no object to validate on"):
        detection_validator([], {**small_data.detection, "annotations": crowd})
    empty = [{**a, "segments_info": []} for a in small_data.panoptic["annotations"]]
    with pytest.raises(InputDataError, match="no segment to validate on"):
        panoptic_validator([], {**small_data.panoptic, "annotations": empty}, tmp_path)
    with pytest.raises(InputDataError, match=r"none\.json does not exist"):
        detection_validator([], tmp_path / "none.json")
    with pytest.raises(InputDataError, match="a COCO file is needed"):
        panoptic_validator([], {"images": []}, tmp_path)


def test_losses_are_given_beside_the_scores(model: DetrPanoptic, small_data: Any) -> None:
    settings = DetectionSettings(device="cpu")
    loader = small_data.detection_loader()
    stage = DetectionStage(model.detr, settings)
    metrics = detection_validator(loader, small_data.detection, stage=stage)(model.detr, 1)
    assert metrics["val/loss"] > 0
    assert {"val/loss_ce", "val/loss_bbox", "val/loss_giou", "val/ap"} <= set(metrics)
    panoptic_loader = small_data.panoptic_loader()
    mask_stage = MaskHeadStage(model, settings)
    validate = panoptic_validator(panoptic_loader, small_data.panoptic, small_data.pngs, stage=mask_stage)
    assert {"val/loss", "val/loss_mask", "val/loss_dice", "val/pq"} <= set(validate(model, 1))


@pytest.mark.parametrize("stage_name", ["detection", "mask_head"])
def test_training_is_the_same_with_and_without_validation(
    stage_name: str, model: DetrPanoptic, small_data: Any
) -> None:
    """Bit for bit, with dropout at work in the detector and random augmentation."""
    augmentation = AugmentationSettings(
        sides=(48, 64), max_side=96, first_sides=(48,), crop_min=32, crop_max=48, evaluation_side=64
    )
    initial = {name: value.clone() for name, value in model.state_dict().items()}

    def parameters(validated: bool) -> list[Tensor]:
        model.load_state_dict(initial)
        options: dict[str, Any] = {
            "epochs": 2,
            "batch_size": 2,
            "device": "cpu",
            "augmentation": augmentation,
            "optimizer": OptimizerSettings(lr=1e-3),
        }
        if stage_name == "detection":
            settings = DetectionSettings(**options)
            model.detr.requires_grad_(True)
            stage: Any = DetectionStage(model.detr, settings)
            samples: Any = DetectionSamples(small_data.detection, small_data.images, augmentation, training=True)
            validate = detection_validator(small_data.detection_loader(), small_data.detection)
        else:
            settings = MaskHeadSettings(**options)
            stage = MaskHeadStage(model, settings)
            loader = small_data.panoptic_loader()
            samples = loader.dataset
            validate = panoptic_validator(loader, small_data.panoptic, small_data.pngs, SPEC)
        train_loader = build_loader(samples, batch_size=2, shuffle=True)
        results = list(train(stage, train_loader, settings, validate=validate if validated else None))
        assert ("time/validation_seconds" in results[-1].timings[-1]) == validated
        return [value.clone() for value in model.state_dict().values()]

    plain, validated = parameters(False), parameters(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, validated, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(plain, initial.values(), strict=True))
