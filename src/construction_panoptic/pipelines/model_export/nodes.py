"""Nodes that put the best model into files for others."""

from typing import Any

from construction_panoptic.config.prediction import ExportSettings
from construction_panoptic.models.files import model_of
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.answering import ModelToServe
from construction_panoptic.prediction.onnx_export import onnx_model


def take_model(checkpoint: dict[str, Any]) -> PanopticModel:
    """Take the model and all that it takes to use it out of the best checkpoint; optimiser and history stay behind."""
    return model_of(checkpoint, "the best checkpoint")


def convert_to_onnx(model: PanopticModel) -> tuple[bytes, dict[str, Any]]:
    """Convert the exported model to ONNX, and compare the two."""
    return onnx_model(model)


def name_model(model: PanopticModel, parameters: ExportSettings) -> ModelToServe:
    """Give the exported model its name in the model registry."""
    return ModelToServe(model, parameters.registered_name)
