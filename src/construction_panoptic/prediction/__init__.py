"""Predicting images and videos with a trained model: what is read, what is written, and the short command."""

from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.models.files import load_model, model_of
from construction_panoptic.prediction.results import merge_panoptic, write_results
from construction_panoptic.prediction.running import predict_source
from construction_panoptic.prediction.sources import find_files
from construction_panoptic.prediction.tables import rejected_table, seen_table

__all__ = [
    "PredictionSettings",
    "find_files",
    "load_model",
    "merge_panoptic",
    "model_of",
    "predict_source",
    "rejected_table",
    "seen_table",
    "write_results",
]
