"""A conversion whose stuff is labelled by a model of `transformers`."""

import json
import sqlite3

import numpy as np
import pytest
from PIL import Image

from tests.integration.pipelines.project import Project
from tests.unit.universal_models import write_model

pytestmark = pytest.mark.slow


def test_a_conversion_with_a_universal_labeller_goes_on_and_tells_the_licence(project: Project) -> None:
    weights = write_model(project.folder / "eomt", "eomt")
    (weights / "README.md").write_text("---\nlicense: mit\n---\n")
    params = {
        "annotation_conversion.stuff.source": "universal",
        "annotation_conversion.stuff.weights": "eomt",
        "annotation_conversion.stuff.threshold": "0.3",
        "annotation_conversion.execution.workers": "2",
    }
    project.run("--pipelines", "sample_data")
    done = project.run("--pipelines", "annotation_conversion", params=params)
    assert "the licence of its weights: mit" in " ".join(done.stdout.split())
    assert "does not know 1 of the 7 classes of eomt" in " ".join(done.stdout.split())
    summary = json.loads((project.folder / "data/08_reporting/dataset/dataset_summary.json").read_text())
    assert summary["stuff"] == {"source": "universal", "weights": "eomt", "licence": "mit"}
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        tags = dict(database.execute("select key, value from tags where key like 'stuff.%'").fetchall())
    assert tags == {f"stuff.{name}": value for name, value in summary["stuff"].items()}

    folder = project.folder / "data/02_intermediate/stuff_labels"
    labels = {path: path.read_bytes() for path in folder.iterdir()}
    index = json.loads((folder / "index.json").read_text())
    assert sum(np.asarray(Image.open(folder / name)).any() for name in index.values()) > len(index) / 2
    panoptic = project.folder / "data/05_model_input/panoptic_train.json"
    converted = panoptic.read_bytes()
    lost = folder / sorted(index.values())[0]
    for path in (lost, folder / "index.json", panoptic):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in labels if path.exists() and path.suffix == ".png"}
    project.run("--pipelines", "annotation_conversion", "--only-missing-outputs", params=params)
    assert {path: path.read_bytes() for path in folder.iterdir()} == labels
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert panoptic.read_bytes() == converted
