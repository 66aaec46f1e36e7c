"""Runs on a tracking server, which stops in the middle of a training and comes back after it."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch

from tests.integration.pipelines.project import TINY, Project
from tests.unit.tracking.server import TrackingServer

pytestmark = pytest.mark.slow

PARAMS = TINY | {"detection.epochs": "6", "run_name": "served"}


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path, database)
    server.start()
    yield server
    server.stop()


def start(project: Project, server: TrackingServer, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    text = ",".join(f"{name}={value}" for name, value in PARAMS.items())
    command = project.command("run", "--env", "sample", "--params", text, *arguments)
    environment = {**project.environment(), "MLFLOW_TRACKING_URI": server.uri}
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=project.folder, env=environment, stdout=file, stderr=file)


def epochs_saved(project: Project) -> int:
    path = project.folder / "data/06_models/detection/last.pt"
    return torch.load(path, weights_only=True, mmap=True)["epoch"] if path.is_file() else 0


def test_a_server_that_goes_away_costs_nothing(project: Project, server: TrackingServer, tmp_path: Path) -> None:
    project.run("--pipelines", "sample_data")
    log = tmp_path / "run.log"
    training = start(project, server, log, "--pipelines", "annotation_conversion,detection_training")
    deadline = time.monotonic() + 300
    while epochs_saved(project) < 2 and training.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    server.stop()
    assert training.wait(timeout=300) == 0, log.read_text()[-3000:]
    text = " ".join(log.read_text().split())
    assert text.count("Work goes on") == 1
    assert "Traceback" not in text
    assert "by the next kedro run" in text
    assert epochs_saved(project) == 6

    server.start()
    log = tmp_path / "next.log"
    assert start(project, server, log, "--pipelines", "mask_head_training").wait(timeout=300) == 0, log.read_text()
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("construction_panoptic")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time"])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert [run.info.run_name for run in runs] == ["served", "served detection", "served", "served mask_head"]
    detection, mask_head = runs[1], runs[3]
    for metric in ("train/loss", "val/ap", "time/epoch_seconds"):
        history = client.get_metric_history(detection.info.run_id, f"detection/{metric}")
        assert sorted(m.step for m in history) == [1, 2, 3, 4, 5, 6]
    assert runs[0].data.params["detection.epochs"] == "6"
    assert mask_head.data.tags["detection_run"] == detection.info.run_id
    pictures = {file.path for file in client.list_artifacts(detection.info.run_id, "images")}
    assert any("+step+6+" in path for path in pictures)  # those of the outage are lost, but for the last
    models = {model.name for model in client.search_logged_models([experiment.experiment_id])}
    assert models == {"detection-best", "detection-last", "mask_head-best", "mask_head-last"}


def test_a_server_that_is_not_there_is_an_error_at_the_start(project: Project, server: TrackingServer) -> None:
    server.stop()
    log = project.folder / "refused.log"
    assert start(project, server, log, "--pipelines", "annotation_conversion").wait(timeout=120) == 1
    text = " ".join(log.read_text().split())
    assert f"Error: The tracking server {server.uri} does not answer. Start it, or unset MLFLOW_TRACKING_URI" in text
    assert "Traceback" not in text
