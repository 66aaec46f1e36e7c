import logging
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from kedro.io import DataCatalog
from mlflow import entities
from PIL import Image

from construction_panoptic.tracking.facts import file_digest
from construction_panoptic.tracking.hook import mark_run_killed
from tests.unit.tracking.conftest import Run


@pytest.fixture
def run(tmp_path: Path, catalog: DataCatalog, experiment: str) -> Iterator[Run]:
    with mlflow.start_run(experiment_id=experiment, run_name="main"):
        yield Run(tmp_path, catalog)


def parent() -> entities.Run:
    active = mlflow.active_run()
    assert active is not None
    return mlflow.get_run(active.info.run_id)


def training(experiment: str) -> entities.Run:
    (found,) = mlflow.MlflowClient().search_runs([experiment], "tags.stage = 'detection'")
    return found


def steps(experiment: str, metric: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(training(experiment).info.run_id, metric)
    return sorted((m.step, m.value) for m in history)


def test_an_epoch_shows_in_the_training_s_run_as_soon_as_it_is_saved(run: Run, experiment: str) -> None:
    run.train()
    run.epoch(3.0)
    assert steps(experiment, "detection/train/loss") == [(1, 3.0)]
    run.epoch(3.0, 2.0)
    assert steps(experiment, "detection/train/loss") == [(1, 3.0), (2, 2.0)]
    assert steps(experiment, "detection/time/epoch_seconds") == [(1, 1.0), (2, 2.0)]
    assert training(experiment).info.status == "RUNNING"
    assert "detection/train/loss" not in parent().data.metrics


def test_the_training_s_run_is_in_that_of_the_command(run: Run, experiment: str) -> None:
    run.save("data", [1])
    run.train()
    found = training(experiment)
    assert found.data.tags["mlflow.parentRunId"] == parent().info.run_id
    assert found.data.params == {"detection.optimizer.lr": "0.1"}
    assert found.info.run_name == "main detection"
    assert found.inputs is not None
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["data"]


def test_a_finished_training_has_its_best_and_last_models(run: Run, experiment: str) -> None:
    run.train()
    for done in (1, 2, 3):
        run.epoch(*[3.0, 1.0, 2.0][:done])
    run.hook.after_pipeline_run()
    assert training(experiment).info.status == "FINISHED"
    models = {model.name: model for model in mlflow.MlflowClient().search_logged_models([experiment])}
    assert set(models) == {"detection-best", "detection-last"}
    for name, epoch, loss in (("best", 2, 1.0), ("last", 3, 2.0)):
        model = models[f"detection-{name}"]
        assert (model.status, model.params) == ("READY", {"epoch": str(epoch)})
        linked = {metric.key: (metric.step, metric.value) for metric in model.metrics or []}
        assert linked["detection/train/loss"] == (epoch, loss)
        (file,) = mlflow.MlflowClient().list_logged_model_artifacts(model.model_id)
        assert file.path == f"{name}.pt"
    # Linking them adds nothing to the curves.
    assert steps(experiment, "detection/train/loss") == [(1, 3.0), (2, 1.0), (3, 2.0)]
    assert steps(experiment, "detection/time/epoch_seconds") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert parent().data.metrics == {"detection/best/epoch": 2.0, "detection/best/ap": 1.0}


def test_failed_and_killed_trainings_say_so(run: Run, experiment: str) -> None:
    run.train()
    run.epoch(3.0)
    run.hook.on_pipeline_error()
    assert training(experiment).info.status == "FAILED"
    run.train()
    run.epoch(3.0, 2.0)
    assert training(experiment).info.status == "RUNNING"
    run_id = parent().info.run_id
    mark_run_killed()
    assert training(experiment).info.status == "KILLED"
    assert mlflow.get_run(run_id).info.status == "KILLED"


def test_pictures_have_the_epoch_as_step(run: Run, experiment: str, tmp_path: Path) -> None:
    run.train()
    run.epoch(3.0)
    run.save("progress", Image.new("RGB", (8, 8)))
    run.epoch(3.0, 2.0)
    run.hook.after_dataset_saved("progress", "unchanged")
    names = [path.name for path in (tmp_path / "artifacts").rglob("detection~progress*.png")]
    assert len(names) == 1
    assert "+step+1+" in names[0]


def test_final_numbers_and_tables_are_the_command_s(run: Run, experiment: str) -> None:
    run.save("quality", pd.DataFrame({"name": ["All", "crane"], "pq": [0.5, None]}))
    run.hook.after_pipeline_run()
    assert parent().data.metrics == {"pq/All": 0.5}
    table = mlflow.MlflowClient().load_table(experiment, "tables/quality.json", [parent().info.run_id])
    assert table["name"].tolist() == ["All", "crane"]


def test_files_are_sent_when_their_node_is_done(run: Run, tmp_path: Path) -> None:
    run.save("history", pd.DataFrame({"epoch": [1], "train/loss": [3.0]}))
    assert not list((tmp_path / "artifacts").rglob("history.csv"))
    run.hook.after_pipeline_run()
    assert len(list((tmp_path / "artifacts").rglob("tables/history.csv"))) == 1


def test_data_sets_are_recorded_once_with_their_digest(run: Run, tmp_path: Path) -> None:
    run.save("data", {"images": [1, 2]})
    run.hook.after_dataset_loaded("data")
    run.hook.after_dataset_loaded("plain")
    inputs = parent().inputs
    assert inputs is not None
    (found,) = inputs.dataset_inputs
    assert found.dataset.name == "data"
    assert found.dataset.digest == file_digest(tmp_path / "data.json")
    assert [tag.value for tag in found.tags] == ["training"]


def test_a_store_that_refuses_costs_a_warning(run: Run, experiment: str, caplog: pytest.LogCaptureFixture) -> None:
    run.train()
    mlflow.MlflowClient().delete_run(training(experiment).info.run_id)  # MLflow refuses metrics of a deleted run
    with caplog.at_level(logging.WARNING):
        run.epoch(3.0)
    assert "MLflow did not take send_history" in caplog.text
