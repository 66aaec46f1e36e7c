"""Streams metrics, tables, pictures, checkpoints and data sets to MLflow as Kedro saves and loads them.

The run of ``kedro run``, which kedro-mlflow opens, has parameters, final numbers, tables and pictures; each training
has a run of its own in it, see `stage_run`. What is sent stands in the catalog, under ``metadata.mlflow`` of an entry:

``history: <stage>``
    The entry is a table with one row an epoch and a column ``epoch``; it makes its node a training. Each new row is
    sent when it is saved. Of several such tables of a training, the first has the numbers that do not vary.
``checkpoint: <which>``
    The file is the training's checkpoint; the last one that it saved becomes the logged model ``<stage>-<which>``. A
    run that loads it has the tag ``<stage>_run``, the run of the training.
``epochs: <key>``
    The picture is sent each time it is saved, for the epoch of the history saved before.
``rows: {name: <column>, values: [<column>, …]}``
    The entry is a table; each value column becomes metrics ``<column>/<name>``.
``table: <file>``
    The entry is a CSV file, which is logged as a table when its node has finished.
``archive: <folder>``
    The folder is sent as one zip file when its node has finished, if it has less than 256 MiB.
``artifact: <folder>``
    The file or folder is sent when its node has finished.
``input: <context>``
    The file is a data set of the run; it is recorded with its digest when it is loaded or saved.
"""

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from construction_panoptic.catalog.checkpoints import read_checkpoint
from construction_panoptic.catalog.files import local_path
from construction_panoptic.tracking import outbox
from construction_panoptic.tracking.facts import (
    close_abandoned_runs,
    device_name,
    file_digest,
    git_tags,
    process_tags,
    row_metrics,
)
from construction_panoptic.tracking.stage_run import StageRun, close_stage_runs, remembered_run, rename_run

logger = logging.getLogger(__name__)

TRAININGS = Path(".mlflow", "trainings.json")
OUTBOX = Path(".mlflow", "outbox")
LAST_SECONDS = 5.0  # for a server to take what waits when the run was stopped by a signal


