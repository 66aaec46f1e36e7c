"""A training in Ray's processes is that in processes of this machine, and all that can go wrong ends it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.errors import ParameterError, UserError
from construction_panoptic.parallel.launcher import launch
from construction_panoptic.signals import Interrupted, StopRequest
from construction_panoptic.training.loop import EpochResult
from tests.unit.training import teamwork
from tests.unit.training.conftest import assert_equal, through_a_file, write_scene

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def check_same(ours: EpochResult, theirs: EpochResult) -> None:
    assert ours.history == theirs.history
    assert ours.metrics == theirs.metrics
    for part in ("model", "optimizer", "rng", "others", "best"):
        assert_equal(ours.checkpoint[part], theirs.checkpoint[part], part)


def training_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("RayTrainWorker" in word for word in child.cmdline())]


def test_ray_trains_bit_for_bit_as_local_processes_and_goes_on_after_a_death_and_a_signal(
    tmp_path: Path, small_model: dict[str, Any], small_settings: Callable[..., DetectionSettings]
) -> None:
    scene = write_scene(tmp_path, 9)
    settings, model = small_settings(epochs=3), {**small_model, "norm": "frozen"}

    def arguments(resume: dict[str, Any] | None) -> tuple[Any, ...]:
        return scene, model, settings, resume

    whole = list(launch(teamwork.train_detection, arguments(None), StopRequest(), "local", 2, "cpu"))

    run = launch(teamwork.train_detection, arguments(None), StopRequest(), "ray", 2, "cpu")
    first = next(run)
    check_same(first, whole[0])
    began = time.monotonic()
    victims = training_processes()
    assert len(victims) == 2
    victims[-1].kill()
    with pytest.raises(UserError, match=r"Process [12] of 2 .* has died"):
        list(run)
    assert time.monotonic() - began < 90
    assert not psutil.wait_procs(victims, timeout=30)[1]

    stop = StopRequest()
    run = launch(teamwork.train_detection, arguments(through_a_file(first.checkpoint)), stop, "ray", 2, "cpu")
    second = next(run)
    check_same(second, whole[1])
    stop.number = signal.SIGTERM
    rest: list[EpochResult] = []
    with pytest.raises(Interrupted, match=r"SIGTERM: detection: saved after epoch [23] of 3") as interrupted:
        rest.extend(run)
    assert interrupted.value.exit_code == 143

    last = [second, *rest][-1]
    *_, resumed = launch(
        teamwork.train_detection, arguments(through_a_file(last.checkpoint)), StopRequest(), "local", 2, "cpu"
    )
    check_same(resumed, whole[2])


def test_an_error_in_one_process_ends_all_and_is_shown(tmp_path: Path) -> None:
    run = launch(teamwork.fail, ("bad input", tmp_path), StopRequest(), "ray", 2, "cpu")
    assert next(run) == 1
    with pytest.raises(UserError, match=r"^site\.jpg: not an image$"):
        next(run)
    processes = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert not psutil.wait_procs([psutil.Process(p) for p in processes if psutil.pid_exists(p)], timeout=30)[1]


def test_more_processes_than_the_cluster_has_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="devices: 3 are asked for, but the Ray cluster has 2 CPUs"):
        next(launch(teamwork.fail, ("bad input", tmp_path), StopRequest(), "ray", 3, "cpu"))
