"""Runs beside one another, in processes of their own."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from construction_panoptic.catalog import hooks
from construction_panoptic.catalog.hooks import ExclusiveHook, RunningElsewhereError

FORK = multiprocessing.get_context("fork")


def begin(folder: Path, *names: str) -> ExclusiveHook:
    """Begin a run that makes what is named."""
    hook = ExclusiveHook()
    catalog = DataCatalog({name: JSONDataset(filepath=str(folder / f"{name}.json")) for name in names})
    nodes = [Node(lambda: 1, None, name, name=f"make_{name}") for name in names]
    hook.before_pipeline_run({"project_path": str(folder)}, Pipeline(nodes), catalog)
    return hook


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "PATIENCE", 0.2)


@pytest.mark.parametrize("end", ["completed", "failed", "killed"])
def test_a_run_that_makes_the_same_is_refused_while_the_other_lives(tmp_path: Path, end: str) -> None:
    begun, over, ended, later = (FORK.Event() for _ in range(4))

    def work() -> None:
        hook = begin(tmp_path, "a", "b")
        child = FORK.Process(target=later.wait, args=(60,))  # one that loads images may outlive a kill
        child.start()
        begun.set()
        over.wait(60)
        if end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        (hook.after_pipeline_run if end == "completed" else hook.on_pipeline_error)()
        ended.set()
        later.wait(60)

    other = FORK.Process(target=work)
    other.start()
    assert begun.wait(60)
    begin(tmp_path, "c").after_pipeline_run()  # a run beside it
    with pytest.raises(RunningElsewhereError, match=r"making the same files, b among them\. Wait until it has ended"):
        begin(tmp_path, "b", "c")
    over.set()
    if end == "killed":
        other.join()  # with a time limit it would wait for the child too
    else:
        assert ended.wait(60)
    begin(tmp_path, "b", "c")
    later.set()
    other.join(60)
