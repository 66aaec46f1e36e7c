import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import entities
from PIL import Image

from construction_panoptic.files import UNCHANGED
from construction_panoptic.tracking.facts import file_digest
from tests.unit.tracking.conftest import Run

pytestmark = pytest.mark.medium

Begin = Callable[..., Run]
LOSS = "detection/train/loss"


def runs(experiment: str, *, of_trainings: bool) -> list[entities.Run]:
    found = mlflow.MlflowClient().search_runs([experiment])
    return [run for run in found if ("stage" in run.data.tags) == of_trainings]


def command(experiment: str) -> entities.Run:
    (found,) = runs(experiment, of_trainings=False)
    return found


def training(experiment: str) -> entities.Run:
    (found,) = runs(experiment, of_trainings=True)
    return found


def steps(experiment: str, metric: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(training(experiment).info.run_id, metric)
    return sorted((m.step, m.value) for m in history)


def test_an_epoch_shows_in_the_training_s_run_while_it_trains(begin: Begin, experiment: str) -> None:
    run = begin().train()
    run.epoch(3.0)
    run.settle()
    assert steps(experiment, LOSS) == [(1, 3.0)]
    run.epoch(3.0, 2.0)
    run.settle()
    assert steps(experiment, LOSS) == [(1, 3.0), (2, 2.0)]
    assert steps(experiment, "detection/time/epoch_seconds") == [(1, 1.0), (2, 2.0)]
    assert training(experiment).info.status == "RUNNING"
    assert LOSS not in command(experiment).data.metrics


def test_the_training_s_run_is_in_that_of_the_command(begin: Begin, experiment: str) -> None:
    run = begin().begin()
    run.save("data", [1])
    run.train().epoch(3.0)
    run.settle()
    found = training(experiment)
    assert found.data.tags["mlflow.parentRunId"] == command(experiment).info.run_id
    # Nothing of a group that no node of the run takes.
    assert found.data.params == command(experiment).data.params == {"detection.optimizer.lr": "0.1"}
    assert found.info.run_name == "main detection"
    assert found.inputs is not None
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["data"]


def test_a_training_may_have_no_best_epoch_yet(begin: Begin, experiment: str) -> None:
    run = begin().train()
    for name in ("best", "progress"):
        run.hook.after_dataset_saved(name, UNCHANGED)
    run.hook.after_pipeline_run()
    assert training(experiment).info.status == "FINISHED"


def test_a_finished_training_has_its_best_and_last_models(begin: Begin, experiment: str) -> None:
    run = begin().train()
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
        assert linked[LOSS] == (epoch, loss)
        (file,) = mlflow.MlflowClient().list_logged_model_artifacts(model.model_id)
        assert file.path == f"{name}.pt"
    # Linking them adds nothing to the curves.
    assert steps(experiment, LOSS) == [(1, 3.0), (2, 1.0), (3, 2.0)]
    assert steps(experiment, "detection/time/epoch_seconds") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    numbers = command(experiment).data.metrics
    assert {name: value for name, value in numbers.items() if not name.startswith("system/")} == {
        "detection/best/epoch": 2.0,
        "detection/best/ap": 1.0,
    }


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_failed_and_killed_runs_say_so(begin: Begin, experiment: str, status: str) -> None:
    run = begin().train()
    run.epoch(3.0)
    if status == "KILLED":
        run.hook.end("KILLED", 30)
    else:
        run.hook.on_pipeline_error()
    assert (training(experiment).info.status, command(experiment).info.status) == (status, status)
    assert mlflow.active_run() is None


def test_a_command_without_a_node_leaves_no_run(begin: Begin, experiment: str) -> None:
    begin().hook.on_pipeline_error()
    assert not mlflow.MlflowClient().search_runs([experiment])


def test_nothing_is_told_of_pipelines_that_are_no_experiment(begin: Begin, experiment: str, tmp_path: Path) -> None:
    run = begin()
    run.hook.end("FINISHED", 30)
    run.tracking.disable_tracking.pipelines = ["sample_data", "prediction"]
    run.hook.before_pipeline_run({"pipeline_names": ["sample_data"]}, None, run.catalog)  # type: ignore[arg-type]
    run.begin().save("data", [1])
    run.hook.after_pipeline_run()
    assert not mlflow.MlflowClient().search_runs([experiment])


def test_pictures_have_the_epoch_as_step(begin: Begin, tmp_path: Path) -> None:
    run = begin().train()
    run.epoch(3.0)
    run.save("progress", Image.new("RGB", (8, 8)))
    run.epoch(3.0, 2.0)
    run.hook.after_dataset_saved("progress", "unchanged")
    run.settle()
    names = [path.name for path in (tmp_path / "mlartifacts").rglob("detection~progress*.png")]
    assert len(names) == 1
    assert "+step+1+" in names[0]


def test_final_numbers_and_tables_are_the_command_s(begin: Begin, experiment: str) -> None:
    run = begin().begin()
    run.save("quality", pd.DataFrame({"name": ["All", "crane"], "pq": [0.5, None]}))
    run.hook.after_pipeline_run()
    found = command(experiment)
    assert {name: value for name, value in found.data.metrics.items() if "PQ" in name} == {"PQ/All": 0.5}
    assert "| All | 50.0 |\n| crane | - |" in found.data.tags["mlflow.note.content"]
    table = mlflow.MlflowClient().load_table(experiment, "tables/quality.json", [found.info.run_id])
    assert table["name"].tolist() == ["All", "crane"]


def test_files_are_sent_when_their_node_is_done(begin: Begin, tmp_path: Path) -> None:
    run = begin().begin()
    run.save("history", pd.DataFrame({"epoch": [1], "train/loss": [3.0]}))
    run.settle()
    assert not list((tmp_path / "mlartifacts").rglob("history.csv"))
    run.hook.after_pipeline_run()
    assert len(list((tmp_path / "mlartifacts").rglob("tables/history.csv"))) == 1


def test_data_sets_are_recorded_once_with_their_digest(begin: Begin, experiment: str, tmp_path: Path) -> None:
    run = begin()
    run.catalog.save("data", {"images": [1, 2]})
    run.hook.after_dataset_loaded("data")  # Kedro loads a node's inputs before it says that the node runs
    run.begin()
    run.save("data", {"images": [1, 2]})
    run.hook.after_dataset_loaded("plain")
    run.settle()
    inputs = command(experiment).inputs
    assert inputs is not None
    (found,) = inputs.dataset_inputs
    assert found.dataset.name == "data"
    assert found.dataset.digest == file_digest(tmp_path / "data.json")
    assert [tag.value for tag in found.tags] == ["training"]


def test_a_run_that_was_deleted_costs_a_warning(
    begin: Begin, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = begin().train()
    run.epoch(3.0)
    run.settle()
    mlflow.MlflowClient().delete_run(training(experiment).info.run_id)  # MLflow refuses metrics of a deleted run
    with caplog.at_level(logging.WARNING):
        run.epoch(3.0, 2.0)
        run.settle()
        run.epoch(3.0, 2.0, 1.0)
        run.settle()
    assert caplog.text.count("MLflow did not take history of main detection") == 1


def test_a_copied_project_is_on_its_own(begin: Begin, experiment: str, tmp_path: Path) -> None:
    run = begin().train()
    run.epoch(3.0)
    run.hook.after_pipeline_run()
    for name in ("mlflow.db", ".mlflow/trainings.json"):
        assert str(tmp_path).encode() not in (tmp_path / name).read_bytes()
    copy = tmp_path.parent / f"{tmp_path.name}_copy"
    shutil.copytree(tmp_path, copy)
    mlflow.set_tracking_uri(f"sqlite:///{copy}/mlflow.db")
    before = sorted(tmp_path.rglob("*"))
    run = Run(copy, run.catalog)
    run.train().hook.after_pipeline_run()
    assert sorted(tmp_path.rglob("*")) == before
