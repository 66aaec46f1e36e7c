"""The main job through the command line, on a tiny sample."""

import json
import sqlite3
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.prediction import load_model
from tests.integration.pipelines.project import Project


@pytest.fixture(scope="module")
def finished(project: Project) -> tuple[Project, str]:
    """A project in which the sample was made and the main job has run; and what it printed."""
    project.run("--pipelines", "sample_data")
    return project, project.run(params={"run_name": "tiny"}).stdout


def test_the_end_of_the_run_says_how_good_and_where(finished: tuple[Project, str]) -> None:
    _, printed = finished
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]" in printed
    for words in ("All       |", "Things    |", "Stuff     |", "data/08_reporting/examples.png"):
        assert words in printed
    assert "kedro viz run --env sample" in printed
    assert "mlflow ui" in printed
    assert "?workflowType=machine_learning" in printed


def test_the_start_of_the_run_says_what_it_will_do(finished: tuple[Project, str]) -> None:
    begin = finished[1].index("To do, with the configuration of conf/sample")
    plan = [line.split() for line in finished[1][begin:].splitlines()[1:6]]
    trainings = ["detection_training", "mask_head_training"]
    names = ["annotation_conversion", *trainings, "panoptic_evaluation", "error_analysis"]
    assert sorted(name for name, *_ in plan) == sorted(names)
    assert plan[0][:1] == ["annotation_conversion"]
    assert ["error_analysis", "5", "steps"] in plan


def test_every_annotation_is_in_the_output_or_rejected(finished: tuple[Project, str]) -> None:
    data = finished[0].folder / "data"
    annotations = 0
    for path in (data / "01_raw" / "construction").glob("*/**/*.json"):
        annotations += len(json.loads(path.read_text())["annotations"])
    converted = sum(
        sum(segment["annotation_id"] is not None for segment in json.loads(line)["segments"])
        for line in (data / "03_primary" / "converted_images.jsonl").read_text().splitlines()
    )
    rejected = pd.read_csv(data / "02_intermediate" / "rejected_records.csv")
    assert converted + rejected["annotation_id"].notna().sum() == annotations > 30


def test_no_group_is_on_both_sides(finished: tuple[Project, str]) -> None:
    split = pd.read_csv(finished[0].folder / "data" / "03_primary" / "split.csv")
    assert len(split) == 30
    assert split.groupby("group")["split"].nunique().max() == 1
    summary = json.loads((finished[0].folder / "data/08_reporting/dataset/dataset_summary.json").read_text())
    assert summary["split"]["near_duplicates_across"] == 0


