import json
import socket
import time
from pathlib import Path

import mlflow
import pytest
from kedro.io import DataCatalog
from mlflow import entities
from PIL import Image

from construction_panoptic.errors import UserError
from construction_panoptic.tracking import outbox
from construction_panoptic.tracking.waiting import WaitingEntries
from tests.unit.tracking.conftest import Run, forget_process
from tests.unit.tracking.server import TrackingServer


@pytest.fixture
def nowhere(folder: Path) -> str:
    """Address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    mlflow.set_tracking_uri(uri)
    return uri


def entries(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_question_to_a_server_that_is_away_is_an_error_for_people(nowhere: str) -> None:
    with pytest.raises(UserError, match="does not answer"):
        mlflow.MlflowClient().get_experiment("0")


def test_what_is_said_to_it_is_kept(nowhere: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    client = mlflow.MlflowClient()
    run = client.create_run("0", tags={"stage": "detection"})
    assert client.get_run(run.info.run_id).data.tags["stage"] == "detection"
    for step in range(50):
        client.log_metric(run.info.run_id, "loss", 1.0, step=step)
    client.set_terminated(run.info.run_id, "FAILED")
    assert time.monotonic() - began < 20  # the server is not asked anew each time
    header, *kept = entries(folder)
    assert header == {"uri": nowhere}
    assert [entry["api"] for entry in kept] == ["CreateRun", *["LogMetric"] * 50, "UpdateRun"]
    assert caplog.text.count("does not answer") == 1


def test_a_server_that_accepts_and_never_answers_holds_nothing_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        client = mlflow.MlflowClient()
        began = time.monotonic()
        run = client.create_run("0")
        for step in range(20):
            client.log_metric(run.info.run_id, "loss", 1.0, step=step)
        assert 1 <= time.monotonic() - began < 15  # one wait, not twenty
    assert len(entries(folder)) == 22


def test_a_server_that_hangs_costs_little_when_it_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "SIGN_OF_LIFE", 1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow.set_tracking_uri(uri := f"http://127.0.0.1:{silent.getsockname()[1]}")
        mlflow.MlflowClient().create_run("0")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        began = time.monotonic()
        outbox.send_rest(uri)
        assert 1 <= time.monotonic() - began < 10
    assert [entry["api"] for entry in entries(folder)[1:]] == ["CreateRun"]


def test_a_file_is_kept_as_it_was(nowhere: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "best.pt"
    file.write_text("first")
    mlflow.MlflowClient().create_run("0")
    outbox.send({"kind": "artifact", "path": str(file), "run_id": "a", "target": "models"}, nowhere)
    new = tmp_path / "new.pt"
    new.write_text("second")
    new.replace(file)
    (kept,) = [Path(entry["path"]) for entry in entries(folder) if "path" in entry]
    assert (kept.name, kept.read_text()) == ("best.pt", "first")


def test_the_outbox_of_a_process_that_lives_is_left_alone(nowhere: str, folder: Path) -> None:
    mlflow.MlflowClient().create_run("0")
    assert WaitingEntries(folder, nowhere).count == 0
    forget_process()
    assert WaitingEntries(folder, nowhere).count == 1


def test_half_a_line_of_a_killed_process_is_no_hindrance(nowhere: str, folder: Path) -> None:
    mlflow.MlflowClient().create_run("0")
    forget_process()
    (path,) = folder.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"api": "LogB')
    former = WaitingEntries(folder, nowhere)
    former.append({"api": "SetTag"})
    assert apis(former) == ["CreateRun", "SetTag"]


def apis(waiting: WaitingEntries) -> list[str]:
    found = []
    while (entry := waiting.first()) is not None:
        found.append(entry["api"])
        waiting.done()
    return found


@pytest.mark.slow
def test_nothing_is_lost_while_the_server_is_away(
    folder: Path, database: Path, catalog: DataCatalog, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    server = TrackingServer(tmp_path / "server", database)
    server.start()
    try:
        mlflow.set_tracking_uri(server.uri)
        experiment = mlflow.create_experiment("test")
        mlflow.start_run(experiment_id=experiment, run_name="main")
        run = Run(tmp_path, catalog)
        run.save("data", [1])
        run.train()
        run.epoch(3.0)
        server.stop()
        began = time.monotonic()
        run.epoch(3.0, 2.0)
        run.save("progress", Image.new("RGB", (8, 8)))
        mlflow.log_param("late", "yes")
        run.train()  # the next training begins while the server is away
        run.epoch(5.0)
        run.hook.after_pipeline_run()
        mlflow.end_run()
        run.hook.after_closed_run()
        assert time.monotonic() - began < 30
        remembered = tmp_path / ".mlflow" / "trainings.json"
        assert "standin" in remembered.read_text()
        forget_process()
        server.start()
        outbox.install(folder, run.hook._rename_run)
        mlflow.MlflowClient().search_experiments()
        outbox.send_rest(server.uri)
        check(experiment)
        assert "standin" not in remembered.read_text()
        assert list(folder.iterdir()) == []
    finally:
        server.stop()


def check(experiment: str) -> None:
    """The server has everything, once, with the times and states that it had."""
    client = mlflow.MlflowClient()

    def steps(run: entities.Run) -> list[tuple[int, float]]:
        history = client.get_metric_history(run.info.run_id, "detection/train/loss")
        return sorted((metric.step, metric.value) for metric in history)

    runs = client.search_runs([experiment], order_by=["start_time"])
    main, first, second = runs
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert main.data.params == {"late": "yes"}
    assert [steps(run) for run in (first, second)] == [[(1, 3.0), (2, 2.0)], [(1, 5.0)]]
    assert second.data.tags["mlflow.parentRunId"] == main.info.run_id
    assert second.data.params == {"detection.optimizer.lr": "0.1"}
    assert second.inputs is not None
    assert [item.dataset.name for item in second.inputs.dataset_inputs] == ["data"]
    assert any("+step+2+" in file.path for file in client.list_artifacts(first.info.run_id, "images"))
    models = client.search_logged_models([experiment])
    assert sorted((model.name, model.source_run_id) for model in models) == sorted(
        (name, run.info.run_id) for name in ("detection-best", "detection-last") for run in (first, second)
    )
    for model in models:
        assert [Path(f.path).suffix for f in client.list_logged_model_artifacts(model.model_id)] == [".pt"]
