"""A training that is interrupted goes on in its run: no step twice, none missing."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog
from mlflow import entities
from mlflow.exceptions import MlflowException
from PIL import Image

from tests.unit.tracking.conftest import Run


@pytest.fixture
def begin(tmp_path: Path, catalog: DataCatalog, experiment: str) -> Callable[[], Run]:
    """Begin a ``kedro run`` that trains; one before it ends as FAILED."""

    def start() -> Run:
        if mlflow.active_run() is not None:
            mlflow.end_run("FAILED")
        mlflow.start_run(experiment_id=experiment)
        run = Run(tmp_path, catalog)
        run.train()
        return run

    return start


def trainings(experiment: str) -> list[entities.Run]:
    return list(mlflow.MlflowClient().search_runs([experiment], "tags.stage = 'detection'", order_by=["start_time"]))


def steps(run: entities.Run, metric: str = "train/loss") -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"detection/{metric}")
    return sorted((m.step, m.value) for m in history)


def test_an_interrupted_training_goes_on_in_its_run(begin: Callable[[], Run], experiment: str) -> None:
    first = begin()
    first.epoch(3.0)
    first.epoch(3.0, 2.0)
    first.hook.on_pipeline_error()
    begin().epoch(3.0, 2.0, 1.0)
    (training,) = trainings(experiment)
    assert training.info.status == "RUNNING"
    assert steps(training) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert steps(training, "time/epoch_seconds") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    active = mlflow.active_run()
    assert active is not None
    assert training.data.tags["mlflow.parentRunId"] == active.info.run_id


def test_its_models_are_replaced_not_added_to(begin: Callable[[], Run], experiment: str) -> None:
    first = begin()
    first.epoch(3.0)
    first.hook.on_pipeline_error()
    second = begin()
    second.epoch(3.0, 2.0)
    second.hook.after_pipeline_run()
    models = {model.name: model for model in mlflow.MlflowClient().search_logged_models([experiment])}
    assert {name: model.params["epoch"] for name, model in models.items()} == {
        "detection-best": "2",
        "detection-last": "2",
    }
    assert steps(trainings(experiment)[0]) == [(1, 3.0), (2, 2.0)]


def test_an_epoch_that_was_sent_and_then_done_again_is_there_once(begin: Callable[[], Run], experiment: str) -> None:
    begin().epoch(3.0, 2.0)
    begin().epoch(3.0, 2.0)
    (training,) = trainings(experiment)
    assert steps(training) == [(1, 3.0), (2, 2.0)]


def test_epochs_that_the_run_lost_are_sent_again(begin: Callable[[], Run], experiment: str) -> None:
    begin().epoch(3.0)
    begin().epoch(3.0, 2.0, 1.0)  # the second epoch was saved, but never sent
    assert steps(trainings(experiment)[0]) == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_nothing_is_sent_before_an_epoch_is_done(begin: Callable[[], Run], experiment: str) -> None:
    begin().epoch(3.0)
    begin().save("history", pd.DataFrame(columns=["epoch"]))
    assert steps(trainings(experiment)[0]) == [(1, 3.0)]


def test_a_training_that_starts_over_has_a_new_run(begin: Callable[[], Run], experiment: str) -> None:
    begin().epoch(3.0, 2.0)
    begin().epoch(4.0)
    old, new = trainings(experiment)
    assert steps(old) == [(1, 3.0), (2, 2.0)]
    assert steps(new) == [(1, 4.0)]
    assert "continues" not in new.data.tags


def test_a_finished_training_is_not_continued(begin: Callable[[], Run], experiment: str) -> None:
    first = begin()
    first.epoch(3.0)
    first.hook.after_pipeline_run()
    begin().epoch(3.0)
    assert [steps(run) for run in trainings(experiment)] == [[(1, 3.0)], [(1, 3.0)]]


@pytest.mark.parametrize("loss", ["run", "server"])
def test_where_its_run_is_lost_a_new_one_has_everything_and_says_what_it_continues(
    begin: Callable[[], Run], experiment: str, loss: str, tmp_path: Path
) -> None:
    begin().epoch(3.0)
    old = trainings(experiment)[0].info.run_id
    if loss == "run":
        mlflow.MlflowClient().delete_run(old)
    else:
        path = tmp_path / ".mlflow" / "trainings.json"
        path.write_text(path.read_text().replace("sqlite:", "http://elsewhere"))
    begin().epoch(3.0, 2.0)
    new = trainings(experiment)[-1]
    assert new.info.run_id != old
    assert steps(new) == [(1, 3.0), (2, 2.0)]
    assert new.data.tags["continues"] == old


def test_a_training_whose_run_was_killed_after_its_last_epoch_is_completed(
    begin: Callable[[], Run], tmp_path: Path, catalog: DataCatalog, experiment: str
) -> None:
    """It is not run again, so nothing else would close its run, nor send its models and its last times."""
    first = begin()
    first.epoch(3.0)
    catalog.save("best", {"epoch": 2, "finished": True, "model": {"weight": torch.zeros(2)}})
    catalog.save("history", pd.DataFrame({"epoch": [1, 2], "train/loss": [3.0, 2.0], "val/ap": [1 / 3, 0.5]}))
    catalog.save("timings", pd.DataFrame({"epoch": [1, 2], "time/epoch_seconds": [1.0, 2.0]}))
    catalog.save("progress", Image.new("RGB", (8, 8)))
    catalog.save("last", {"epoch": 2, "finished": True, "model": {"weight": torch.ones(2)}})
    mlflow.end_run("KILLED")
    with mlflow.start_run(experiment_id=experiment) as active:
        Run(tmp_path, catalog)
        (training,) = trainings(experiment)
        assert training.info.status == "FINISHED"
        assert steps(training) == [(1, 3.0), (2, 2.0)]
        assert steps(training, "time/epoch_seconds") == [(1, 1.0), (2, 2.0)]
        models = mlflow.MlflowClient().search_logged_models([experiment])
        assert {model.name: model.params for model in models} == {
            "detection-best": {"epoch": "2"},
            "detection-last": {"epoch": "2"},
        }
        assert mlflow.get_run(active.info.run_id).data.metrics["detection/best/ap"] == 0.5
        Run(tmp_path, catalog)
    assert len(trainings(experiment)) == 1


def test_epochs_that_mlflow_did_not_take_are_sent_again_at_the_end(
    begin: Callable[[], Run], experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another program held the database for the last of them."""
    run = begin()
    run.epoch(3.0)

    def locked(*_: object, **__: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database is locked")

    with monkeypatch.context() as held:
        held.setattr(mlflow.MlflowClient, "log_batch", locked)
        run.epoch(3.0, 2.0)
    (training,) = trainings(experiment)
    assert steps(training) == [(1, 3.0)]
    run.hook.after_pipeline_run()
    assert steps(training) == [(1, 3.0), (2, 2.0)]
    assert steps(training, "time/epoch_seconds") == [(1, 1.0), (2, 2.0)]
    assert trainings(experiment)[0].info.status == "FINISHED"
