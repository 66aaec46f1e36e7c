"""A training in two processes, of the machine or of Ray, through the pipeline: it is killed, leaves no process behind,
and goes on.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec

import pandas as pd
import psutil
import pytest
import torch

from tests.integration.pipelines.project import TINY, Project

pytestmark = pytest.mark.slow

PARAMS = TINY | {"detection.devices": "2", "detection.batch_size": "4", "detection.epochs": "3"}


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_killed_training_in_two_processes_goes_on(make_project: Callable[[], Project], engine: str) -> None:
    if engine == "ray" and find_spec("ray") is None:
        pytest.skip("Ray is not installed.")
    params = PARAMS | {"detection.execution.engine": engine}
    project = make_project()
    project.run("--pipelines", "sample_data")
    project.run("--pipelines", "annotation_conversion")
    text = ",".join(f"{name}={value}" for name, value in params.items())
    command = project.command("run", "--env", "sample", "--pipelines", "detection_training", "--params", text)
    process = subprocess.Popen(command, cwd=project.folder, env=project.environment(), stdout=subprocess.DEVNULL)
    last = project.folder / "data/06_models/detection/last.pt"
    deadline = time.monotonic() + 300
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=90)
    assert alive == []
    done = torch.load(last, weights_only=True)["epoch"]
    assert 1 <= done < 3

    finished = project.run("--only-missing-outputs", "--pipelines", "detection_training", params=params)

    assert f"resumed after epoch {done} of 3" in " ".join(finished.stdout.split())
    history = pd.read_csv(last.with_name("history.csv"))
    assert history["epoch"].tolist() == list(range(1, 4))
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["finished"]
    assert len(checkpoint["others"]) == 1
    assert "leaked" not in finished.stderr
