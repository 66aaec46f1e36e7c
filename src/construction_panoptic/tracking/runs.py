"""Runs of MLflow by id or name."""

from collections.abc import Sequence
from datetime import datetime

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from construction_panoptic.errors import ParameterError

UNFINISHED = ("FAILED", "KILLED")


def find_runs(names: Sequence[str], experiment: str, *, unfinished: bool = False) -> list[Run]:
    """Find two runs or more of an experiment by their ids or names.

    With ``unfinished`` a name is also that of runs that failed or were stopped. Raises `ParameterError`: there are
    fewer than two, or one is not found.
    """
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(experiment)
    if known is None:
        raise ParameterError(f"there is no experiment {experiment!r} yet: train first")
    listed = [_find_run(client, known.experiment_id, name, unfinished=unfinished) for name in names]
    found = {run.info.run_id: run for run in listed}
    if len(found) < 2:
        raise ParameterError("give the ids or names of at least two runs to compare")
    return list(found.values())


def run_by_id(client: mlflow.MlflowClient, name: str) -> list[Run]:
    """Give the run with an id, if there is one."""
    try:
        return [client.get_run(name)]
    except MlflowException:
        return []


def begun(run: Run) -> str:
    """Say when a run began, in local time."""
    return f"{datetime.fromtimestamp(run.info.start_time / 1000).astimezone():%Y-%m-%d %H:%M}"


def _described(run: Run) -> str:
    quality = run.data.metrics.get("PQ/All")
    return f"{run.info.run_id}  {begun(run)}  {'no PQ' if quality is None else f'PQ {100 * quality:.1f}'}"


def _find_run(client: mlflow.MlflowClient, experiment_id: str, name: str, *, unfinished: bool) -> Run:
    """Find a run by its id, or by its name; of a training, the run that it belongs to."""
    quoted = name.replace("'", "''")
    named = client.search_runs([experiment_id], f"attributes.run_name = '{quoted}'")
    kept = [run for run in named if unfinished or run.info.status not in UNFINISHED]
    found = [run for run in run_by_id(client, name) if run.info.experiment_id == experiment_id] or kept
    if len(found) > 1:
        listed = "".join(f"\n  {_described(run)}" for run in found)
        raise ParameterError(f"{len(found)} runs are named {name!r}; give an id:{listed}")
    if not found and named:
        raise ParameterError(f"the runs named {name!r} failed or were stopped; --unfinished takes them too")
    if not found:
        raise ParameterError(f"there is no run with the id or name {name!r}; mlflow ui lists them")
    parent = found[0].data.tags.get("mlflow.parentRunId")
    return found[0] if parent is None else client.get_run(parent)
