"""Nodes that predict images and videos and tell what was seen in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.files import model_of
from construction_panoptic.prediction import find_files, predict_source, rejected_table, seen_table
from construction_panoptic.prediction.running import PredictedPicture, RejectedFile


def predict(checkpoint: dict[str, Any], parameters: PredictionSettings) -> Iterator[PredictedPicture | RejectedFile]:
    """Predict ``prediction.source`` with the best model, an image or frame at a time; unreadable files are told too."""
    if parameters.source is None:
        raise ParameterError(
            "prediction.source: say what to predict, an image, a video, a folder or a pattern: "
            "--params prediction.source=/path/to/images"
        )
    return predict_source(model_of(checkpoint, "the best checkpoint"), find_files(parameters.source), parameters)


def tabulate(results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List what was seen in each image, by class, and the files that could not be read."""
    return seen_table(results), rejected_table(results)
