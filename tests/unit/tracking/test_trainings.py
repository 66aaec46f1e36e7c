"""A training that is interrupted goes on in its run: no step twice, none missing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog
from mlflow import entities
from mlflow.exceptions import MlflowException
from PIL import Image

from construction_panoptic.tracking import sender
from tests.unit.tracking.conftest import Run, killed

pytestmark = pytest.mark.medium

Begin = Callable[..., Run]


def trainings(experiment: str) -> list[entities.Run]:
    return list(mlflow.MlflowClient().search_runs([experiment], "tags.stage = 'detection'", order_by=["start_time"]))


def steps(run: entities.Run, metric: str = "train/loss") -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, f"detection/{metric}")
    return sorted((m.step, m.value) for m in history)


def fail(run: Run, *losses: float) -> None:
    """Train for some epochs, and fail."""
    run.train().epoch(*losses)
    run.hook.on_pipeline_error()


def test_an_interrupted_training_goes_on_in_its_run(begin: Begin, experiment: str) -> None:
    fail(begin(), 3.0, 2.0)
    run = begin().train()
    run.epoch(3.0, 2.0, 1.0)
    run.settle()
    (training,) = trainings(experiment)
    assert training.info.status == "RUNNING"
    assert steps(training) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert steps(training, "time/epoch_seconds") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    active = mlflow.active_run()
    assert active is not None
    assert training.data.tags["mlflow.parentRunId"] == active.info.run_id


def test_kill_9_loses_nothing_and_sends_nothing_twice(
    begin: Begin, experiment: str, tmp_path: Path, catalog: DataCatalog
) -> None:
    def work() -> None:
        run = Run(tmp_path, catalog, "killed").train()
        run.epoch(3.0)
        run.settle()
        run.epoch(3.0, 2.0)
        run.save("quality", pd.DataFrame({"name": ["All"], "pq": [0.5]}))

    killed(work)
    run = begin()
    (dead,) = [run for run in mlflow.search_runs([experiment], output_format="list") if run.info.run_name == "killed"]
    assert dead.info.status == "FAILED"
    assert dead.data.metrics["PQ/All"] == 0.5
    assert steps(trainings(experiment)[0]) == [(1, 3.0), (2, 2.0)]
    run.train().epoch(3.0, 2.0, 1.0)
    run.settle()
    (training,) = trainings(experiment)
    assert steps(training) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert training.info.status == "RUNNING"


def test_a_training_that_was_killed_after_its_last_epoch_is_completed(
    begin: Begin, experiment: str, tmp_path: Path, catalog: DataCatalog
) -> None:
    """It is not run again, so nothing else would close its run, nor send its models and its last times."""

    def work() -> None:
        run = Run(tmp_path, catalog).train()
        run.epoch(3.0)
        run.settle()
        catalog.save("best", {"epoch": 2, "finished": True, "model": {"weight": torch.zeros(2)}})
        catalog.save("history", pd.DataFrame({"epoch": [1, 2], "train/loss": [3.0, 2.0], "val/ap": [1 / 3, 0.5]}))
        catalog.save("timings", pd.DataFrame({"epoch": [1, 2], "time/epoch_seconds": [1.0, 2.0]}))
        catalog.save("progress", Image.new("RGB", (8, 8)))
        catalog.save("last", {"epoch": 2, "finished": True, "model": {"weight": torch.ones(2)}})

    killed(work)
    begin()
    (training,) = trainings(experiment)
    assert training.info.status == "FINISHED"
    assert steps(training) == [(1, 3.0), (2, 2.0)]
    assert steps(training, "time/epoch_seconds") == [(1, 1.0), (2, 2.0)]
    models = mlflow.MlflowClient().search_logged_models([experiment])
    assert {model.name: model.params["epoch"] for model in models} == {"detection-best": "2", "detection-last": "2"}
    assert mlflow.get_run(training.data.tags["mlflow.parentRunId"]).data.metrics["detection/best/ap"] == 0.5
    begin()
    assert len(trainings(experiment)) == 1


def test_its_models_are_replaced_not_added_to(begin: Begin, experiment: str) -> None:
    fail(begin(), 3.0)
    second = begin().train()
    second.epoch(3.0, 2.0)
    second.hook.after_pipeline_run()
    models = {model.name: model for model in mlflow.MlflowClient().search_logged_models([experiment])}
    assert {name: model.params["epoch"] for name, model in models.items()} == {
        "detection-best": "2",
        "detection-last": "2",
    }
    assert steps(trainings(experiment)[0]) == [(1, 3.0), (2, 2.0)]


def test_an_epoch_that_was_sent_and_then_done_again_is_there_once(begin: Begin, experiment: str) -> None:
    fail(begin(), 3.0, 2.0)
    fail(begin(), 3.0, 2.0)
    (training,) = trainings(experiment)
    assert steps(training) == [(1, 3.0), (2, 2.0)]


def test_a_run_that_is_stopped_before_an_epoch_is_done_leaves_the_training_as_it_is(
    begin: Begin, experiment: str
) -> None:
    fail(begin(), 3.0)
    stopped = begin().train()
    stopped.save("history", pd.DataFrame(columns=["epoch"]))
    stopped.hook.end("KILLED", 30)
    fail(begin(), 3.0, 2.0)
    assert steps(trainings(experiment)[0]) == [(1, 3.0), (2, 2.0)]


def test_a_training_that_starts_over_has_a_new_run(begin: Begin, experiment: str) -> None:
    fail(begin(), 3.0, 2.0)
    fail(begin(), 4.0)
    old, new = trainings(experiment)
    assert steps(old) == [(1, 3.0), (2, 2.0)]
    assert steps(new) == [(1, 4.0)]
    assert "continues" not in new.data.tags


def test_a_finished_training_is_not_continued(begin: Begin, experiment: str) -> None:
    first = begin().train()
    first.epoch(3.0)
    first.hook.after_pipeline_run()
    fail(begin(), 3.0)
    assert [steps(run) for run in trainings(experiment)] == [[(1, 3.0)], [(1, 3.0)]]


@pytest.mark.parametrize("loss", ["run", "server"])
def test_where_its_run_is_lost_a_new_one_has_everything_and_says_what_it_continues(
    begin: Begin, experiment: str, loss: str, tmp_path: Path
) -> None:
    first = begin().train()
    first.epoch(3.0)
    first.hook.on_pipeline_error()
    old = trainings(experiment)[0].info.run_id
    if loss == "run":
        mlflow.MlflowClient().delete_run(old)
    else:
        path = tmp_path / ".mlflow" / "trainings.json"
        path.write_text(path.read_text().replace('"experiment_id"', '"store": "http://elsewhere", "experiment_id"'))
    fail(begin(), 3.0, 2.0)
    new = trainings(experiment)[-1]
    assert new.info.run_id != old
    assert steps(new) == [(1, 3.0), (2, 2.0)]
    assert new.data.tags["continues"] == old


def test_epochs_that_a_locked_database_did_not_take_are_sent_at_the_end(
    begin: Begin, experiment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = begin().train()
    run.epoch(3.0)
    run.settle()

    def locked(*_: object, **__: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database is locked")

    monkeypatch.setattr(sender, "RETRY_AFTER", 0.1)
    with monkeypatch.context() as held:
        held.setattr(mlflow.MlflowClient, "log_batch", locked)
        run.epoch(3.0, 2.0)
        assert run.hook._sender is not None
        assert not run.hook._sender.settle(5)
        run.epoch(3.0, 2.0, 1.0)
        assert not run.hook._sender.settle(5)
    assert caplog.text.count("MLflow's database does not answer") == 1
    run.hook.after_pipeline_run()
    (training,) = trainings(experiment)
    assert steps(training) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert steps(training, "time/epoch_seconds") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert training.info.status == "FINISHED"


def test_a_slow_store_holds_no_epoch_up(begin: Begin, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log_batch, held = mlflow.MlflowClient.log_batch, 2.0  # seconds

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(held)
        return log_batch(*args, **kwargs)

    run = begin().train()
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", slow)
    began = time.monotonic()
    for done in range(1, 11):
        run.epoch(*[1 / number for number in range(1, done + 1)])
    assert time.monotonic() - began < 10 * held  # two tables an epoch
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    run.hook.after_pipeline_run()
    assert [step for step, _ in steps(trainings(experiment)[0])] == [*range(1, 11)]
    assert [step for step, _ in steps(trainings(experiment)[0], "time/epoch_seconds")] == [*range(1, 11)]
