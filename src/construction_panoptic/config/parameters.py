"""All parameter groups of the project, and the check of a whole configuration."""

from collections.abc import Mapping
from typing import Any

from construction_panoptic.config.base import Settings, nearest, parse
from construction_panoptic.config.conversion import ConversionSettings, CvatExportSettings
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.prediction import AnnotateNextSettings, ExportSettings, PredictionSettings
from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.config.training import (
    DetectionSettings,
    MaskHeadSettings,
    PanopticDeeplabTrainingSettings,
    UniversalTrainingSettings,
)
from construction_panoptic.errors import ParameterError

GROUPS: Mapping[str, type[Settings]] = {
    "sample_data": SampleSettings,
    "annotation_conversion": ConversionSettings,
    "model": DetrSettings,
    "detection": DetectionSettings,
    "mask_head": MaskHeadSettings,
    "panoptic_deeplab": PanopticDeeplabTrainingSettings,
    "universal": UniversalTrainingSettings,
    "panoptic_evaluation": EvaluationSettings,
    "prediction": PredictionSettings,
    "annotate_next": AnnotateNextSettings,
    "model_export": ExportSettings,
    "cvat_export": CvatExportSettings,
}
"""Group → its settings; a new recipe adds a line."""

VALUES = ("raw_data", "stuff_predictions", "taxonomy", "device", "run_name")
"""What ``--params`` takes beside the groups."""


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Check a whole configuration, conf and ``--params`` together, before anything runs.

    Raises `ParameterError`: a line for each mistake in any group.
    """
    mistakes = []
    for name, value in parameters.items():
        if name in GROUPS:
            try:
                parse(GROUPS[name], value, name)
            except ParameterError as error:
                mistakes.append(str(error))
        elif name not in VALUES:
            mistakes.append(f"{name}: there is no such parameter; {nearest(name, [*GROUPS, *VALUES])}")
    if mistakes:
        raise ParameterError("\n".join(mistakes))
