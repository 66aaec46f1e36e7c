"""SIGTERM and Ctrl-C end a training in order: the last step is kept, the run is closed, and it can go on."""

import signal
import sqlite3
import subprocess
import time

import pandas as pd
import pytest
import torch

from tests.integration.pipelines.project import TINY, Project

pytestmark = pytest.mark.slow

PARAMS = TINY | {"detection.epochs": "40"}


def epochs_saved(project: Project) -> int:
    path = project.folder / "data/06_models/detection/last.pt"
    return torch.load(path, weights_only=True, mmap=True)["epoch"] if path.is_file() else 0


def stop_after_an_epoch(project: Project, number: signal.Signals) -> tuple[int, str]:
    """Start the training, send a signal once it has saved one more epoch, and give exit status and output."""
    text = ",".join(f"{name}={value}" for name, value in PARAMS.items())
    command = project.command(
        "run", "--env", "sample", "--only-missing-outputs", "--pipelines", "detection_training", "--params", text
    )
    wanted = epochs_saved(project) + 1
    log = project.folder / "stopped.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=project.folder, env=project.environment(), stdout=file, stderr=file)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None and epochs_saved(project) < wanted:
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(timeout=120)
    return code, log.read_text()


def run_states(project: Project) -> list[str]:
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        return [state for (state,) in database.execute("select status from runs order by start_time")]


def test_a_stopped_training_says_so_and_goes_on(project: Project) -> None:
    project.run("--pipelines", "sample_data")
    project.run("--pipelines", "annotation_conversion")
    states = run_states(project)
    done = 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        returned, output = stop_after_an_epoch(project, number)
        assert returned == code, output[-3000:]
        done, before = epochs_saved(project), done
        assert before < done < 40
        text = " ".join(output.split())
        assert f"Stopped by {number.name}: detection: saved after epoch {done} of 40" in text
        assert "Then go on with: python -m kedro run --env sample --only-missing-outputs --pipelines" in text
        assert "Traceback" not in text
        if before:
            assert f"resumed after epoch {before} of 40" in text
        history = pd.read_csv(project.folder / "data/06_models/detection/history.csv")
        assert history["epoch"].tolist() == list(range(1, done + 1))
    # Two commands, and the training that both have a part in, with each epoch once.
    assert run_states(project) == [*states, "KILLED", "KILLED", "KILLED"]
    with sqlite3.connect(project.folder / "mlflow.db") as database:
        steps = database.execute("select step from metrics where key = 'detection/train/loss' order by step").fetchall()
    assert [step for (step,) in steps] == list(range(1, done + 1))
