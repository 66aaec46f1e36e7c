"""Brings records to MLflow in a thread of its own, so that a training waits neither for a slow server nor for one away.

What is there already is asked first, so that nothing comes twice.
"""

import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from PIL import Image

from construction_panoptic.errors import first_line
from construction_panoptic.tracking.facts import checkpoint_epoch, is_number
from construction_panoptic.tracking.records import Record, Records, now
from construction_panoptic.tracking.store import is_refusal

logger = logging.getLogger(__name__)

RETRY_AFTER = 30.0  # seconds between attempts to reach a store that did not answer
LARGEST_ARCHIVE = 256 * 2**20  # bytes

Rows = dict[int, dict[str, float]]
"""The numbers of each epoch."""


class Delivery:
    """Sends what MLflow lacks of a record; paths of files are relative to ``project``."""

    def __init__(self, records: Records, project: Path) -> None:
        self._client = mlflow.MlflowClient()
        self._records = records
        self._project = project
        self._sent: dict[tuple[str, str], dict[int, int]] = {}  # run and table → epochs that are there, and their times
        self._refused: set[str] = set()

    def bring(self, record: Record) -> None:
        """Send what a record has; what MLflow refuses costs a warning.

        Raises `MlflowException` or `OSError`: MLflow cannot take anything now. What it has got is noted in the record.
        """
        if record.run_id is None and not self.create(record):
            return
        run_id, log_batch = str(record.run_id), self._client.log_batch
        kinds: dict[str, Callable[[dict[str, Any]], object]] = {
            "tags": lambda values: log_batch(run_id, tags=[RunTag(*item) for item in values.items()]),
            "params": lambda values: log_batch(run_id, params=[Param(*item) for item in values.items()]),
            "metrics": lambda values: self._send_numbers(run_id, values),
            "datasets": lambda values: self._client.log_inputs(run_id, [*map(_dataset_input, values.items())]),
        }
        for kind, send in kinds.items():
            pending: dict[str, Any] = getattr(record, kind)
            with self._records.lock:
                values = dict(pending)
            if values:
                self._unless_refused(f"{kind} of {record.name}", send, values)
                self._take_out(pending, values)
        with self._records.lock:  # before the histories, for a checkpoint is linked with the numbers of its epoch
            files = {name: dict(file) for name, file in record.files.items() if file["ready"]}
        for entry in list(record.histories):
            self._unless_refused(f"{entry} of {record.name}", self._send_history, run_id, record, entry)
        for name, file in files.items():
            self._unless_refused(f"{name} of {record.name}", self._send_file, run_id, record, file)
            self._take_out(record.files, {name: file})
        if record.ended is not None and not record.closed:
            ended = record.status, record.ended
            self._unless_refused(f"the end of {record.name}", self._client.set_terminated, run_id, *ended)
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

    def _take_out(self, pending: dict[str, Any], sent: dict[str, Any]) -> None:
        """Take out what was sent, unless it has changed meanwhile."""
        with self._records.lock:
            for key, value in sent.items():
                if pending.get(key) == value:
                    del pending[key]

    def _send_numbers(self, run_id: str, numbers: dict[str, float]) -> None:
        there = self._client.get_run(run_id).data.metrics
        time = now()
        lacking = [Metric(key, value, time, 0) for key, value in numbers.items() if there.get(key) != value]
        self._client.log_batch(run_id, lacking)

    def _send_history(self, run_id: str, record: Record, entry: str) -> None:
        """Send the epochs that the run lacks; metrics have the epoch as step."""
        rows = self._rows(record.histories[entry])
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

    def _send_file(self, run_id: str, record: Record, file: dict[str, Any]) -> None:
        """Send a file in all ways that its entry asks for, unless another has taken its place."""
        path, client = self._project / file["path"], self._client
        if path.stat().st_mtime_ns != file["stamp"]:
            return
        if "artifact" in file:  # a folder too
            client.log_artifact(run_id, str(path), file["artifact"])
        if "archive" in file:
            self._send_archive(run_id, path, file["archive"])
        # MLflow would add the rows to those that are there.
        if "table" in file and not self._is_there(run_id, file["table"]):
            client.log_table(run_id, pd.read_csv(path), file["table"])
        if "epochs" in file:
            key, step = file["epochs"], file["step"]
            with Image.open(path) as picture:
                picture.load()
            named = f"images/{key.replace('/', '~')}+step+{step}+"  # by MLflow
            if path.stat().st_mtime_ns == file["stamp"] and not self._is_there(run_id, named):
                client.log_image(run_id, picture, key=key, step=step, synchronous=True)
        if "checkpoint" in file:
            self._send_checkpoint(run_id, record, path, f"{record.stage}-{file['checkpoint']}")

    def _send_archive(self, run_id: str, folder: Path, place: str) -> None:
        if sum(member.stat().st_size for member in folder.rglob("*") if member.is_file()) >= LARGEST_ARCHIVE:
            logger.info("%s is too large to be kept in MLflow", folder)
            return
        with tempfile.TemporaryDirectory() as temporary:
            packed = shutil.make_archive(f"{temporary}/{folder.name}", "zip", folder)
            self._client.log_artifact(run_id, packed, place)

    def _send_checkpoint(self, run_id: str, record: Record, path: Path, name: str) -> None:
        """Log a checkpoint as a model of its run, with the numbers of its epoch, in the place of an earlier one."""
        client, experiment, epoch = self._client, record.experiment_id, checkpoint_epoch(path)
        for former in client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{name}'"):
            client.delete_logged_model(former.model_id)
        about: dict[str, Any] = {"params": {"epoch": str(epoch)}, "tags": {"stage": str(record.stage)}}
        model = client.create_logged_model(experiment, name, source_run_id=run_id, model_type="checkpoint", **about)
        client.log_model_artifact(model.model_id, str(path))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, epoch)])
        # With the time that the run has for it, a number is linked with the model, and not one more of the run.
        linked = [
            Metric(f"{record.stage}/{key}", value, self._sent[run_id, entry][epoch], epoch, model_id=model.model_id)
            for entry, history in record.histories.items()
            if epoch in self._sent.get((run_id, entry), {})
            for key, value in self._rows(history).get(epoch, {}).items()
        ]
        client.log_batch(run_id, linked)

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


