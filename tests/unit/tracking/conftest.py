from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset
from mlflow.tracking._tracking_service.utils import _tracking_store_registry

from construction_panoptic.catalog.checkpoints import CheckpointDataset
from construction_panoptic.catalog.previews import PictureDataset
from construction_panoptic.tracking import outbox
from construction_panoptic.tracking.hook import TrackingHook
from construction_panoptic.tracking.stage_run import _open_runs


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
            "quality": table("quality", rows={"name": "name", "values": ["pq"]}, table="tables/quality.json"),
            "data": JSONDataset(filepath=str(tmp_path / "data.json"), metadata={"mlflow": {"input": "training"}}),
            "params:detection": MemoryDataset({"optimizer": {"lr": 0.1}}),
            "plain": JSONDataset(filepath=str(tmp_path / "plain.json")),
        }
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An outbox between this process and any server, as a ``kedro run`` has it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    before = dict(_tracking_store_registry._registry)
    outbox.install(tmp_path / "outbox", ignore)
    yield tmp_path / "outbox"
    while mlflow.active_run() is not None:
        mlflow.end_run()
    forget_process()
    _tracking_store_registry._registry.update(before)
    _open_runs.clear()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # that is how to unset it


def forget_process() -> None:
    """Forget what a process knows of servers, as if it had ended."""
    for store in outbox._stores.values():
        with store.outbox._changed:
            store.outbox._stopped = True
            store.outbox._changed.notify_all()
            while store.outbox._sending:
                store.outbox._changed.wait(30)
            if store.outbox._entries._file is not None:
                store.outbox._entries._file.close()
    outbox._stores.clear()
    _tracking_store_registry._get_store_with_resolved_uri.cache_clear()


def ignore(stand_in: str, real: str) -> None:
    pass


class Run:
    """A ``kedro run`` as the hook sees it."""

    def __init__(self, project: Path, catalog: DataCatalog) -> None:
        self.hook, self.catalog = TrackingHook(), catalog
        self.hook._project = project
        outputs = ["best", "history", "timings", "progress", "last"]
        self.node = Node(
            lambda data, parameters: None, inputs=["data", "params:detection"], outputs=outputs, name="train"
        )
        self.hook.before_pipeline_run(Pipeline([self.node]), catalog)

    def save(self, name: str, data: Any) -> None:
        self.catalog.save(name, data)
        self.hook.after_dataset_saved(name, data)

    def train(self) -> None:
        """Begin the training."""
        self.hook.before_node_run(self.node, {"params:detection": {"optimizer": {"lr": 0.1}}})

    def epoch(self, *losses: float) -> None:
        """Save what an epoch gives: of all epochs done, the losses; the lowest is the best."""
        done = len(losses)
        epochs = list(range(1, done + 1))
        if losses[-1] == min(losses):
            self.save("best", {"epoch": done, "model": {"weight": torch.zeros(2)}})
        self.save("history", pd.DataFrame({"epoch": epochs, "train/loss": losses, "val/ap": [1 / x for x in losses]}))
        self.save("timings", pd.DataFrame({"epoch": epochs, "time/epoch_seconds": [float(e) for e in epochs]}))
        self.save("last", {"epoch": done, "model": {"weight": torch.ones(2)}})
