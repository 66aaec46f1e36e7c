"""Runs in an MLflow database of their own, evaluated on pictures drawn here, compared."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Dataset, DatasetInput
from PIL import Image

from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.evaluation.segments import match_segments
from construction_panoptic.evaluation.tables import quality_table
from construction_panoptic.files import write_json
from construction_panoptic.tracking.comparison import compare_runs
from construction_panoptic.tracking.facts import file_digest
from construction_panoptic.tracking.runs import find_runs
from construction_panoptic.visualisation.comparison_report import Validation
from tests.unit.evaluation.pairs import entry

pytestmark = pytest.mark.medium

CATEGORIES = [
    {"id": 1, "name": "sky", "isthing": 0, "supercategory": "x", "color": [0, 0, 255]},
    {"id": 2, "name": "tower_crane", "isthing": 1, "supercategory": "x", "color": [255, 0, 0]},
]
NAMES = {1: "sky", 2: "tower_crane"}


class Site:
    """A validation set of ten images: sky above, a crane below; and runs that predict it."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.folder, self.experiment = folder, experiment
        (folder / "images").mkdir()
        annotations = [self._draw("truth", i, crane=6) for i in range(10)]
        for i in range(10):
            Image.new("RGB", (16, 12), (9 * i, 90, 90)).save(folder / "images" / f"{i}.jpg")
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 16, "height": 12} for i in range(10)]
        self.truth: dict[str, Any] = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        self.file = folder / "panoptic_val.json"
        self.validation = Validation(self.file, folder / "truth", folder / "images")
        write_json(self.file, self.truth)

    def _draw(self, side: str, image: int, crane: int) -> dict[str, Any]:
        ids = np.full((12, 16), 1)
        ids[12 - crane :, 4:12] = 2
        return entry(image, self.folder / side, ids, {1: 1, 2: 2}, set())

    def evaluate(
        self,
        name: str,
        wrong: int,
        *,
        digest: str = "",
        parameters: dict[str, float] | None = None,
        analysed: bool = True,
        status: str = "FINISHED",
    ) -> str:
        """Log a run that draws the crane of the first ``wrong`` images far too small."""
        annotations = [self._draw(name, i, crane=2 if i < wrong else 6) for i in range(10)]
        predictions = {"annotations": annotations, "categories": CATEGORIES}
        write_json(self.folder / name / "predictions.json", predictions)
        sides = (self.truth, self.folder / "truth", predictions, self.folder / name)
        quality = panoptic_quality(*sides)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "results").mkdir(parents=True)
        (folder / "errors").mkdir()
        quality_table(quality, NAMES).to_csv(folder / "results" / "panoptic_quality.csv", index=False)
        if analysed:
            match_segments(*sides).to_parquet(folder / "errors" / "segment_matches.parquet")
        shutil.make_archive(str(folder / "results" / "panoptic_predictions"), "zip", self.folder / name)
        shutil.rmtree(self.folder / name)
        with mlflow.start_run(experiment_id=self.experiment, run_name=name) as run:
            mlflow.log_params(parameters or {})
            mlflow.log_metrics({"PQ/All": quality["All"]["pq"], "mask_head/best/epoch": 8})
            mlflow.log_artifacts(str(folder))
            data = Dataset("panoptic_val", digest or file_digest(self.file), "local", "{}")
            mlflow.MlflowClient().log_inputs(run.info.run_id, [DatasetInput(data)])
        mlflow.MlflowClient().set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    def compare(self, *names: str, unfinished: bool = False) -> tuple[str, str]:
        """Give the text and the page."""
        out = self.folder / "out"
        text = compare_runs(find_runs(names, "test", unfinished=unfinished), out, self.validation)
        page = (out / "comparison.html").read_text()
        assert "http" not in page  # it needs nothing outside itself
        return text, page


@pytest.fixture
def site(tmp_path: Path, experiment: str) -> Site:
    return Site(tmp_path, experiment)


def test_a_class_called_none_is_text(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMES, next(iter(NAMES)), "None")
    told, page = site.compare(site.evaluate("old", wrong=6), site.evaluate("new", wrong=1))
    assert " None " in told
    assert "<td>None</td>" in page


def test_a_comparison_says_what_differs_and_by_how_much(site: Site) -> None:
    one = site.evaluate("old", wrong=6, parameters={"optimizer.lr": 0.1, "epochs": 5})
    new = site.evaluate("new", wrong=1, parameters={"optimizer.lr": 0.2, "epochs": 5})
    told, page = site.compare(one, "new")
    table = pd.read_csv(site.folder / "out" / "quality.csv")
    rows: dict[Any, Any] = table.set_index("name").to_dict("index")
    metrics = [mlflow.get_run(run).data.metrics["PQ/All"] for run in (one, new)]
    assert [rows["All"]["one"], rows["All"]["other"]] == pytest.approx(metrics)
    assert 0 < rows["All"]["low"] < rows["All"]["difference"] < rows["All"]["high"]
    crane = rows["tower_crane"]
    assert (crane["one"], crane["other"], crane["images"]) == (pytest.approx(0.4), pytest.approx(0.9), 10)
    parameters = pd.read_csv(site.folder / "out" / "parameters.csv")
    assert parameters.to_dict("records") == [{"parameter": "optimizer.lr", "old": 0.1, "new": 0.2}]
    text = " ".join(told.split())
    assert "tower_crane 10 40.0 90.0 +50.0 +" in text
    assert text.endswith("parameter old new optimizer.lr 0.1 0.2")
    assert "<b>Better</b>" in page
    assert page.count("<td>mask_head, epoch 8</td>") == 2
    digest = file_digest(site.file)[:8]
    assert f"<b>run</b>: old, new; <b>data set</b>: 10 validation images; <b>digest</b>: {digest}; <b>" in page
    assert "tower crane" in page
    # The five images in which they differ: photograph, truth and both predictions.
    assert page.count("<figure>") == 20
    assert [name in page for name in ("0.jpg", "1.jpg", "5.jpg", "6.jpg")] == [False, True, True, False]