class TrackingHook:
    """Sends what the nodes yield and return to the MLflow run that kedro-mlflow opened."""

    def __init__(self) -> None:
        self._project = Path.cwd()
        self._catalog: CatalogProtocol | None = None
        self._tags: dict[str, str] = {}
        self._inputs: dict[str, DatasetInput] = {}
        self._pending: dict[str, dict[str, Any]] = {}
        self._stage: StageRun | None = None
        self._checkpoints: dict[str, str] = {}

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Prepare MLflow before kedro-mlflow uses it: system metrics, and a server that may be away."""
        self._project = context.project_path
        mlflow.enable_system_metrics_logging()
        outbox.install(self._project / OUTBOX, self._rename_run)

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Tag the run with what it takes to repeat it, and bring in order what earlier runs have left."""
        self._catalog, self._inputs, self._pending, self._stage = catalog, {}, {}, None
        run = mlflow.active_run()
        if run is None:
            return
        self._send(close_abandoned_runs, run.info.experiment_id)
        self._tags = {**git_tags(self._project), "device": device_name(), **process_tags()}
        name = {"mlflow.runName": "main_job"} if run.info.run_name == "__default__" else {}
        self._send(mlflow.set_tags, self._tags | name)
        for node in pipeline.nodes:
            self._complete_training(node, catalog)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """Record a data set that the run reads, and the training whose model it uses."""
        self._record_input(dataset_name)
        if "checkpoint" in self._wanted(dataset_name):
            self._record_training(dataset_name)

    @hook_impl(tryfirst=True)
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Finish with the node before, a training perhaps, and open the run of a training."""
        self._end_node("FINISHED")
        for name in self._histories(node)[:1]:
            self._send(self._open_stage, self._wanted(name)["history"], name, node, inputs)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Send metrics at once, so that they show while the epoch loop runs."""
        wanted = self._wanted(dataset_name)
        if "history" in wanted and self._stage is not None:
            self._send(self._stage.send_history, dataset_name, data)
        self._note_checkpoint(dataset_name)
        if "epochs" in wanted and not isinstance(data, str):
            self._send_epoch_picture(dataset_name, wanted["epochs"])
        if "rows" in wanted:
            self._send(mlflow.log_metrics, row_metrics(data, **wanted["rows"]))
        if wanted.keys() & {"artifact", "table", "archive"}:
            self._pending[dataset_name] = wanted
        self._record_input(dataset_name)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Send what is left, before kedro-mlflow closes the run."""
        self._end_node("FINISHED")

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Send what is left of a failed run too: its best checkpoint so far may be what one wants."""
        self._end_node("FAILED")

    @hook_impl(specname="after_pipeline_run", trylast=True)
    def after_closed_run(self) -> None:
        """Send a server what it has not taken yet."""
        self._send(outbox.send_rest, mlflow.get_tracking_uri())

    @hook_impl(specname="on_pipeline_error", trylast=True)
    def after_failed_run(self) -> None:
        """Send a server what it has not taken yet."""
        self._send(outbox.send_rest, mlflow.get_tracking_uri())

    def _wanted(self, name: str) -> dict[str, Any]:
        if self._catalog is None or mlflow.active_run() is None or name not in self._catalog:
            return {}
        metadata = getattr(self._catalog.get(name), "metadata", None) or {}
        return metadata.get("mlflow") or {}

    def _send(self, function: Any, *args: Any, **kwargs: Any) -> None:
        """Call MLflow; a store that fails costs a warning, never the training."""
        try:
            function(*args, **kwargs)
        except (MlflowException, OSError) as error:
            logger.warning("MLflow did not take %s: %s", function.__name__.lstrip("_"), outbox.first_line(error))

    def _send_file(self, kind: str, path: Path, run_id: str, **more: Any) -> None:
        task = {"kind": kind, "path": str(path), "run_id": run_id, **more}
        self._send(outbox.send, task, mlflow.get_tracking_uri())

    def _histories(self, node: Node) -> list[str]:
        return [name for name in node.outputs if "history" in self._wanted(name)]

    def _complete_training(self, node: Node, catalog: CatalogProtocol) -> None:
        """Send the rest of a training that was finished when its run was killed; nothing trains it again."""
        histories = self._histories(node)
        path = self._path(histories[0]) if histories else None
        known = None if path is None else remembered_run(self._project / TRAININGS, self._training_of(path))
        if known is None or known["finished"] or known["tracking_uri"] != mlflow.get_tracking_uri():
            return
        if not all(catalog.exists(name) for name in node.outputs):
            return
        inputs = {name: catalog.load(name) for name in node.inputs if name.startswith("params:")}
        self._send(self._open_stage, known["stage"], histories[0], node, inputs)
        for name in node.outputs:
            self._note_checkpoint(name)
            if name in histories and self._stage is not None:
                self._send(self._stage.send_history, name, catalog.load(name))
        self._end_node("FINISHED")

    def _note_checkpoint(self, name: str) -> None:
        if which := self._wanted(name).get("checkpoint"):
            self._checkpoints[name] = which

    def _open_stage(self, stage: str, history: str, node: Node, inputs: dict[str, Any]) -> None:
        run, path = mlflow.active_run(), self._path(history)
        if run is None or path is None:
            return
        self._checkpoints = {}
        parameters = {name.removeprefix("params:"): inputs[name] for name in inputs if name.startswith("params:")}
        self._stage = StageRun(
            stage,
            run,
            parameters,
            self._tags,
            remembered=self._project / TRAININGS,
            training=self._training_of(path),
            inputs=[self._inputs[name] for name in node.inputs if name in self._inputs],
        )

    def _end_node(self, status: str) -> None:
        """Send files once their node has ended, since a training saves them anew each epoch; close its run."""
        run = mlflow.active_run()
        while self._pending and run is not None:
            name, files = self._pending.popitem()
            path = self._path(name)
            if path is None or not path.exists():
                continue
            for kind in ("artifact", "archive", "table"):
                if kind in files:
                    self._send_file(kind, path, run.info.run_id, target=files[kind])
        if self._stage is not None:
            stage, self._stage = self._stage, None
            self._send_checkpoints(stage)
            self._send(stage.end, status)

    def _send_checkpoints(self, stage: StageRun) -> None:
        for name, which in self._checkpoints.items():
            path = self._path(name)
            if path is None or not path.exists() or stage.run_id is None:
                continue
            epoch = read_checkpoint(path)["epoch"]
            self._send_file(
                "checkpoint",
                path,
                stage.run_id,
                experiment_id=stage.experiment_id,
                name=f"{stage.stage}-{which}",
                stage=stage.stage,
                epoch=epoch,
                metrics=[(metric.key, metric.value, metric.timestamp) for metric in stage.metrics.get(epoch, [])],
            )
            if which == "best":
                self._send(mlflow.log_metrics, stage.summary(epoch))

    def _send_epoch_picture(self, name: str, key: str) -> None:
        path = self._path(name)
        if path is not None and self._stage is not None and self._stage.run_id is not None:
            now = int(time.time() * 1000)
            self._send_file("image", path, self._stage.run_id, key=key, step=self._stage.epoch, timestamp=now)

    def _rename_run(self, stand_in: str, real: str) -> None:
        rename_run(self._project / TRAININGS, stand_in, real)

    def _training_of(self, path: Path) -> str:
        """What a training is remembered by: the folder of its checkpoints."""
        folder = path.parent
        return str(folder.relative_to(self._project) if folder.is_relative_to(self._project) else folder)

    def _record_training(self, name: str) -> None:
        path = self._path(name)
        known = None if path is None else remembered_run(self._project / TRAININGS, self._training_of(path))
        if known is not None and known["tracking_uri"] == mlflow.get_tracking_uri():
            tag = {f"{known['stage']}_run": known["run_id"]}
            self._tags |= tag
            self._send(mlflow.set_tags, tag)

    def _path(self, name: str) -> Path | None:
        return None if self._catalog is None else local_path(self._catalog, name)

    def _record_input(self, name: str) -> None:
        wanted = self._wanted(name)
        path, run = self._path(name), mlflow.active_run()
        if "input" not in wanted or path is None or run is None or name in self._inputs:
            return
        with warnings.catch_warnings():
            # A local file has two sources registered in MLflow, both of them this one.
            warnings.simplefilter("ignore")
            source = resolve_dataset_source(path.as_uri())
        dataset = MetaDataset(  # type: ignore[abstract]  # MLflow itself makes them so
            source, name=name, digest=file_digest(path)
        )
        tags = [InputTag("mlflow.data.context", wanted["input"])]
        self._inputs[name] = DatasetInput(dataset._to_mlflow_entity(), tags)
        self._send(mlflow.MlflowClient().log_inputs, run.info.run_id, [self._inputs[name]])


def mark_run_killed() -> None:
    """Close the open runs, if there are any, as KILLED: somebody stopped them. MLflow itself would say FINISHED."""
    try:
        close_stage_runs("KILLED")
        while mlflow.active_run() is not None:
            mlflow.end_run("KILLED")
        outbox.send_rest(mlflow.get_tracking_uri(), LAST_SECONDS, abrupt=True)
    except (MlflowException, OSError) as error:
        logger.warning("MLflow did not take the end of the run: %s", outbox.first_line(error))
