import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset

from construction_panoptic.catalog.checkpoints import CheckpointDataset
from construction_panoptic.catalog.previews import PictureDataset
from construction_panoptic.tracking.hook import TrackingHook

PARAMETERS = {"detection": {"optimizer": {"lr": 0.1}}, "other": {"unused": 1}}


@pytest.fixture
def catalog(tmp_path: Path) -> DataCatalog:
    def table(name: str, **wanted: Any) -> CSVDataset:
        return CSVDataset(filepath=str(tmp_path / f"{name}.csv"), metadata={"mlflow": wanted})

    def checkpoint(which: str) -> CheckpointDataset:
        return CheckpointDataset(filepath=str(tmp_path / f"{which}.pt"), metadata={"mlflow": {"checkpoint": which}})

    return DataCatalog(
        {
            "history": table("history", history="detection", artifact="tables"),
            "timings": table("timings", history="detection"),
            "best": checkpoint("best"),
            "last": checkpoint("last"),
            "progress": PictureDataset(
                filepath=str(tmp_path / "progress.png"), metadata={"mlflow": {"epochs": "detection/progress"}}
            ),
            "quality": table("quality", rows={"name": "name", "values": {"PQ": "pq"}}, table="tables/quality.json"),
            "data": JSONDataset(filepath=str(tmp_path / "data.json"), metadata={"mlflow": {"input": "training"}}),
            "params:detection": MemoryDataset(PARAMETERS["detection"]),
            "plain": JSONDataset(filepath=str(tmp_path / "plain.json")),
        }
    )


class Run:
    """A ``kedro run`` as the hook sees it."""

    def __init__(self, project: Path, catalog: DataCatalog, name: str = "main") -> None:
        self.hook, self.catalog = TrackingHook(), catalog
        tracking = SimpleNamespace(
            run=SimpleNamespace(name=name),
            experiment=SimpleNamespace(name="test"),
            disable_tracking=SimpleNamespace(pipelines=["sample_data"]),
        )
        self.tracking = tracking
        context: Any = SimpleNamespace(
            project_path=project, config_loader={"parameters": PARAMETERS}, mlflow=SimpleNamespace(tracking=tracking)
        )
        self.hook.after_context_created(context)
        outputs = ["best", "history", "timings", "progress", "last"]
        self.node = Node(
            lambda data, parameters: None, inputs=["data", "params:detection"], outputs=outputs, name="train"
        )
        self.other = Node(lambda data: None, inputs="data", outputs="plain", name="other")
        self.hook.before_pipeline_run({"env": "sample"}, Pipeline([self.node, self.other]), catalog)

    def begin(self) -> "Run":
        """Begin with a node that is no training."""
        self.hook.before_node_run(self.other)
        return self

    def train(self) -> "Run":
        """Begin the training."""
        self.hook.before_node_run(self.node)
        return self

    def save(self, name: str, data: Any) -> None:
        self.catalog.save(name, data)
        self.hook.after_dataset_saved(name, data)

    def epoch(self, *losses: float) -> None:
        """Save what an epoch gives: of all epochs done, the losses; the lowest is the best."""
        done = len(losses)
        epochs = list(range(1, done + 1))
        if losses[-1] == min(losses):
            self.save("best", {"epoch": done, "model": {"weight": torch.zeros(2)}})
        self.save("history", pd.DataFrame({"epoch": epochs, "train/loss": losses, "val/ap": [1 / x for x in losses]}))
        self.save("timings", pd.DataFrame({"epoch": epochs, "time/epoch_seconds": [float(e) for e in epochs]}))
        self.save("last", {"epoch": done, "model": {"weight": torch.ones(2)}})

    def settle(self) -> "Run":
        """Wait until MLflow has everything."""
        assert self.hook._sender is not None
        assert self.hook._sender.settle(60)
        return self


def killed(work: Callable[[], object]) -> None:
    """Do something in a process that is killed after it."""

    def work_and_die() -> None:
        work()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=work_and_die)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture
def begin(
    tmp_path: Path, catalog: DataCatalog, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Run]]:
    """Begin a ``kedro run``."""
    begun: list[Run] = []
    monkeypatch.chdir(tmp_path)  # where MLflow's own commands find the artifacts too

    def start(name: str = "main") -> Run:
        begun.append(Run(tmp_path, catalog, name))
        return begun[-1]

    yield start
    for run in begun:
        run.hook.end("FAILED", 30)
    while mlflow.active_run() is not None:
        mlflow.end_run()
