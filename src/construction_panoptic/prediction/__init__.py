"""Predicting images and videos with a trained model: what is read, what is written, and the short command."""

from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.prediction.models import TrainedModel, load_model, trained_model
from construction_panoptic.prediction.results import merge_panoptic, write_results
from construction_panoptic.prediction.running import predict_source
from construction_panoptic.prediction.sources import find_files
from construction_panoptic.prediction.tables import rejected_table, seen_table

__all__ = [
    "PredictionSettings",
    "TrainedModel",
    "find_files",
    "load_model",
    "merge_panoptic",
    "predict_source",
    "rejected_table",
    "seen_table",
    "trained_model",
    "write_results",
]
