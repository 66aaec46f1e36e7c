"""Tells MLflow of a run: metrics, tables, pictures, checkpoints and data sets, as Kedro saves and loads them.

kedro-mlflow sets MLflow up; the run is this hook's. It writes down what MLflow is to have (`records`), and a thread
brings it there from the files of the catalog (`sender`). The run of ``kedro run`` has parameters, final numbers, tables
and pictures; each training has a run of its own in it. ``metadata.mlflow`` of a catalog entry says what is sent:

- ``history: <stage>``: new rows of a table with one row an epoch and a column ``epoch``, when it is saved; makes its
  node a training. Of several such tables of a training, the first has the numbers that do not vary.
- ``checkpoint: <which>``: the training's last saved checkpoint becomes the logged model ``<stage>-<which>``. A run that
  loads it has the tag ``<stage>_run``, the run of the training.
- ``epochs: <key>``: the picture when it is saved, for the epoch of the history saved before.
- ``tags: [<key>, …]``: these values of a dict, nested ones by dotted names, as tags of the run.
- ``rows: {name: <column>, values: {<what>: <column>, …}}``: metrics ``<what>/<name>`` of a table, and the run's
  description.
- ``table: <file>``, ``artifact: <folder>``, ``archive: <folder>``: when the node has finished, a CSV file as a table, a
  file or folder as it is, a folder of less than 256 MiB as one zip file.
- ``input: <context>``: a data set of the run with its digest, when it is loaded or saved.
"""

import logging
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import mlflow
import psutil
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.exceptions import MlflowException

from construction_panoptic.files import UNCHANGED, shown_path
from construction_panoptic.tracking import facts
from construction_panoptic.tracking.records import Record, Records
from construction_panoptic.tracking.sender import Sender, read_history
from construction_panoptic.tracking.store import make_portable

logger = logging.getLogger(__name__)

RECORDS = Path(".mlflow", "trainings.json")
PATIENCE = 120.0  # seconds for MLflow to take what it lacks, before the first node and at the end of a run
LAST_SECONDS = 5.0  # the same where the run was stopped by a signal
AFTER_NODE = {"artifact", "archive", "table", "checkpoint"}


