"""Brings a record to MLflow; what is there already is asked first, so that nothing comes twice."""

import json
import logging
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from construction_panoptic.tracking.facts import checkpoint_epoch, is_number
from construction_panoptic.tracking.records import Record, Records, now
from construction_panoptic.tracking.store import first_line, is_refusal

logger = logging.getLogger(__name__)

LARGEST_ARCHIVE = 256 * 2**20  # bytes
LONGEST_BATCH = 100  # parameters that MLflow takes at once

Rows = dict[int, dict[str, float]]
"""The numbers of each epoch."""


class Delivery:
    """Sends what MLflow lacks, of the records of one store.

    Args:
        client: the connection.
        records: the records.
        project: the folder that their paths are relative to.
    """

    def __init__(self, client: mlflow.MlflowClient, records: Records, project: Path) -> None:
        self._client = client
        self._records = records
        self._project = project
        self._sent: dict[tuple[str, str], dict[int, int]] = {}  # run and table → epochs that are there, and their times
        self._refused: set[str] = set()

    def bring(self, record: Record) -> None:
        """Send what a record has; what MLflow refuses costs a warning.

        Raises:
            MlflowException, OSError: MLflow cannot take anything now. What it has got is noted in the record.
        """
        if record.run_id is None and not self.create(record):
            return
        self._send_facts(record)
        for entry in list(record.histories):
            self._unless_refused(f"{entry} of {record.name}", self._send_history, record, entry)
        with self._records.lock:
            files = {name: dict(file) for name, file in record.files.items() if file["ready"]}
        for name, file in files.items():
            self._unless_refused(f"{name} of {record.name}", self._send_file, record, file)
            self._sent_now(record.files, {name: file})
        if record.ended is not None and not record.closed:
            ended = record.status, record.ended
            self._unless_refused(f"the end of {record.name}", self._client.set_terminated, self._id(record), *ended)
            with self._records.lock:
                record.closed = ended == (record.status, record.ended)

    def create(self, record: Record) -> bool:
        """Create the run of a record, or go on with that of the training so far; False while this cannot be told."""
        tags = {"record": record.key} | ({"mlflow.parentRunId": record.parent} if record.parent else {})
        if record.former is not None:
            rows = self._rows(next(iter(record.histories.values()), ""))
            if not rows:
                return False
            if record.former["store"] == record.store and self._agrees(record.former["run_id"], record, rows):
                record.run_id, record.params = record.former["run_id"], {}
                self._client.update_run(record.run_id, status="RUNNING")
                tags["resumed_after_epoch"] = str(max(rows) - 1)
            elif max(rows) > 1:
                tags |= {"continues": record.former["run_id"], "continues_at": record.former["store"] or "mlflow.db"}
        if record.run_id is None:
            made = list(self._client.search_runs([record.experiment_id], f"tags.record = '{record.key}'"))
            if not made:
                key = {"record": record.key}
                made = [self._client.create_run(record.experiment_id, record.started, key, record.name)]
            record.run_id = made[0].info.run_id
        with self._records.lock:
            record.tags, record.former = {**tags, **record.tags}, None
        self._records.save()
        return True

    def _unless_refused(self, what: str, function: Callable[..., Any], *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            if not is_refusal(error):
                self._sent.clear()  # an answer that was lost leaves open what has arrived
                raise
            if what not in self._refused:
                self._refused.add(what)
                logger.warning("MLflow did not take %s: %s", what, first_line(error))

    def _send_facts(self, record: Record) -> None:
        run_id, send, batch = self._id(record), self._unless_refused, self._client.log_batch
        with self._records.lock:
            tags, params, metrics = dict(record.tags), dict(record.params), dict(record.metrics)
            inputs = list(record.inputs)
        items = [Param(*item) for item in params.items()]
        for start in range(0, len(items), LONGEST_BATCH):
            send(f"parameters of {record.name}", batch, run_id, [], items[start : start + LONGEST_BATCH])
        if tags:
            send(f"tags of {record.name}", batch, run_id, [], [], [RunTag(*item) for item in tags.items()])
        if metrics:
            send(f"numbers of {record.name}", self._send_numbers, run_id, metrics)
        if inputs:
            found = [_dataset_input(item) for item in inputs]
            send(f"data sets of {record.name}", self._client.log_inputs, run_id, found)
        for pending, sent in ((record.tags, tags), (record.params, params), (record.metrics, metrics)):
            self._sent_now(pending, sent)
        with self._records.lock:
            record.inputs = [item for item in record.inputs if item not in inputs]

    def _send_numbers(self, run_id: str, numbers: dict[str, float]) -> None:
        there = self._client.get_run(run_id).data.metrics
        time = now()
        lacking = [Metric(key, value, time, 0) for key, value in numbers.items() if there.get(key) != value]
        self._client.log_batch(run_id, lacking)

    def _send_history(self, record: Record, entry: str) -> None:
        """Send the epochs that the run lacks; metrics have the epoch as step."""
        run_id, rows = self._id(record), self._rows(record.histories[entry])
        if not rows:
            return
        sent = self._sent.get((run_id, entry))
        if sent is None:
            names = {next(iter(numbers)) for numbers in rows.values() if numbers}
            found = [m for name in names for m in self._client.get_metric_history(run_id, f"{record.stage}/{name}")]
            sent = self._sent[run_id, entry] = {metric.step: metric.timestamp for metric in found}
        for epoch in sorted(rows.keys() - sent.keys()):
            time = now()
            numbers = [Metric(f"{record.stage}/{name}", value, time, epoch) for name, value in rows[epoch].items()]
            self._client.log_batch(run_id, numbers)
            sent[epoch] = time

    def _send_file(self, record: Record, file: dict[str, Any]) -> None:
        """Send a file in all ways that its entry asks for, unless another has taken its place."""
        path = self._project / file["path"]
        if path.stat().st_mtime_ns != file["stamp"]:
            return
        send = {
            "artifact": self._send_artifact,
            "archive": self._send_archive,
            "table": self._send_table,
            "epochs": self._send_picture,
            "checkpoint": self._send_checkpoint,
        }
        for kind in send.keys() & file.keys():
            send[kind](record, path, file)

    def _send_artifact(self, record: Record, path: Path, file: dict[str, Any]) -> None:
        if path.is_dir():
            self._client.log_artifacts(self._id(record), str(path), f"{file['artifact']}/{path.name}")
        else:
            self._client.log_artifact(self._id(record), str(path), file["artifact"])

    def _send_table(self, record: Record, path: Path, file: dict[str, Any]) -> None:
        if not self._is_there(self._id(record), file["table"]):  # MLflow would add the rows to those that are there
            self._client.log_table(self._id(record), pd.read_csv(path), file["table"])

    def _send_archive(self, record: Record, path: Path, file: dict[str, Any]) -> None:
        members = sorted(member for member in path.rglob("*") if member.is_file())
        if sum(member.stat().st_size for member in members) >= LARGEST_ARCHIVE:
            logger.info("%s is too large to be kept in MLflow", path)
            return
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder, f"{path.name}.zip")
            with zipfile.ZipFile(packed, "w") as archive:
                for member in members:
                    archive.write(member, member.relative_to(path))
            self._client.log_artifact(self._id(record), str(packed), file["archive"])

    def _send_picture(self, record: Record, path: Path, file: dict[str, Any]) -> None:
        run_id, key, step = self._id(record), file["epochs"], file["step"]
        start = f"images/{key.replace('/', '~')}+step+{step}+"  # as MLflow names them
        with Image.open(path) as picture:
            picture.load()
        if path.stat().st_mtime_ns == file["stamp"] and not self._is_there(run_id, start):
            self._client.log_image(run_id, picture, key=key, step=step, synchronous=True)

    def _send_checkpoint(self, record: Record, path: Path, file: dict[str, Any]) -> None:
        """Log a checkpoint as a model of its run, with the numbers of its epoch, in the place of an earlier one."""
        run_id, epoch, name = self._id(record), checkpoint_epoch(path), f"{record.stage}-{file['checkpoint']}"
        experiment = [record.experiment_id]
        for former in self._client.search_logged_models(experiment, f"source_run_id = '{run_id}' AND name = '{name}'"):
            self._client.delete_logged_model(former.model_id)
        model = self._client.create_logged_model(
            record.experiment_id,
            name,
            source_run_id=run_id,
            params={"epoch": str(epoch)},
            tags={"stage": str(record.stage)},
            model_type="checkpoint",
        )
        self._client.log_model_artifact(model.model_id, str(path))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])
        # With the time that the run has for it, a number is linked with the model, and not one more of the run.
        linked = [
            Metric(f"{record.stage}/{key}", value, self._sent[run_id, entry][epoch], epoch, model_id=model.model_id)
            for entry, history in record.histories.items()
            if epoch in self._sent.get((run_id, entry), {})
            for key, value in self._rows(history).get(epoch, {}).items()
        ]
        self._client.log_batch(run_id, linked)

    def _agrees(self, run_id: str, record: Record, rows: Rows) -> bool:
        """Whether a run is there, and has nothing that the training's history does not say too."""
        name = next(iter(rows[min(rows)]))
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return False
            known = self._client.get_metric_history(run_id, f"{record.stage}/{name}")
        except MlflowException as error:
            if not is_refusal(error):
                raise
            return False
        return all(rows.get(metric.step, {}).get(name) == metric.value for metric in known)

    def _is_there(self, run_id: str, start: str) -> bool:
        listed = self._client.list_artifacts(run_id, start.rpartition("/")[0])
        return any(file.path.startswith(start) for file in listed)

    def _rows(self, path: str) -> Rows:
        return read_history(self._project / path) if path else {}

    def _sent_now(self, pending: dict[str, Any], sent: dict[str, Any]) -> None:
        with self._records.lock:
            for key, value in sent.items():
                if pending.get(key) == value:
                    del pending[key]

    @staticmethod
    def _id(record: Record) -> str:
        assert record.run_id is not None
        return record.run_id


def read_history(path: Path) -> Rows:
    """Read a table with a row an epoch; numbers that MLflow cannot take are left out. Empty where there is no file."""
    try:
        table = pd.read_csv(path, float_precision="round_trip")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return {}
    return {
        int(row["epoch"]): {
            str(name): float(value) for name, value in row.items() if name != "epoch" and is_number(value)
        }
        for row in table.to_dict("records")
    }


def _dataset_input(item: dict[str, str]) -> DatasetInput:
    source = json.dumps({"uri": item["path"]})
    return DatasetInput(
        Dataset(item["name"], item["digest"], "local", source), [InputTag("mlflow.data.context", item["context"])]
    )