class Sender:
    """Brings all records up to date whenever it is woken; wakes while it is at work count once.

    Messages call the store ``store``.
    """

    def __init__(self, records: Records, project: Path, store: str) -> None:
        self.delivery = Delivery(records, project)
        self._records = records
        self._store = store
        self._monitor: SystemMetricsMonitor | None = None
        self._monitored = ""  # id of the run
        self._changed = threading.Condition()  # of what follows
        self._asked = self._done = 0
        self._away = self._stopping = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let what the records have be sent, soon."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def settle(self, patience: float) -> bool:
        """Wait until all that the records have is sent; False where that takes longer, or the store does not answer."""
        self.wake()
        with self._changed:
            self._changed.wait_for(lambda: self._done == self._asked or self._away, patience)
            return self._done == self._asked

    def finish(self, patience: float) -> bool:
        """Try once more, even if the store did not answer a moment ago, and end the thread; see `settle`."""
        if self._monitor is not None and not self._away:
            last = threading.Thread(target=self._monitor.finish, daemon=True)
            last.start()
            last.join(patience)
        with self._changed:
            self._stopping = True
        self.wake()
        self._thread.join(patience)
        if self._done == self._asked:
            return True
        reason = "still does not answer" if self._away else "does not keep up"
        logger.warning("%s %s: what it lacks is sent by the next kedro run.", self._store, reason)
        return False

    def monitor(self, run_id: str) -> None:
        """Log the load of CPU, memory and GPU from now on; again after an outage, which ends MLflow's monitor."""
        self._monitored = run_id
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=self._monitor is not None)
        self._monitor.start()

    def _work(self) -> None:
        last = False
        while not last:
            with self._changed:
                if self._away:
                    self._changed.wait_for(lambda: self._stopping, RETRY_AFTER)
                else:
                    self._changed.wait_for(lambda: self._done < self._asked)
                last, asked, was_away = self._stopping, self._asked, self._away
            error = None
            try:
                for record in list(self._records.own.values()):
                    self.delivery.bring(record)
            except Exception as failure:  # whatever it is: the training goes on
                error = failure
            self._records.save()
            if error is not None and not was_away:
                text = "%s does not answer (%s). Work goes on; what it lacks is sent later."
                logger.warning(text, self._store, first_line(error)[:100])
                logger.debug("The failure", exc_info=error)
            with self._changed:
                self._done, self._away = self._done if error else asked, error is not None
                self._changed.notify_all()
            if was_away and error is None:
                logger.info("%s answers again.", self._store)
                if self._monitor is not None and not last:
                    self.monitor(self._monitored)


def read_history(path: Path) -> Rows:
    """Read a table with a row an epoch; numbers that MLflow cannot take are left out. Empty where there is no file."""
    try:
        table = pd.read_csv(path, float_precision="round_trip")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return {}
    return {
        int(row.pop("epoch")): {str(name): float(value) for name, value in row.items() if is_number(value)}
        for row in table.to_dict("records")
    }


def _dataset_input(item: tuple[str, dict[str, str]]) -> DatasetInput:
    name, about = item
    dataset = Dataset(name, about["digest"], "local", json.dumps({"uri": about["path"]}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", about["context"])])
