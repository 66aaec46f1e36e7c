"""The MLflow run of one training, nested in the run of the ``kedro run`` that trains.

A training that is interrupted and goes on keeps its run: which run that was stands in a file of the project. The run is
continued if it has nothing that the training's history contradicts; its steps are then completed, none is sent twice.
Otherwise a new run gets the whole history, with a tag ``continues`` if the training does go on from an earlier one.
"""

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from construction_panoptic.files import write_bytes, write_json
from construction_panoptic.tracking.facts import flat_parameters, is_number
from construction_panoptic.tracking.outbox import first_line, known_by_server

logger = logging.getLogger(__name__)

_open_runs: set[str] = set()
_remembering = threading.Lock()  # the thread that sends to a server renames runs


class StageRun:
    """The run of one training.

    Args:
        stage: name of the stage, the first part of its metrics' names.
        parent: the run of the whole ``kedro run``.
        parameters: nested parameters of the stage.
        tags: tags of a new run.
        remembered: the file that says which run each training has.
        training: what tells the project's trainings apart in that file.
        inputs: the data sets of the training.
    """

    def __init__(
        self,
        stage: str,
        parent: Run,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        remembered: Path,
        training: str,
        inputs: Sequence[DatasetInput] = (),
    ) -> None:
        self.stage = stage
        self.experiment_id = parent.info.experiment_id
        self._inputs = inputs
        self._training = training
        self.run_id: str | None = None
        self.epoch = 0
        self.metrics: dict[int, list[Metric]] = {}
        self._sent: dict[str, set[int]] = {}
        self._tables: dict[str, pd.DataFrame] = {}
        self._client = mlflow.MlflowClient()
        self._parent = parent
        self._parameters = flat_parameters(parameters)
        self._tags = {**tags, "stage": stage, "mlflow.parentRunId": parent.info.run_id}
        self._remembered = remembered
        former = remembered_run(remembered, training)
        self._former = None if former is None or former["finished"] else former
        if self._former is None:
            self._create()
        # Else whether the training goes on, or starts over, shows in its first history.

    def send_history(self, entry: str, history: pd.DataFrame) -> None:
        """Send the epochs that the run lacks; the metrics have the epoch as step.

        Args:
            entry: name of the table; the first one that is sent must be the same whenever the training is repeated.
            history: a row an epoch, with its number in ``epoch``.
        """
        rows = {int(row["epoch"]): self._epoch_metrics(row) for row in history.to_dict("records")}
        if not rows:
            return
        self._tables[entry] = history
        if self.run_id is None:
            self._continue_or_create(rows)
        if entry not in self._sent:
            self._sent[entry] = self._sent_before(rows) if self._former is not None else set()
        for epoch in sorted(rows.keys() - self._sent[entry]):
            self._client.log_batch(self._known_id, rows[epoch])
            self._sent[entry].add(epoch)
            self.metrics.setdefault(epoch, []).extend(rows[epoch])
        self.epoch = max(rows)

    def end(self, status: str) -> None:
        """Send what MLflow did not take before, and close the run; one that is FINISHED is not continued."""
        for entry, history in self._tables.items():
            self.send_history(entry, history)
        if self.run_id is None:
            return
        self._client.set_terminated(self.run_id, status)
        _open_runs.discard(self.run_id)
        self._remember(finished=status == "FINISHED")

    def summary(self, best: int) -> dict[str, float]:
        """Give the number of the best epoch and its validation, under names for the parent run."""
        validation = f"{self.stage}/val/"
        found = {
            metric.key.replace(validation, f"{self.stage}/best/"): metric.value
            for metric in self.metrics.get(best, [])
            if metric.key.startswith(validation)
        }
        return {f"{self.stage}/best/epoch": float(best), **found}

    @property
    def _known_id(self) -> str:
        assert self.run_id is not None
        return self.run_id

    def _epoch_metrics(self, row: Mapping[Any, Any]) -> list[Metric]:
        epoch, now = int(row["epoch"]), int(time.time() * 1000)
        return [
            Metric(f"{self.stage}/{name}", float(value), now, epoch)
            for name, value in row.items()
            if name != "epoch" and is_number(value)
        ]

    def _create(self, **tags: str) -> None:
        name = f"{self._parent.info.run_name} {self.stage}"
        run = self._client.create_run(self.experiment_id, tags={**self._tags, **tags}, run_name=name)
        self.run_id = run.info.run_id
        _open_runs.add(self.run_id)
        self._client.log_batch(self.run_id, params=[Param(*item) for item in self._parameters.items()])
        self._client.log_inputs(self.run_id, list(self._inputs))
        self._remember(finished=False)

    def _continue_or_create(self, rows: Mapping[int, list[Metric]]) -> None:
        former = self._former
        assert former is not None
        if former["tracking_uri"] == mlflow.get_tracking_uri() and self._agrees(former["run_id"], rows):
            self.run_id = former["run_id"]
            _open_runs.add(self._known_id)
            self._client.update_run(self._known_id, status="RUNNING")
            tags = {**self._tags, "resumed_after_epoch": str(max(rows) - 1)}
            self._client.log_batch(self._known_id, tags=[RunTag(*item) for item in tags.items()])
        else:
            self._former = None
            goes_on = {"continues": former["run_id"], "continues_at": former["tracking_uri"]}
            self._create(**goes_on if max(rows) > 1 else {})

    def _agrees(self, run_id: str, rows: Mapping[int, list[Metric]]) -> bool:
        """Whether a run is there, and has nothing that the history does not say too."""
        first = rows[min(rows)][0].key
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return False
            known = {metric.step: metric.value for metric in self._client.get_metric_history(run_id, first)}
        except (MlflowException, OSError) as error:
            logger.warning("The run of the training so far cannot be read (%s): a new one.", first_line(error))
            return False
        return all(epoch in rows and rows[epoch][0].value == value for epoch, value in known.items())

    def _sent_before(self, rows: Mapping[int, list[Metric]]) -> set[int]:
        """Give the epochs of a table that the continued run has; their metrics are noted with the times they have."""
        times = {
            metric.step: metric.timestamp
            for metric in self._client.get_metric_history(self._known_id, rows[min(rows)][0].key)
        }
        for epoch in times.keys() & rows.keys():
            noted = [Metric(m.key, m.value, times[epoch], epoch) for m in rows[epoch]]
            self.metrics.setdefault(epoch, []).extend(noted)
        return set(times)

    def _remember(self, *, finished: bool) -> None:
        uri = mlflow.get_tracking_uri()
        with _remembering:
            run_id = known_by_server(self._known_id, uri)
            known = {"run_id": run_id, "tracking_uri": uri, "stage": self.stage, "finished": finished}
            write_json(self._remembered, {**_read(self._remembered), self._training: known}, indent=2)


def close_stage_runs(status: str) -> None:
    """Close the runs of trainings that are open in this process."""
    while _open_runs:
        mlflow.MlflowClient().set_terminated(_open_runs.pop(), status)


def remembered_run(remembered: Path, training: str) -> dict[str, Any] | None:
    """Give ``run_id``, ``tracking_uri``, ``stage`` and ``finished`` of a training's run; None if it is not known."""
    return _read(remembered).get(training)


def rename_run(remembered: Path, stand_in: str, real: str) -> None:
    """Put the id that a server has given to a run in the place of the one that it had while the server was away."""
    with _remembering:
        if remembered.is_file():
            write_bytes(remembered, remembered.read_bytes().replace(stand_in.encode(), real.encode()))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
