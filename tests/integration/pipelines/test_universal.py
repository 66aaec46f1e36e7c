"""The recipe of `transformers` models through the command line, from a folder with a small EoMT."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from construction_panoptic.models.files import load_exported, load_model
from tests.integration.pipelines.project import Project
from tests.unit.universal_models import EOMT_SIDE, write_model

PARAMS = {
    "universal.weights": "eomt",
    "universal.epochs": "2",
    "universal.workers": "0",
    "universal.devices": "2",
    "universal.batch_size": "4",  # on each
    "universal.augmentation.max_side": str(EOMT_SIDE),
    "universal.augmentation.crop": "0",
    "universal.optimizer.lr": "0.001",
    "device": "cpu",
    "panoptic_evaluation.threshold": "0.05",  # two epochs teach no confidence
}
CARD = "---\nlicense: mit\n---\n"


@pytest.mark.slow
def test_the_recipe_trains_evaluates_and_is_used(project: Project) -> None:
    (write_model(project.folder / "eomt", "eomt") / "README.md").write_text(CARD)
    project.run("--pipelines", "sample_data")
    project.run("--pipelines", "universal", params=PARAMS)
    data = project.folder / "data"
    history = pd.read_csv(data / "06_models/universal/history.csv")
    assert list(history["epoch"]) == [1, 2]
    assert history["train/loss"].is_monotonic_decreasing
    assert {"train/loss_ce_aux", "train/loss_mask", "train/loss_dice", "val/loss", "val/pq"} <= {*history.columns}
    weights = {"weights": {"name": "eomt", "licence": "mit"}}
    assert json.loads((data / "06_models/universal/weights.json").read_text()) == weights
    assert json.loads((data / "08_reporting/universal/panoptic_quality.json").read_text())
    assert (data / "08_reporting/evaluation_report.html").is_file()

    done = project.kedro("run", "--env", "sample", "--pipelines", "universal_model_export")
    assert done.returncode == 0, done.stdout + done.stderr
    best = load_model(data / "06_models/universal/best.pt")
    assert best.spec.kind == "universal"
    assert load_exported(data / "06_models/exported").spec == best.spec
    assert not (data / "06_models/exported/model.onnx").exists()

    images = sorted((data / "03_primary/images").iterdir())
    command = [sys.executable, "-m", "construction_panoptic", "predict", str(images[0]), "--out", "seen", "--model"]
    subprocess.run([*command, str(data / "06_models/universal/best.pt")], check=True, cwd=project.folder)
    assert (project.folder / "seen/seen.csv").is_file()


@pytest.mark.slow
def test_images_larger_than_the_models_are_refused(project: Project) -> None:
    write_model(project.folder / "eomt", "eomt")
    project.run("--pipelines", "sample_data")
    project.run("--pipelines", "annotation_conversion")
    params = PARAMS | {"universal.augmentation.max_side": "96"}
    done = project.kedro(
        "run", "--env", "sample", "--pipelines", "universal_training", "--params",
        ",".join(f"{name}={value}" for name, value in params.items()),
    )  # fmt: skip
    assert done.returncode != 0
    assert "eomt takes images of at most 64 pixels, not 96" in " ".join((done.stdout + done.stderr).split())
