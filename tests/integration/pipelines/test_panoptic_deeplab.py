"""The second recipe through the command line: trained, evaluated, exported, used, beside the first one's names."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from construction_panoptic.models.files import load_exported, load_model
from tests.integration.pipelines.project import Project

PARAMS = {
    "panoptic_deeplab.epochs": "2",
    "panoptic_deeplab.validate_every": "1",
    "panoptic_deeplab.model.grouping.center_threshold": "0.005",  # two epochs teach no confidence
    "panoptic_evaluation.threshold": "0.0",
}


@pytest.mark.slow
def test_the_recipe_trains_evaluates_and_is_used(project: Project) -> None:
    project.run("--pipelines", "sample_data")
    project.run("--pipelines", "panoptic_deeplab", params=PARAMS)
    data = project.folder / "data"
    history = pd.read_csv(data / "06_models/panoptic_deeplab/history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert {"train/loss_semantic", "train/loss_center", "train/loss_offset", "val/loss", "val/pq"} <= {*history.columns}
    boxes = json.loads((data / "07_model_output/box_predictions.json").read_text())
    assert boxes
    assert all(0 <= box["score"] <= 1 for box in boxes)
    assert json.loads((data / "08_reporting/average_precision.json").read_text())["AP"] >= 0
    for name in ("panoptic_quality.json", "panoptic_quality.csv", "average_precision.json", "average_precision.csv"):
        own = data / "08_reporting/panoptic_deeplab" / name
        assert own.read_bytes() == (data / "08_reporting" / name).read_bytes()
    for name in ("box_predictions.json", "panoptic_predictions/predictions.json"):
        own = data / "07_model_output/panoptic_deeplab" / name
        assert own.read_bytes() == (data / "07_model_output" / name).read_bytes()
    assert (data / "08_reporting/evaluation_report.html").is_file()

    done = project.kedro("run", "--env", "sample", "--pipelines", "panoptic_deeplab_model_export")
    assert done.returncode == 0, done.stdout + done.stderr
    best = load_model(data / "06_models/panoptic_deeplab/best.pt")
    assert best.spec.kind == "panoptic_deeplab"
    assert best.spec.threshold == 0
    assert load_exported(data / "06_models/exported").spec == best.spec
    assert json.loads((data / "06_models/exported/onnx_report.json").read_text())

    images = sorted((data / "03_primary/images").iterdir())
    command = [sys.executable, "-m", "construction_panoptic", "predict", str(images[0]), "--out", "seen", "--model"]
    subprocess.run([*command, str(data / "06_models/panoptic_deeplab/best.pt")], check=True, cwd=project.folder)
    assert len(pd.read_csv(project.folder / "seen/seen.csv"))
