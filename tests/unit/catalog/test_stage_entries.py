"""The entries of trainings come from patterns; these must not take names that are no training's."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kedro.io import DataCatalog

FILE = Path(__file__).parents[3] / "conf/base/catalog_3_training.yml"


@pytest.mark.parametrize("stage", ["detection", "mask_head", "another"])
def test_every_stage_has_its_entries(stage: str) -> None:
    catalog: Any = DataCatalog.from_config(yaml.safe_load(FILE.read_text()))
    checkpoint, resume = catalog.get(f"{stage}.checkpoint"), catalog.get(f"{stage}.resume_from")
    assert str(checkpoint._filepath) == str(resume._filepath) == f"data/06_models/{stage}/last.pt"
    assert str(catalog.get(f"{stage}.best")._filepath) == f"data/06_models/{stage}/best.pt"
    assert catalog.get(f"{stage}.history").metadata["mlflow"] == {"history": stage, "artifact": f"tables/{stage}"}
    assert catalog.get(f"{stage}.progress").metadata["mlflow"] == {"epochs": f"{stage}/progress"}
    for name in ("timings", "report"):
        assert catalog.get(f"{stage}.{name}").metadata["kedro-viz"]["layer"]


def test_other_names_are_left_alone() -> None:
    catalog: Any = DataCatalog.from_config(yaml.safe_load(FILE.read_text()))
    for name in ("detection", "checkpoint", "detection.weights", "panoptic_quality", "detection_train"):
        assert catalog.get(name) is None
