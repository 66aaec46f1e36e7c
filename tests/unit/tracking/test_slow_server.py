"""A tracking server that answers late: a training does not wait for it, and it gets everything, once and in order."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from kedro.io import DataCatalog
from PIL import Image

from construction_panoptic.tracking import outbox
from construction_panoptic.tracking.hook import mark_run_killed
from tests.unit.tracking.conftest import Run, forget_process, ignore
from tests.unit.tracking.server import HeldServer

LOSS = "detection/train/loss"
EPOCHS = 5


@pytest.fixture
def server(tmp_path: Path, folder: Path) -> Iterator[HeldServer]:
    server = HeldServer(tmp_path / "artifacts")
    mlflow.set_tracking_uri(server.uri)
    yield server
    server.release()
    while mlflow.active_run() is not None:
        mlflow.end_run()
    server.stop()


@pytest.fixture
def run(tmp_path: Path, catalog: DataCatalog, server: HeldServer) -> Run:
    mlflow.start_run(experiment_id="0", log_system_metrics=False)
    run = Run(tmp_path, catalog)
    run.save("data", [1])
    run.train()
    outbox._stores[server.uri].outbox.settled(30)
    return run


def train(run: Run) -> None:
    for epoch in range(1, EPOCHS + 1):
        run.epoch(*[1 / number for number in range(1, epoch + 1)])
        run.save("progress", Image.new("RGB", (8, 8)))


def waiting(folder: Path) -> list[str]:
    (path,) = folder.glob("*.jsonl")
    return path.read_text().splitlines()


def test_epochs_do_not_wait_for_it(run: Run, server: HeldServer, folder: Path, tmp_path: Path) -> None:
    server.hold()
    before = len(server.received)
    train(run)
    assert len(server.received) == before  # all epochs are done, and the first request is not answered yet
    assert sum('"api": "LogBatch"' in line for line in waiting(folder)) == 2 * EPOCHS  # losses, and times
    server.release()
    outbox.send_rest(server.uri)
    for name in (LOSS, "detection/time/epoch_seconds"):
        assert [step for step, _ in server.metrics(name)] == [*range(1, EPOCHS + 1)]
    pictures = [path.name for path in (tmp_path / "artifacts").rglob("*.png")]
    assert sorted(name.split("+")[2] for name in pictures) == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert not list(folder.iterdir())


def test_what_it_does_not_take_in_time_is_left_to_the_next_run(
    run: Run, server: HeldServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.hold()
    train(run)
    began = time.monotonic()
    outbox.send_rest(server.uri, 0.1, abrupt=True)
    assert time.monotonic() - began < 10
    assert "does not keep up" in caplog.text
    assert "for the next run" in caplog.text
    server.release()
    forget_process()
    outbox.install(folder, ignore)
    mlflow.MlflowClient().get_run("run1")  # any request of the next run
    outbox.send_rest(server.uri)
    found = server.metrics(LOSS)
    assert [step for step, _ in sorted(set(found))] == [*range(1, EPOCHS + 1)]  # one that was under way may come again
    assert not list(folder.iterdir())


def test_a_run_that_is_stopped_does_not_wait_for_it(
    run: Run, server: HeldServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("construction_panoptic.tracking.hook.LAST_SECONDS", 0.2)
    server.hold()
    run.epoch(1.0)
    began = time.monotonic()
    mark_run_killed()
    assert time.monotonic() - began < 10
    assert sum("KILLED" in line for line in waiting(folder)) == 2
    assert mlflow.active_run() is None


def test_kill_9_loses_nothing_and_sends_nothing_twice(server: HeldServer, folder: Path) -> None:
    ready, go = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def work() -> None:
        client = mlflow.MlflowClient()
        for step in range(1, 4):
            client.log_metric("run1", "a", 1.0, step=step)
        outbox._stores[server.uri].outbox.settled(30)
        ready.set()
        go.wait(60)
        for step in range(4, 9):
            client.log_metric("run1", "a", 1.0, step=step)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert ready.wait(60)
    server.hold()
    go.set()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    server.release()
    mlflow.MlflowClient().get_run("run1")
    outbox.send_rest(server.uri)
    found = [content for api, content in server.received if api == "runs/log-metric"]
    steps = sorted({(int(content["step"]), content["timestamp"]) for content in found})
    assert [step for step, _ in steps] == [*range(1, 9)]
    assert len(found) <= 9  # none but the one that was under way came again, with its own time
    assert not list(folder.iterdir())


def test_a_picture_that_may_have_arrived_is_looked_for_first(run: Run, server: HeldServer, tmp_path: Path) -> None:
    run.epoch(1.0)
    run.save("progress", Image.new("RGB", (8, 8)))
    path = tmp_path / "progress.png"
    task = {"kind": "image", "path": str(path), "run_id": server.run_id(1), "key": "detection/progress", "step": 7}
    for _ in range(2):
        outbox.perform({**task, "timestamp": 1}, server.uri, doubtful=True)
    assert len([*(tmp_path / "artifacts").rglob("*+step+7+*.png")]) == 1


def test_a_damaged_line_is_left_out_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    entry = json.dumps({"api": "LogBatch", "body": "{}"})
    (folder / "a.jsonl").write_text(f'{{"uri": "http://here"}}\n{entry}\n{{"api": Lo\n{entry}\n')
    (folder / "b.jsonl").write_text('{"uri": "http://elsewhere"}\n' + entry + "\n")
    assert outbox.WaitingEntries(folder, "http://here").count == 2
    assert "a.jsonl: a line is damaged" in caplog.text
