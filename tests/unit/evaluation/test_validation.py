import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from construction_panoptic.annotations.panoptic_png import decode_id_map, encode_id_map
from construction_panoptic.config.training import (
    AugmentationSettings,
    DetectionSettings,
    MaskHeadSettings,
    OptimizerSettings,
)
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.precision import average_precision
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.validation import box_metrics, panoptic_metrics
from construction_panoptic.models.detr import DetrPanoptic
from construction_panoptic.models.protocol import Segmentation
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.parallel import collectives
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from construction_panoptic.training.tasks.protocol import TrainingTask
from tests.unit.small_model import CATEGORIES

STILL = DetectionSettings(device="cpu")
SPEC = ModelSpec(categories=CATEGORIES, threshold=0.3)


def true_boxes(data: Any, scale: float = 1.0) -> list[tuple[int, list[dict[str, Any]]]]:
    """The truth as predictions, each box of a score of its own and ``scale`` as wide."""
    found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data.detection["images"]}
    for number, item in enumerate(data.detection["annotations"]):
        x, y, width, height = item["bbox"]
        box = {"category_id": item["category_id"], "bbox": [x, y, width * scale, height], "score": 1 - number / 1000}
        found[item["image_id"]].append(box)
    return list(found.items())


def true_segments(data: Any) -> list[tuple[int, Segmentation]]:
    return [
        (a["image_id"], Segmentation(decode_id_map(data.pngs / a["file_name"]).astype(np.int32), a["segments_info"]))
        for a in data.panoptic["annotations"]
    ]


def tasks(model: DetrPanoptic, data: Any) -> list[tuple[TrainingTask, Any, Any]]:
    """Each with its loader and its measure."""
    return [
        (DetectionTask(model.detr, STILL, SPEC), data.detection_loader(1), box_metrics(data.detection)),
        (
            MaskHeadTask(model, MaskHeadSettings(device="cpu"), SPEC),
            data.panoptic_loader(1),
            panoptic_metrics(data.panoptic, data.pngs),
        ),
    ]


def test_a_detector_that_knows_the_truth_scores_one(small_data: Any) -> None:
    metrics = dict(box_metrics(small_data.detection)(true_boxes(small_data)))
    assert metrics.pop("ap") == pytest.approx(1)
    assert set(metrics) == {"ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar"}
    assert list(metrics.values()) == pytest.approx([1] * 6)


def test_a_size_without_objects_has_no_metric(small_data: Any) -> None:
    annotations = [a for a in small_data.detection["annotations"] if a["area"] > 32**2]
    metrics = box_metrics({**small_data.detection, "annotations": annotations})(true_boxes(small_data))
    assert "ap_small" not in metrics
    assert metrics["ap_medium"] > 0


def test_box_metrics_are_those_of_coco(small_data: Any) -> None:
    predictions = true_boxes(small_data, scale=0.8)
    metrics = box_metrics(small_data.detection)(reversed(predictions))
    boxes = [{"image_id": image_id, **box} for image_id, found in predictions for box in found]
    expected = average_precision(small_data.detection, boxes, engine="pycocotools")
    assert metrics["ap"] == pytest.approx(expected["AP"])
    assert metrics["ar"] == pytest.approx(expected["AR100"])
    assert 0.2 < metrics["ar"] < 0.9


def test_a_model_that_knows_the_truth_scores_one(small_data: Any) -> None:
    metrics = panoptic_metrics(small_data.panoptic, small_data.pngs)(true_segments(small_data))
    assert metrics == {f"{score}{kind}": 1 for kind in ("", "_things", "_stuff") for score in ("pq", "sq", "rq")}


def test_panoptic_metrics_are_those_of_the_files(model: DetrPanoptic, small_data: Any, tmp_path: Any) -> None:
    """What the model predicts, with segments that match, overlap void, and have no partner."""
    _, (task, loader, measure) = tasks(model, small_data)
    seen: dict[int, Segmentation] = {}

    def measured(predictions: Any) -> Any:
        seen.update(predictions)
        for image_id, truth in true_segments(small_data)[:2]:
            shifted = np.roll(truth.id_map, 5, axis=1)
            seen[image_id] = Segmentation(shifted, [s for s in truth.segments if (shifted == s["id"]).any()])
        return measure(seen.items())

    with torch.no_grad():
        metrics = task.validate(loader, measured)
    annotations = []
    for image_id, prediction in seen.items():
        (tmp_path / f"{image_id}.png").write_bytes(encode_id_map(prediction.id_map))
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": prediction.segments})
    quality = panoptic_quality(small_data.panoptic, small_data.pngs, {"annotations": annotations}, tmp_path)
    assert 0.1 < metrics["val/pq"] < 0.9
    for name, part in (("", "All"), ("_things", "Things"), ("_stuff", "Stuff")):
        for score in ("pq", "sq", "rq"):
            assert metrics[f"val/{score}{name}"] == pytest.approx(quality[part][score], abs=1e-12)


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


def test_a_validation_ends_after_the_batch_in_which_it_is_asked_to_stop(model: DetrPanoptic, small_data: Any) -> None:
    for task, loader, measure in tasks(model, small_data):
        asking = AsksToStop(loader)
        with torch.no_grad(), pytest.raises(collectives.StoppedError):
            task.validate(asking, measure, asking.stop)
        assert asking.given == 2


def test_a_kind_of_class_that_is_absent_has_no_metric(small_data: Any) -> None:
    categories = [{**category, "isthing": 0} for category in small_data.panoptic["categories"]]
    metrics = panoptic_metrics({**small_data.panoptic, "categories": categories}, small_data.pngs)(
        true_segments(small_data)
    )
    assert {"pq", "pq_stuff"} <= set(metrics)
    assert not any("things" in name for name in metrics)


def test_nothing_to_validate_on_is_said_before_training(small_data: Any, tmp_path: Any) -> None:
    crowd = [{**annotation, "iscrowd": 1} for annotation in small_data.detection["annotations"]]
    with pytest.raises(InputDataError, match="no object to validate on"):
        box_metrics({**small_data.detection, "annotations": crowd})
    empty = [{**a, "segments_info": []} for a in small_data.panoptic["annotations"]]
    with pytest.raises(InputDataError, match="no segment to validate on"):
        panoptic_metrics({**small_data.panoptic, "annotations": empty}, tmp_path)
    for make in (box_metrics, lambda truth: panoptic_metrics(truth, tmp_path)):
        with pytest.raises(InputDataError, match="a COCO file is needed"):
            make({"images": []})


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
            model.detr.requires_grad_(True)
            task: TrainingTask = DetectionTask(model.detr, DetectionSettings(**options), SPEC)
            samples: Any = DetectionSamples(small_data.detection, small_data.images, augmentation, training=True)
            loader, measure = small_data.detection_loader(), box_metrics(small_data.detection)
        else:
            task = MaskHeadTask(model, MaskHeadSettings(**options), SPEC)
            loader, measure = small_data.panoptic_loader(), panoptic_metrics(small_data.panoptic, small_data.pngs)
            samples = loader.dataset
        validate = (lambda: task.validate(loader, measure)) if validated else None
        results = list(train(task, build_loader(samples, batch_size=2, shuffle=True), validate=validate))
        assert ("time/validation_seconds" in results[-1].timings[-1]) == validated
        return [value.clone() for value in model.state_dict().values()]

    plain, validated = parameters(False), parameters(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, validated, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(plain, initial.values(), strict=True))
