"""Real shortages and killed processes, and what people are told about them."""

import errno
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from construction_panoptic.catalog.journal import Journal
from construction_panoptic.errors import ShortageError, shortage
from construction_panoptic.parallel.workers import Workers
from construction_panoptic.training import loading


def error_of(function: Any, *arguments: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # whatever the library raises
        function(*arguments)
    return caught.value


class Killed(Dataset[int]):
    """Its second item kills the process that loads it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_too_little_memory() -> None:
    for function, size in ((np.empty, 2**50), (torch.empty, 2**50), (bytearray, 2**62)):
        told = shortage(error_of(function, size))
        assert told is not None
        assert "Memory has run out" in str(told)
    assert "Memory has run out" in str(shortage(OSError(errno.ENOMEM, "Cannot allocate memory")))


def test_too_many_open_files(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        error = error_of(lambda: (tmp_path / "file").open("w"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Too many files are open. Allow more (ulimit -n" in str(shortage(error))


def test_too_little_memory_of_a_device() -> None:
    told = str(shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. " + "GPU 0 " * 99)))
    assert "a larger micro_batches" in told
    assert "Tried to allocate 20.00 MiB" in told
    assert len(told) < 600


@pytest.mark.gpu
def test_too_little_memory_of_a_real_device() -> None:
    told = str(shortage(error_of(lambda: torch.empty(2**45, device="cuda"))))
    assert "The device's memory has run out" in told


def test_no_room_for_the_journal_of_a_folder(small_disk: Path) -> None:
    """It is appended to, and not under a temporary name as other files are."""
    (small_disk / "filler").write_bytes(bytes(500 * 1024))

    def note() -> None:
        journal = Journal(small_disk / "labels")
        for number in range(1000):
            journal.add(f"image {number}", "digest", [], "x" * 100)

    assert "There is no room for a file" in str(shortage(error_of(note)))


def test_an_entry_that_cannot_be_removed(small_disk: Path) -> None:
    entry = small_disk / "made" / "index.json"
    entry.parent.mkdir()
    entry.write_text("{}")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    told = str(shortage(error_of(entry.unlink)))
    assert f"{entry}: Read-only file system. Make it and its folder writable." in told


def test_a_killed_process_of_the_conversion() -> None:
    with Workers(2) as workers:
        list(workers.map(abs, [1]))
        assert workers._starting is not None
        workers._starting.result(timeout=300)  # until then all runs in this process
        told = shortage(error_of(list, workers.map(os._exit, [1])))
    assert "was killed" in str(told)
    assert "annotation_conversion.execution.workers" in str(told)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_process_that_loads() -> None:
    loader = DataLoader(Killed(), num_workers=1)
    assert "was killed" in str(shortage(error_of(list, loader)))


class Hanging(Killed):
    """Its items take longer than anybody waits."""

    def __getitem__(self, index: int) -> int:
        time.sleep(60)
        return index


@pytest.mark.medium
def test_a_process_that_loads_and_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LONGEST_LOAD", 1)
    monkeypatch.setattr(loading, "collate", list)
    loader = loading.build_loader(Hanging(), batch_size=1, shuffle=False, workers=1, start_method="fork")
    assert "See whether their disk answers" in str(shortage(error_of(list, loader)))


def test_the_cause_counts_and_other_errors_are_none_of_it() -> None:
    wrapped = RuntimeError("node failed")
    wrapped.__cause__ = MemoryError()
    assert isinstance(shortage(wrapped), ShortageError)
    assert shortage(RuntimeError("shape mismatch")) is None
    assert shortage(OSError(errno.ENOENT, "No such file or directory")) is None
    assert shortage(None) is None
