"""A training that is killed goes on where it was, and ends with the same weights."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.pipelines.project import TINY, Project

pytestmark = pytest.mark.slow

EPOCHS = 4
PARAMS = TINY | {"detection.epochs": str(EPOCHS), "mask_head.epochs": str(EPOCHS)}


def weights(project: Project, stage: str, which: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(project.folder / f"data/06_models/{stage}/{which}.pt", weights_only=True)["model"]


def kill_during(project: Project, stage: str, epoch: int) -> None:
    """Start the run and kill -9 it once ``stage`` has saved ``epoch`` epochs, in the middle of the next."""
    text = ",".join(f"{name}={value}" for name, value in PARAMS.items())
    command = project.command("run", "--env", "sample", "--params", text, "--only-missing-outputs")
    log = (project.folder / "killed.log").open("w")
    process = subprocess.Popen(command, cwd=project.folder, env=project.environment(), stdout=log, stderr=log)
    path = project.folder / f"data/06_models/{stage}/last.pt"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and torch.load(path, weights_only=True, mmap=True)["epoch"] >= epoch:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    log.close()
    assert path.is_file(), (project.folder / "killed.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(make_project: Callable[[], Project]) -> Project:
    project = make_project()
    project.run("--pipelines", "sample_data")
    project.run(params=PARAMS)
    return project


@pytest.mark.parametrize("stage", ["detection", "mask_head"])
def test_a_killed_training_resumes_bit_for_bit(
    undisturbed: Project, make_project: Callable[[], Project], stage: str
) -> None:
    project = make_project()
    shutil.copytree(undisturbed.folder / "data" / "01_raw", project.folder / "data" / "01_raw")
    kill_during(project, stage, epoch=1)
    epochs = torch.load(project.folder / f"data/06_models/{stage}/last.pt", weights_only=True)["epoch"]
    assert 1 <= epochs < EPOCHS, "the training was over before it could be killed"

    project.run("--only-missing-outputs", params=PARAMS)

    for name in ("detection", "mask_head"):
        for which in ("last", "best"):
            expected = weights(undisturbed, name, which)
            found = weights(project, name, which)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected), (name, which)
    for path in ("panoptic_quality.json", "average_precision.json"):
        one, other = (p.folder / "data/08_reporting" / path for p in (undisturbed, project))
        assert one.read_bytes() == other.read_bytes(), path


def test_other_settings_start_over(undisturbed: Project, make_project: Callable[[], Project]) -> None:
    project = make_project()
    shutil.copytree(undisturbed.folder / "data" / "01_raw", project.folder / "data" / "01_raw")
    kill_during(project, "detection", epoch=1)
    done = project.run(
        "--only-missing-outputs",
        "--pipelines",
        "detection_training",
        params=PARAMS | {"detection.optimizer.lr": "0.01"},
    )
    assert "training starts over" in done.stdout
    history = Path(project.folder / "data/06_models/detection/history.csv").read_text().splitlines()
    assert len(history) == 1 + EPOCHS