def test_the_written_numbers_are_those_of_pycocotools(
    finished: tuple[Project, str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = finished[0].folder / "data"
    truth = COCO(str(data / "05_model_input" / "detection_val.json"))
    results = truth.loadRes(str(data / "07_model_output" / "box_predictions.json"))
    evaluation = COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    written = json.loads((data / "08_reporting" / "average_precision.json").read_text())
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert [written[name] for name in names] == pytest.approx(list(evaluation.stats), abs=1e-12)


def test_the_error_analysis_belongs_to_the_evaluation(finished: tuple[Project, str]) -> None:
    reporting = finished[0].folder / "data" / "08_reporting"
    quality = json.loads((reporting / "panoptic_quality.json").read_text())
    budget = pd.read_csv(reporting / "errors" / "pq_loss_budget.csv").set_index("name")
    for split in ("All", "Things", "Stuff"):
        parts = budget.loc[[split], ["badly_outlined", "mislabelled", "missed", "spurious"]].to_numpy()
        assert parts.sum() == pytest.approx(100 - 100 * quality[split]["pq"])
    curve = pd.read_csv(reporting / "errors" / "threshold_curve.csv")
    assert 0.05 in curve["threshold"].tolist()
    assert curve["pq"].between(0, 1).all()
    page = (reporting / "evaluation_report.html").read_text()
    assert f"<b>{100 * quality['All']['pq']:.1f}</b> PQ All" in page


def test_predictions_are_strict_coco_panoptic_results(finished: tuple[Project, str]) -> None:
    folder = finished[0].folder / "data" / "07_model_output" / "panoptic_predictions"
    predictions = json.loads((folder / "predictions.json").read_text())
    truth = json.loads((finished[0].folder / "data/05_model_input/panoptic_val.json").read_text())
    assert {a["image_id"] for a in predictions["annotations"]} == {i["id"] for i in truth["images"]}
    for annotation in predictions["annotations"]:
        id_map = decode_id_map(folder / annotation["file_name"])
        assert set(id_map.ravel().tolist()) - {0} == {s["id"] for s in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            assert segment["area"] == (id_map == segment["id"]).sum()


def test_checkpoints_have_the_published_layout(finished: tuple[Project, str]) -> None:
    models = finished[0].folder / "data" / "06_models"
    panoptic = torch.load(models / "mask_head" / "best.pt", weights_only=True)["model"]
    detector = torch.load(models / "detection" / "best.pt", weights_only=True)["model"]
    assert {"bbox_attention.q_linear.weight", "mask_head.lay1.weight"} <= panoptic.keys()
    # The second stage must not have touched the detector.
    assert all(torch.equal(value, panoptic[f"detr.{name}"]) for name, value in detector.items())


def test_the_best_checkpoint_describes_itself(finished: tuple[Project, str]) -> None:
    """Architecture, sizes, categories and threshold are in it, so it predicts without this configuration."""
    spec = load_model(finished[0].folder / "data" / "06_models" / "mask_head" / "best.pt").spec
    assert (spec.architecture["backbone"], spec.architecture["num_queries"]) == ("tiny", 20)
    assert (spec.preprocessing.evaluation_side, spec.preprocessing.max_side) == (96, 160)
    assert (spec.threshold, spec.threshold_stuff) == (0.05, 0.04)
    truth = json.loads((finished[0].folder / "data/05_model_input/panoptic_val.json").read_text())
    assert list(spec.categories) == truth["categories"]


def test_pictures_can_be_opened(finished: tuple[Project, str]) -> None:
    pictures = sorted((finished[0].folder / "data" / "08_reporting").rglob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 150


def test_mlflow_has_the_run(finished: tuple[Project, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished[0].folder
    monkeypatch.chdir(folder)  # where the paths of artifacts begin
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("construction_panoptic")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tiny", "tiny detection", "tiny mask_head"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    run = runs["tiny"]
    assert run.data.params["detection.optimizer.lr"] == "0.0006"
    assert run.data.params["mask_head.epochs"] == "2"
    for stage, metric in (("detection", "train/loss"), ("mask_head", "time/epoch_seconds")):
        training = runs[f"tiny {stage}"]
        assert training.data.tags["mlflow.parentRunId"] == run.info.run_id
        assert training.data.tags["stage"] == stage
        history = client.get_metric_history(training.info.run_id, f"{stage}/{metric}")
        assert sorted(m.step for m in history) == [1, 2]
        pictures = [file.path for file in client.list_artifacts(training.info.run_id, "images")]
        assert [sum(f"+step+{epoch}+" in path for path in pictures) for epoch in (1, 2)] == [2, 2]  # and a thumbnail
    models = {model.name: model for model in client.search_logged_models([experiment.experiment_id])}
    assert set(models) == {"detection-best", "detection-last", "mask_head-best", "mask_head-last"}
    assert models["detection-last"].params == {"epoch": "2"}
    assert {metric.step for metric in models["detection-last"].metrics or []} == {2}
    quality = json.loads((folder / "data/08_reporting/panoptic_quality.json").read_text())
    for split in ("All", "Things", "Stuff"):
        assert run.data.metrics[f"PQ/{split}"] == pytest.approx(quality[split]["pq"])
    precision = json.loads((folder / "data/08_reporting/average_precision.json").read_text())
    assert run.data.metrics["box/AP"] == pytest.approx(precision["AP"])
    assert run.inputs is not None
    assert {item.dataset.name for item in run.inputs.dataset_inputs} >= {"panoptic_train", "panoptic_val"}
    files = {path.name for path in (folder / "mlartifacts").rglob("*") if path.is_file()}
    assert {"best.pt", "last.pt", "examples.png", "panoptic_quality.json", "split.csv"} <= files


def test_a_second_run_skips_what_is_there(finished: tuple[Project, str]) -> None:
    project = finished[0]
    before = {path: path.stat().st_mtime_ns for path in (project.folder / "data").rglob("*") if path.is_file()}
    done = project.run("--only-missing-outputs")
    assert "Skipping all" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (project.folder / "data").rglob("*") if p.is_file()}


def test_the_catalog_can_be_listed(finished: tuple[Project, str]) -> None:
    done = finished[0].kedro("catalog", "list", "--env", "sample")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("mask_head.checkpoint ")]
    assert line.split()[1:] == ["06", "models", "there", "data/06_models/mask_head/last.pt"]


def test_the_database_is_where_the_project_is(finished: tuple[Project, str]) -> None:
    with sqlite3.connect(finished[0].folder / "mlflow.db") as database:
        (count,) = database.execute("select count(*) from runs").fetchone()
    assert count >= 1


def test_the_catalog_gives_every_entry_a_layer(repository: Path) -> None:
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(repository)
    catalog = KedroSession.create(repository, env="sample").load_context().catalog
    names = [name for name in sorted(catalog.keys()) if not name.startswith(("params:", "parameters"))]
    assert len(names) > 30
    for name in names:
        metadata = getattr(catalog.get(name), "metadata", None)
        assert metadata, name
        assert metadata["kedro-viz"]["layer"], name
