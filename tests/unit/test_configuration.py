"""The configuration that is shipped is one that works, and says what the code says."""

from pathlib import Path
from typing import Any

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from pydantic import BaseModel

from construction_panoptic.config.base import parse
from construction_panoptic.config.conversion import ConversionSettings, CvatExportSettings
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.prediction import ExportSettings, PredictionSettings
from construction_panoptic.config.sample import SampleSettings
from construction_panoptic.config.training import DetectionSettings, MaskHeadSettings

SETTINGS: dict[str, type[BaseModel]] = {
    "sample_data": SampleSettings,
    "annotation_conversion": ConversionSettings,
    "cvat_export": CvatExportSettings,
    "model": DetrSettings,
    "detection": DetectionSettings,
    "mask_head": MaskHeadSettings,
    "panoptic_evaluation": EvaluationSettings,
    "prediction": PredictionSettings,
    "model_export": ExportSettings,
}


def parameters(repository: Path, env: str, **runtime: Any) -> dict[str, Any]:
    bootstrap_project(repository)
    return KedroSession.create(repository, env=env, runtime_params=runtime).load_context().params


@pytest.mark.parametrize("env", ["base", "sample"])
def test_every_parameter_is_valid(repository: Path, env: str) -> None:
    found = parameters(repository, env)
    for name, model in SETTINGS.items():
        parse(model, found[name], name)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "detection"])
def test_the_base_configuration_is_the_recipe_of_the_code(repository: Path, name: str) -> None:
    assert parse(SETTINGS[name], parameters(repository, "base")[name], name) == SETTINGS[name]()


def test_the_detector_starts_from_published_weights(repository: Path) -> None:
    found = parse(DetectionSettings, parameters(repository, "base")["detection"], "detection")
    assert found == DetectionSettings(weights="detr-r50")


def test_one_parameter_chooses_the_device_of_everything(repository: Path) -> None:
    found = parameters(repository, "sample", device="cuda")
    names = ("detection", "mask_head", "panoptic_evaluation", "prediction")
    assert {found[name]["device"] for name in names} == {"cuda"}
    assert found["annotation_conversion"]["stuff"]["device"] == "cuda"


def test_an_environment_keeps_what_it_does_not_name(repository: Path) -> None:
    assert parameters(repository, "sample")["detection"]["losses"]["bbox"] == 5.0
