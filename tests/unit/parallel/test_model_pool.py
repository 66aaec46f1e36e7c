import os
import time
from functools import cached_property, partial

import pytest
import torch

from construction_panoptic.config.base import Execution
from construction_panoptic.parallel.model_pool import map_on_devices, model_count

pytestmark = pytest.mark.medium


@pytest.mark.parametrize(
    ("gpus", "device", "workers", "expected"),
    [
        (0, "auto", "auto", 1),
        (0, "auto", 3, 3),
        (4, "auto", "auto", 4),
        (4, "cuda", 2, 2),
        (4, "auto", 16, 4),
        (4, "cpu", "auto", 1),
        (4, "cpu", 16, 16),
        (4, "cuda:1", 16, 1),
    ],
)
def test_a_gpu_has_one_process_at_most(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, workers: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert model_count(Execution(workers=workers), device) == expected


def test_each_process_has_a_gpu_and_a_model_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    results = map_on_devices(partial(_describe, _Model()), range(40), execution=Execution(workers=2), device="cuda")
    numbers, processes, models, gpus = zip(*results, strict=True)
    assert numbers == tuple(range(40))
    assert os.getpid() not in processes
    assert len(set(processes)) == len(set(zip(processes, models, strict=True))) == 2
    assert set(gpus) == {"GPU-a", "GPU-b"}


class _Model:
    @cached_property
    def moved(self) -> float:
        return time.monotonic()


def _describe(model: _Model, number: int) -> tuple[int, int, float, str]:
    time.sleep(0.05)
    return number, os.getpid(), model.moved, os.environ["CUDA_VISIBLE_DEVICES"]
