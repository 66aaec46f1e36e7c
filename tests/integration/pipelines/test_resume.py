"""A job that is killed goes on where it was, and ends with the same results."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.integration.pipelines.project import TINY, Project
from tests.torture import Kill, Step, torture

pytestmark = pytest.mark.slow

EPOCHS = 4
PARAMS = TINY | {"detection.epochs": str(EPOCHS), "mask_head.epochs": str(EPOCHS)}


def kill_in_second_epoch(project: Project) -> None:
    """Start the run and kill -9 it once the detector's training has saved an epoch."""
    text = ",".join(f"{name}={value}" for name, value in PARAMS.items())
    command = project.command("run", "--env", "sample", "--params", text, "--only-missing-outputs")
    log = (project.folder / "killed.log").open("w")
    process = subprocess.Popen(command, cwd=project.folder, env=project.environment(), stdout=log, stderr=log)
    path = project.folder / "data/06_models/detection/last.pt"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and torch.load(path, weights_only=True, mmap=True)["epoch"] >= 1:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    log.close()
    assert path.is_file(), (project.folder / "killed.log").read_text()[-3000:]


def kills(steps: list[Step]) -> list[list[Kill]]:
    """One in each stage, and one while a checkpoint is written."""
    named = {step.node: step for step in steps}
    return [
        [
            Kill(named["annotation_conversion.merge_things_over_stuff"], signal.SIGKILL, 0.5),
            Kill(named["detection.train_detector"], signal.SIGKILL, None),
            Kill(named["mask_head.train_mask_head"], signal.SIGTERM, 0.5),
            Kill(named["panoptic_evaluation.measure_panoptic_quality"], signal.SIGKILL, 0.5),
        ]
    ]


def test_a_job_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    assert torture(tmp_path, kills) == []


def test_other_settings_start_over(project: Project) -> None:
    project.run("--pipelines", "sample_data")
    kill_in_second_epoch(project)
    done = project.run(
        "--only-missing-outputs",
        "--pipelines",
        "detection_training",
        params=PARAMS | {"detection.optimizer.lr": "0.01"},
    )
    assert "training starts over" in done.stdout
    history = Path(project.folder / "data/06_models/detection/history.csv").read_text().splitlines()
    assert len(history) == 1 + EPOCHS
