"""Nodes that put the best model into files for others."""

from typing import Any

from construction_panoptic.config.prediction import ExportSettings
from construction_panoptic.prediction.models import ModelToServe, TrainedModel, trained_model
from construction_panoptic.prediction.onnx_export import onnx_model


def describe_model(checkpoint: dict[str, Any]) -> TrainedModel:
    """Take the model and all that it takes to use it out of the best checkpoint; optimiser and history stay behind."""
    return trained_model(checkpoint, "mask_head.best")


def convert_to_onnx(trained: TrainedModel) -> tuple[bytes, dict[str, Any]]:
    """Convert the exported model to ONNX, and compare the two."""
    return onnx_model(trained)


def name_model(trained: TrainedModel, parameters: ExportSettings) -> ModelToServe:
    """Give the exported model its name in the model registry."""
    return ModelToServe(trained, parameters.registered_name)