class TrackingHook:
    """Keeps the records of a ``kedro run`` and of the trainings in it."""

    _context: Any
    _run: Record | None = None  # None where nothing is tracked; what follows is of the run
    _training: Record | None
    _catalog: CatalogProtocol
    _records: Records
    _sender: Sender
    _folder: Path  # in which the run was started
    _tags: dict[str, str]  # of the run, and of the trainings in it
    _models: set[str]  # trainings whose models the run uses, and whose runs it is not tagged with yet
    _notes: dict[str, str]  # tables in the run's description, by entry
    _inputs: dict[str, dict[str, str]]
    _epoch: int

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember the context, to which kedro-mlflow adds its configuration."""
        self._context = context

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Send what earlier runs have left, while their files are there. The run itself begins with its first node."""
        tracking = self._context.mlflow.tracking
        names = list(run_params.get("pipeline_names") or ["__default__"])
        untracked = set(names) <= set(tracking.disable_tracking.pipelines)
        tracking.disable_tracking.pipelines = names  # kedro-mlflow leaves the run to this hook
        if untracked:
            return
        project, uri, self._folder = self._context.project_path, mlflow.get_tracking_uri(), Path.cwd()
        store = "" if uri == f"sqlite:///{project.as_posix()}/mlflow.db" else uri  # wherever the project lies
        if not store:
            make_portable(project)
            os.chdir(project)  # artifacts are where MLflow finds them from here
        self._catalog, self._records = catalog, Records(project / RECORDS, store)
        self._training, self._models, self._notes, self._inputs = None, set(), {}, {}
        self._tags = facts.origin_tags(project)
        run = Record(
            name=tracking.run.name or "+".join(names).replace("__default__", "main_job"),
            store=store,
            tags=_command_tags(run_params) | self._tags,
            params=self._parameters(pipeline.inputs() - {"params:run_name"}),
        )
        if (named := catalog.get("params:run_name")) is not None:  # reports say it
            named.save(run.name)
        self._sender = Sender(self._records, project, f"The tracking server {store}" if store else "MLflow's database")
        self._run = run
        self._go_on_with_earlier_runs()

    @hook_impl(tryfirst=True)
    def before_node_run(self, node: Node) -> None:
        """Begin the run with its first node; end the training before, and begin one."""
        if self._run is None:
            return
        if self._run.run_id is None:
            self._begin_run(self._run)
        self._end_node("FINISHED")
        histories = [name for name in node.outputs if "history" in self._entry(name)[1]]
        if histories:
            self._begin_training(self._run, histories[0], node)
        self._update()

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str) -> None:
        """Record a data set that the run reads, and the training whose model it uses."""
        self._record_input(dataset_name)
        path, wanted = self._entry(dataset_name)
        if "checkpoint" in wanted:
            self._models.add(self._relative(path.parent))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Note what MLflow is to have; numbers and pictures of an epoch are sent at once."""
        path, wanted = self._entry(dataset_name)
        if self._run is None or not wanted or (isinstance(data, str) and data == UNCHANGED):
            return
        training = self._training
        with self._records.lock:
            if training is not None and "history" in wanted:
                self._epoch = int(data["epoch"].max()) if len(data) else 0
                training.histories[dataset_name] = self._relative(path)
            if training is not None and "epochs" in wanted:
                self._note_file(training, dataset_name, path, epochs=wanted["epochs"], step=self._epoch, ready=True)
            if "rows" in wanted:
                self._run.metrics |= facts.row_metrics(data, **wanted["rows"])
                self._notes[dataset_name] = facts.row_markdown(data, **wanted["rows"])
                self._run.tags["mlflow.note.content"] = "\n\n".join(self._notes.values())
            if "tags" in wanted:
                self._run.tags |= facts.flat_parameters({key: data[key] for key in wanted["tags"]})
            if kinds := {kind: wanted[kind] for kind in wanted.keys() & AFTER_NODE}:
                owner = training if training is not None and "checkpoint" in kinds else self._run
                self._note_file(owner, dataset_name, path, **kinds, ready=False)
        self._record_input(dataset_name)
        self._update()

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Send what is left, and end the run."""
        self.end("FINISHED")

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Send what is left of a failed run too: its best checkpoint so far may be what one wants."""
        self.end("FAILED")

    def end(self, status: str, patience: float = PATIENCE) -> None:
        """End the run that is tracked, if there is one, within so many seconds where MLflow does not answer."""
        if self._run is None:
            return
        begun = self._run.run_id is not None
        if begun:
            self._end_node(status)
            self._run.end(status)
            self._records.save()
        if not self._sender.finish(patience):
            os.environ |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        try:
            if begun:
                mlflow.end_run(status)
        except (MlflowException, OSError) as error:
            logger.debug("The next run tells MLflow how this one ended", exc_info=error)
        self._run = None
        os.chdir(self._folder)

    def _begin_run(self, run: Record) -> None:
        experiment = mlflow.get_experiment_by_name(self._context.mlflow.tracking.experiment.name)
        assert experiment is not None  # kedro-mlflow has made it
        run.experiment_id = experiment.experiment_id
        self._sender.delivery.create(run)
        self._records.own[run.key] = run
        mlflow.start_run(run.run_id, log_system_metrics=False)
        self._sender.monitor(str(run.run_id))

    def _begin_training(self, run: Record, history: str, node: Node) -> None:
        path, wanted = self._entry(history)
        stage, key = wanted["history"], self._relative(path.parent)
        former = self._records.known(key)
        self._epoch = 0
        self._training = Record(
            name=f"{run.name} {stage}",
            store=run.store,
            experiment_id=run.experiment_id,
            parent=run.run_id,
            stage=stage,
            tags={**self._tags, "stage": stage},
            params=self._parameters(node.inputs),
            datasets={name: self._inputs[name] for name in node.inputs if name in self._inputs},
            outputs=list(node.outputs),
        )
        if former is not None and former.status != "FINISHED":
            known = {"run_id": former.run_id, "store": former.store} if former.run_id else None
            self._training.former = known or former.former
        with self._records.lock:
            self._records.own[key] = self._training

    def _end_node(self, status: str) -> None:
        """Let files be sent now that their node has ended, since a training saves them anew each epoch."""
        with self._records.lock:
            for record in filter(None, (self._run, self._training)):
                for file in record.files.values():
                    path = self._context.project_path / file["path"]
                    if not file["ready"] and path.exists():
                        file |= {"ready": True, "stamp": path.stat().st_mtime_ns}
            if self._training is not None:
                self._end_training(self._training, status)
                self._training = None

    def _end_training(self, training: Record, status: str) -> None:
        """End a training; its best epoch's validation is the command's too."""
        for file in training.files.values():
            if file.get("checkpoint") == "best":
                best = facts.checkpoint_epoch(self._context.project_path / file["path"])
                numbers = {"epoch": float(best)}
                for path in training.histories.values():
                    row = read_history(self._context.project_path / path).get(best, {})
                    numbers |= {name[4:]: value for name, value in row.items() if name.startswith("val/")}
                for record in self._records.own.values():
                    if record.run_id == training.parent:
                        record.metrics |= {f"{training.stage}/best/{name}": n for name, n in numbers.items()}
        training.end(status)

    def _go_on_with_earlier_runs(self) -> None:
        """Send what processes that have ended have left; nothing else would do it for a training that was finished."""
        left = self._records.adopt()
        with self._records.lock:
            for record in left:
                exist = [name in self._catalog and self._catalog.exists(name) for name in record.outputs]
                if record.ended is None and exist and all(exist):
                    for name in record.outputs:
                        path, wanted = self._entry(name)
                        if "history" in wanted:
                            record.histories[name] = self._relative(path)
                        if "checkpoint" in wanted:
                            self._note_file(record, name, path, checkpoint=wanted["checkpoint"], ready=True)
                    self._end_training(record, "FINISHED")
                record.end("FAILED")
        if left:
            self._sender.settle(PATIENCE)

    def _note_file(self, record: Record, name: str, path: Path, **about: Any) -> None:
        record.files[name] = {"path": self._relative(path), "stamp": path.stat().st_mtime_ns, **about}

    def _record_input(self, name: str) -> None:
        path, wanted = self._entry(name)
        if self._run is not None and "input" in wanted and name not in self._inputs:
            digest = facts.file_digest(path)
            self._inputs[name] = {"digest": digest, "path": self._relative(path), "context": wanted["input"]}
            with self._records.lock:
                self._run.datasets[name] = self._inputs[name]

    def _update(self) -> None:
        """Tag the runs with those of the trainings whose models they use, once they are known; send what there is."""
        for key in list(self._models):
            known = self._records.known(key)
            if known is None or known.run_id is None or self._run is None or known.store != self._run.store:
                continue
            self._models.remove(key)
            self._tags[f"{known.stage}_run"] = known.run_id
            with self._records.lock:
                for record in filter(None, (self._run, self._training)):
                    record.tags[f"{known.stage}_run"] = known.run_id
        self._records.save()
        self._sender.wake()

    def _parameters(self, inputs: Iterable[str]) -> dict[str, str]:
        """Give the parameters among the inputs of nodes, as conf and ``--params`` have them, by dotted path."""
        given = self._context.config_loader["parameters"]  # context.params has typed settings
        names = sorted(name.removeprefix("params:") for name in inputs if name.startswith("params:"))
        values = {name: reduce(lambda value, key: value[key], name.split("."), given) for name in names}
        return facts.flat_parameters(values)

    def _entry(self, name: str) -> tuple[Path, Mapping[str, Any]]:
        """Give an entry's path, and what MLflow is to have of it: nothing where there is no file, or no tracking."""
        dataset = None if self._run is None else self._catalog.get(name)
        path, metadata = getattr(dataset, "_filepath", None), getattr(dataset, "metadata", None) or {}
        return Path(path or ""), (metadata.get("mlflow") or {}) if path else {}

    def _relative(self, path: Path) -> str:
        return shown_path(path, self._context.project_path)


TRACKING = TrackingHook()


def _command_tags(run_params: Mapping[str, Any]) -> dict[str, str]:
    """Say who typed what; no path in it is absolute, unless it was typed."""
    paths = ("project_path", "conf_source")
    tags = {name: str(value) for name, value in run_params.items() if value and name not in paths}
    tags |= {
        "mlflow.source.name": "kedro run",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": psutil.Process().username(),
    }
    if Path(sys.argv[0]).name == "kedro":
        tags["kedro_command"] = shlex.join(["kedro", *sys.argv[1:]])
    return tags
