import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from kedro.io import DataCatalog
from mlflow.entities import Run

from construction_panoptic.catalog import CSVDataset, JSONDataset
from construction_panoptic.tracking.hook import TrackingHook, close_abandoned_runs, file_digest, git_tags, row_metrics


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    def table(name: str, **wanted: Any) -> CSVDataset:
        return CSVDataset(filepath=str(tmp_path / f"{name}.csv"), metadata={"mlflow": wanted})

    return DataCatalog(
        {
            "history": table("history", history="detection", artifact="tables"),
            "quality": table("quality", rows={"name": "name", "values": ["pq"]}),
            "data": JSONDataset(filepath=str(tmp_path / "data.json"), metadata={"mlflow": {"input": "training"}}),
            "plain": JSONDataset(filepath=str(tmp_path / "plain.json")),
        }
    )


@pytest.fixture
def hook(tmp_path: Path, catalog: DataCatalog) -> Iterator[TrackingHook]:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    hook = TrackingHook()
    with mlflow.start_run(experiment_id=experiment):
        hook.before_pipeline_run(catalog)
        yield hook
    mlflow.set_tracking_uri("")


def save(hook: TrackingHook, catalog: DataCatalog, name: str, data: Any) -> None:
    catalog.save(name, data)
    hook.after_dataset_saved(name, data)


def active() -> Run:
    run = mlflow.active_run()
    assert run is not None
    return mlflow.get_run(run.info.run_id)


def steps(metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(active().info.run_id, metric)]


def test_an_epoch_shows_as_soon_as_it_is_saved(hook: TrackingHook, catalog: DataCatalog) -> None:
    first = pd.DataFrame([{"epoch": 1, "train/loss": 3.0, "val/ap": float("nan")}])
    save(hook, catalog, "history", first)
    assert steps("detection/train/loss") == [(1, 3.0)]
    assert "detection/val/ap" not in active().data.metrics
    save(hook, catalog, "history", pd.concat([first, pd.DataFrame([{"epoch": 2, "train/loss": 2.0, "val/ap": 0.5}])]))
    assert steps("detection/train/loss") == [(1, 3.0), (2, 2.0)]
    assert steps("detection/val/ap") == [(2, 0.5)]


def test_a_resumed_training_sends_the_whole_curve(hook: TrackingHook, catalog: DataCatalog) -> None:
    save(hook, catalog, "history", pd.DataFrame({"epoch": [1, 2, 3], "train/loss": [3.0, 2.0, 1.0]}))
    assert steps("detection/train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_final_numbers_are_named_by_row(hook: TrackingHook, catalog: DataCatalog) -> None:
    save(hook, catalog, "quality", pd.DataFrame({"name": ["All", "crane"], "pq": [0.5, None]}))
    assert active().data.metrics == {"pq/All": 0.5}


def test_files_are_sent_when_their_node_is_done(hook: TrackingHook, catalog: DataCatalog, tmp_path: Path) -> None:
    save(hook, catalog, "history", pd.DataFrame({"epoch": [1], "train/loss": [3.0]}))
    assert not list((tmp_path / "artifacts").rglob("history.csv"))
    hook.before_node_run()
    assert len(list((tmp_path / "artifacts").rglob("tables/history.csv"))) == 1


def test_data_sets_are_recorded_once_with_their_digest(
    hook: TrackingHook, catalog: DataCatalog, tmp_path: Path
) -> None:
    save(hook, catalog, "data", {"images": [1, 2]})
    hook.after_dataset_loaded("data")
    hook.after_dataset_loaded("plain")
    inputs = active().inputs
    assert inputs is not None
    (found,) = inputs.dataset_inputs
    assert found.dataset.name == "data"
    assert found.dataset.digest == file_digest(tmp_path / "data.json")
    assert [tag.value for tag in found.tags] == ["training"]


def test_a_failing_server_costs_a_warning(
    hook: TrackingHook, catalog: DataCatalog, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = active().info.run_id
    mlflow.MlflowClient().delete_run(run_id)  # MLflow refuses metrics of a deleted run
    with caplog.at_level(logging.WARNING):
        save(hook, catalog, "history", pd.DataFrame({"epoch": [1], "train/loss": [3.0]}))
    assert "MLflow did not take" in caplog.text
    mlflow.MlflowClient().restore_run(run_id)


def test_the_commit_and_whether_it_is_clean_are_tagged(repository: Path, tmp_path: Path) -> None:
    tags = git_tags(repository)
    assert len(tags["git_commit"]) == 40
    assert tags["git_dirty"] in {"true", "false"}
    assert git_tags(tmp_path) == {}


def test_row_metrics_leave_out_what_is_no_number() -> None:
    table = pd.DataFrame({"name": ["a", "b"], "pq": [0.25, float("nan")], "n": [True, False]})
    assert row_metrics(table, "name", ["pq", "n"]) == {"pq/a": 0.25}


def test_runs_of_dead_processes_are_closed(hook: TrackingHook) -> None:
    client = mlflow.MlflowClient()
    experiment = active().info.experiment_id
    dead = client.create_run(experiment, tags={"host": socket.gethostname(), "process": "999999@1"})
    elsewhere = client.create_run(experiment, tags={"host": "another-machine", "process": "999999@1"})
    close_abandoned_runs(experiment)
    assert client.get_run(dead.info.run_id).info.status == "FAILED"
    assert client.get_run(elsewhere.info.run_id).info.status == "RUNNING"
    assert active().info.status == "RUNNING"