def test_the_same_predictions_are_not_told_apart(site: Site) -> None:
    site.evaluate("old", wrong=3)
    site.evaluate("new", wrong=3)
    page = site.compare("old", "new")[1]
    assert "<b>Not told apart</b>" in page
    assert "<figure>" not in page


def test_parameters_of_the_trainings_count(site: Site) -> None:
    client = mlflow.MlflowClient()
    for name, lr in (("old", "0.1"), ("new", "0.3")):
        run_id = site.evaluate(name, wrong=1)
        training = client.create_run(site.experiment).info.run_id
        client.log_param(training, "detection.optimizer.lr", lr)
        client.set_tag(run_id, "detection_run", training)
    site.compare("old", "new")
    parameters = pd.read_csv(site.folder / "out" / "parameters.csv")
    assert parameters.to_dict("records") == [{"parameter": "detection.optimizer.lr", "old": 0.1, "new": 0.3}]


def test_pictures_are_left_out_where_the_project_has_another_validation_set(site: Site) -> None:
    site.evaluate("old", wrong=3)
    site.evaluate("new", wrong=0)
    site.file.write_text(json.dumps({**site.truth, "info": {}}))
    assert "No pictures" in site.compare("old", "new")[1]


def test_other_validation_sets_are_refused(site: Site) -> None:
    site.evaluate("old", wrong=3)
    site.evaluate("new", wrong=3, digest="0123456789")
    with pytest.raises(InputDataError, match=r"different validation sets .*new: 01234567"):
        site.compare("old", "new")


def test_a_run_is_found_by_what_people_know_of_it(site: Site) -> None:
    first = site.evaluate("twice", wrong=3)
    with pytest.raises(ParameterError, match="no run with the id or name 'other'"):
        site.compare(first, "other")
    with pytest.raises(ParameterError, match="at least two runs"):
        site.compare(first, "twice")
    second = site.evaluate("twice", wrong=3)
    with pytest.raises(
        ParameterError, match=rf"2 runs are named 'twice'; give an id:\n  {second}  20\d\d-\d\d-\d\d \d\d:\d\d  PQ 8"
    ):
        site.compare(first, "twice")
    site.compare(first, second)
    assert f"twice {second[:6]}" in (site.folder / "out" / "quality.csv").read_text()


def test_a_run_without_evaluation_is_named(site: Site) -> None:
    first = site.evaluate("old", wrong=3)
    with mlflow.start_run(experiment_id=site.experiment, run_name="empty"):
        pass
    with pytest.raises(InputDataError, match=r"run empty .* has not been evaluated"):
        site.compare(first, "empty")


def test_runs_that_failed_are_left_out_of_names_unless_asked_for(site: Site) -> None:
    first = site.evaluate("old", wrong=3)
    site.evaluate("new", wrong=3, status="KILLED")
    with pytest.raises(ParameterError, match="failed or were stopped"):
        site.compare(first, "new")
    assert "PQ of new against old" in site.compare(first, "new", unfinished=True)[0]
    site.evaluate("new", wrong=1)
    assert "+2" in site.compare(first, "new")[0]


def test_runs_without_an_error_analysis_are_matched_here(site: Site) -> None:
    first = site.evaluate("old", wrong=3)
    site.evaluate("new", wrong=1)
    expected = site.compare(first, "new")[0].split()
    site.evaluate("bare", wrong=1, analysed=False)
    assert site.compare(first, "bare")[0].split() == ["bare" if word == "new" else word for word in expected]
    site.file.write_text(json.dumps({**site.truth, "info": {}}))
    with pytest.raises(InputDataError, match=r"run bare .* has no errors/segment_matches.parquet"):
        site.compare(first, "bare")


def test_groups_of_pipelines_that_a_run_did_not_run_do_not_differ(site: Site) -> None:
    site.evaluate("old", wrong=3, parameters={"detection.lr": 0.1, "panoptic_evaluation.threshold": 0.5})
    site.evaluate("new", wrong=3, parameters={"panoptic_evaluation.threshold": 0.6, "panoptic_evaluation.tta": 1})
    site.compare("old", "new")
    listed = pd.read_csv(site.folder / "out" / "parameters.csv")["parameter"].tolist()
    assert listed == ["panoptic_evaluation.threshold", "panoptic_evaluation.tta"]
