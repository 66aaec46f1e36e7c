"""Validation during training: callbacks that score the model on the validation set.

A callback takes the model and the number of epochs done and gives metrics named ``val/…``, fractions in 0…1
(losses apart). It draws nothing from the global random generators, so that training is the same with and
without it.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.precision import PrecisionEngine, average_precision
from construction_panoptic.evaluation.predictions import (
    PREDICTIONS_FILE,
    ImagePrediction,
    predict_boxes,
    predict_images,
    write_predictions,
)
from construction_panoptic.evaluation.quality import QualityEngine, load_json, panoptic_quality
from construction_panoptic.models.detr.panoptic_model import DetrModel
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.parallel import collectives as team
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.tasks.stages import Stage, evaluate_losses

Validator = Callable[[nn.Module, int], dict[str, float]]

# Metric of the validation → COCO's number.
_PRECISION_METRICS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ar": "AR100",
}


def detection_validator(
    loader: Iterable[Batch],
    truth: Path | str | dict[str, Any],
    *,
    engine: PrecisionEngine = "hotcoco",
    precision: str = "auto",
    stage: Stage | None = None,
    watch: Callable[[list[dict[str, Any]]], None] | None = None,
    stop: StopRequest | None = None,
) -> Validator:
    """Make the callback of the detection stage.

    Args:
        loader: the validation set, in batches.
        truth: its COCO detection file, as a path or loaded.
        engine: see `average_precision`.
        precision: arithmetic of the network, ``auto``, ``float32`` or ``bfloat16``.
        stage: also give this stage's losses, for a second pass over the images.
        watch: called with all predicted boxes, as COCO box results.
        stop: looked at after every batch; when it is set, the callback ends by `team.StoppedError`.

    Returns:
        A callback that gives ``val/ap``, ``val/ap50``, ``val/ap75``, ``val/ap_small``, ``val/ap_medium``,
        ``val/ap_large``, ``val/ar`` (at most 100 boxes), except for sizes that the set has no object of; with
        ``stage`` also ``val/loss`` and its terms.

    Raises:
        InputDataError: the truth is missing, malformed, or has no object.
    """
    data = _load(truth)
    if all(annotation.get("iscrowd", 0) for annotation in data["annotations"]):
        raise InputDataError(f"{_name(truth)}: no object to validate on; put images with objects into the split.")
    spec = ModelSpec(categories=tuple(data["categories"]))
    stop = stop or StopRequest()

    def validate(model: nn.Module, _epoch: int) -> dict[str, float]:
        batches = team.until_stopped(loader, stop)
        own = predict_boxes(DetrModel(model, spec), batches, precision=precision)
        boxes = list(team.merged(own, key=lambda box: box["image_id"]))

        def measure() -> dict[str, float]:
            if watch is not None:
                watch(boxes)
            scores = average_precision(data, boxes, engine=engine)
            metrics = {f"val/{name}": scores[number] for name, number in _PRECISION_METRICS.items()}
            return {name: value for name, value in metrics.items() if value != -1}

        return team.from_first(measure) | _losses(stage, team.until_stopped(loader, stop), precision)

    return validate


def panoptic_validator(
    loader: Iterable[Batch],
    truth: Path | str | dict[str, Any],
    truth_folder: Path | str,
    spec: ModelSpec | None = None,
    *,
    engine: QualityEngine = "hotcoco",
    precision: str = "auto",
    stage: Stage | None = None,
    watch: Callable[[ImagePrediction], None] | None = None,
    scratch: Path | str | None = None,
    stop: StopRequest | None = None,
) -> Validator:
    """Make the callback of the mask-head stage.

    Args:
        loader: the validation set, in batches.
        truth: its COCO panoptic file, as a path or loaded.
        truth_folder: folder of the truth's PNGs.
        spec: how the outputs are merged; by default as published.
        engine: see `panoptic_quality`.
        precision: arithmetic of the network, ``auto``, ``float32`` or ``bfloat16``.
        stage: also give this stage's losses, for a second pass over the images.
        watch: called with each prediction.
        scratch: an existing folder for the predicted PNGs, which are removed at once; the system's by
            default.
        stop: looked at after every batch; when it is set, the callback ends by `team.StoppedError`.

    Returns:
        A callback that gives ``val/pq``, ``val/sq``, ``val/rq``, and the same ending in ``_things`` and
        ``_stuff`` where there are such classes; with ``stage`` also ``val/loss`` and its terms.

    Raises:
        InputDataError: the truth is missing, malformed, or has no segment.
    """
    data = _load(truth)
    segments = (s for annotation in data["annotations"] for s in annotation.get("segments_info", []))
    if all(segment.get("iscrowd", 0) for segment in segments):
        raise InputDataError(f"{_name(truth)}: no segment to validate on; put images with segments into the split.")
    spec = spec or ModelSpec(categories=tuple(data["categories"]))
    stop = stop or StopRequest()

    def validate(model: nn.Module, _epoch: int) -> dict[str, float]:
        batches = team.until_stopped(loader, stop)
        own = predict_images(DetrModel(model, spec), batches, precision=precision)
        predictions = team.merged(own, key=lambda prediction: prediction.image_id)

        def measure() -> dict[str, float]:
            with tempfile.TemporaryDirectory(prefix="validation_", dir=scratch) as name:
                folder = Path(name)
                write_predictions(_watched(predictions, watch), folder)
                quality = panoptic_quality(data, truth_folder, folder / PREDICTIONS_FILE, folder, engine=engine)
            return _quality_metrics(quality)

        return team.from_first(measure) | _losses(stage, team.until_stopped(loader, stop), precision)

    return validate


def _watched(
    predictions: Iterable[ImagePrediction], watch: Callable[[ImagePrediction], None] | None
) -> Iterator[ImagePrediction]:
    for prediction in predictions:
        if watch is not None:
            watch(prediction)
        yield prediction


def _quality_metrics(quality: dict[str, Any]) -> dict[str, float]:
    metrics = {
        f"val/{score}{suffix}": quality[split][score]
        for split, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff"))
        for score in ("pq", "sq", "rq")
    }
    return {name: value for name, value in metrics.items() if value is not None}


def _losses(stage: Stage | None, batches: Iterable[Batch], precision: str) -> dict[str, float]:
    if stage is None:
        return {}
    device: torch.device = next(stage.model.parameters()).device
    return {f"val/{name}": value for name, value in evaluate_losses(stage, batches, device, precision).items()}


def _load(truth: Path | str | dict[str, Any]) -> dict[str, Any]:
    data = load_json(truth)
    if not isinstance(data, dict) or not {"annotations", "categories"} <= data.keys():
        raise InputDataError(f"{_name(truth)}: no annotations and categories in it; a COCO file is needed.")
    return data


def _name(truth: Path | str | dict[str, Any]) -> str:
    return str(truth) if isinstance(truth, Path | str) else "the validation set"
