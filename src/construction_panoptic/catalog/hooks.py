"""Hooks: two runs at once do not make the same files; an outdated result is neither mistaken for a good one nor lost.

Kedro decides by existence alone what is missing. When a node replaces its outputs, all that was made from the old ones,
by whichever pipeline, is marked as outdated: it stays, but does not count as existing. So is what was made with the
model of another recipe.
When such a result, or a finished one, is at last replaced, it moves to ``data/<layer>/previous/<time>/``; so do the
checkpoints of an unfinished training that starts over, to a folder of their own, where they displace no finished ones.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from construction_panoptic.catalog.files import local_path, model_note, outdated_mark
from construction_panoptic.errors import UserError
from construction_panoptic.files import remove_leftovers, shown_path, write_bytes

logger = logging.getLogger(__name__)

FIRST_KEPT_LAYER = "06"  # what lies in earlier layers is made anew in minutes, and large
KEPT = 3  # previous versions of a result
UNFINISHED = "unfinished"
LOCKS = Path(".mlflow", "locks")
PATIENCE = 2.0  # seconds for a run that was killed to be gone


class RunningElsewhereError(UserError):
    """Another run is making the same files."""


class ExclusiveHook:
    """Refuses a run whose outputs another one is making; runs with other outputs may go on beside it.

    Each output has a file that the run locks; the system unlocks it when the run's process ends, however it does.
    """

    def __init__(self) -> None:
        self._locks = ExitStack()

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Lock the outputs; `RunningElsewhereError`: another run has one of them."""
        project = Path(run_params["project_path"])
        (project / LOCKS).mkdir(parents=True, exist_ok=True)
        for name in sorted(pipeline.all_outputs()):
            if (path := local_path(catalog, name)) is None:
                continue
            lock = project / LOCKS / f"{quote(shown_path(path, project), safe='')}.lock"
            try:
                self._locks.enter_context(FileLock(lock, timeout=PATIENCE))
            except Timeout as error:
                self._locks.close()
                raise RunningElsewhereError(
                    f"Another run in this project is making the same files, {name} among them. "
                    "Wait until it has ended, or end it; then run again."
                ) from error

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Unlock the outputs, however the run ended."""
        self._locks.close()

    on_pipeline_error = after_pipeline_run


class FreshnessHook:
    """Marks what is outdated, and sets finished results aside before they are replaced."""

    _data: Path
    _time: str
    _pipeline: Pipeline
    _pipelines: tuple[Pipeline, ...]  # the same and all that are registered
    _catalog: Any
    _begun: set[str]  # names of nodes
    _unfinished: dict[str, Any]  # name of a node → `_training` of what it may go on with

    def __init__(self, registered: Callable[[], Mapping[str, Pipeline]] = dict) -> None:
        self._registered = registered

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Remove what killed runs left; before ``--only-missing-outputs`` is planned, mark what is outdated: results of
        another model, and what stands on missing outputs.
        """
        self._data, self._time = Path(run_params["project_path"], "data"), time.strftime("%Y-%m-%d_%H-%M-%S")
        self._pipeline, self._catalog, self._begun = pipeline, catalog, set()
        self._unfinished = {}
        self._pipelines = (pipeline, *self._registered().values())
        places = [path for node in pipeline.nodes for path in self._paths(node).values()]
        folders = {path if path.is_dir() else path.parent for path in places}
        for folder in folders:
            if folders.isdisjoint(folder.parents):
                remove_leftovers(folder)
        if run_params.get("only_missing_outputs"):
            for node in pipeline.nodes:
                notes = [note for path in self._paths(node).values() if (note := model_note(path)).is_file()]
                if any(note.read_text() != _model(node) for note in notes):
                    self._mark(self._paths(node))
                if not all(catalog.exists(name) for name in self._paths(node)):
                    self._mark_after(node)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any, node: Node) -> None:
        """Remember the unfinished training that a node may go on with."""
        if dataset_name.endswith(".resume_from") and data is not None:
            self._unfinished[node.name] = _training(data)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """At a node's first save of the run, set its finished results aside and mark all that was made from them."""
        if isinstance(data, dict):  # a checkpoint, perhaps: the first says whether a training starts over
            former = self._unfinished.pop(node.name, None)
            if former not in (None, _training(data)):
                for name, path in self._paths(node).items():
                    if name.endswith((".best", ".checkpoint")):  # which hold the history
                        self._set_aside(path, UNFINISHED)
        if node.name in self._begun:
            return
        self._begun.add(node.name)
        paths = self._paths(node)
        # An interrupted node, a training perhaps, goes on with what it has.
        if all(self._catalog.get(name).exists() for name in paths):
            for path in paths.values():
                self._set_aside(path)
        self._mark({name: path for name, path in paths.items() if name != dataset_name})
        self._mark_after(node)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Take the mark away, and note the model that the result was made with."""
        if (path := local_path(self._catalog, dataset_name)) is None:
            return
        outdated_mark(path).unlink(missing_ok=True)
        if model := _model(node):
            write_bytes(model_note(path), model.encode())

    def _paths(self, node: Node) -> dict[str, Path]:
        """Give the node's outputs that have a local file or folder."""
        return {name: path for name in node.outputs if (path := local_path(self._catalog, name)) is not None}

    def _mark_after(self, node: Node) -> None:
        """Mark what was made of a node's outputs, by whichever pipeline that shares the nodes so far, or goes on."""
        so_far = _steps(self._pipeline.to_nodes(node.name))  # recipes share some nodes, but not these before them
        for pipeline in self._pipelines:
            known = pipeline.datasets() if so_far <= _steps(pipeline) else pipeline.inputs()
            for other in pipeline.from_inputs(*known & set(node.outputs)).nodes:
                self._mark(self._paths(other))

    def _mark(self, paths: dict[str, Path]) -> None:
        """Mark what is there."""
        for name, path in paths.items():
            if self._catalog.get(name).exists() and not outdated_mark(path).exists():
                logger.info("%s is outdated now", name)
                outdated_mark(path).touch()

    def _set_aside(self, path: Path, *below: str) -> None:
        """Move a result to ``previous``, ``below`` a folder there, and remove the oldest of its versions there."""
        if not path.is_relative_to(self._data) or not path.exists():
            return
        layer, *rest = path.relative_to(self._data).parts
        if layer < FIRST_KEPT_LAYER or not rest:
            return
        previous, name = self._data / layer / "previous", "/".join([*below, *rest])
        folder = previous / self._time
        if not folder.exists():
            logger.info("Former results are kept in %s", shown_path(folder, self._data.parent))
        kept = folder / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        for old in sorted(previous.glob(f"*/{escape(name)}"))[:-KEPT]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
            with suppress(OSError):  # at the first folder that still holds something, as `previous` does
                os.removedirs(old.parent)


def _steps(pipeline: Pipeline) -> set[tuple[str, ...]]:
    """Give what each node makes of what, the same in all namespaces."""
    return {(*node.inputs, ">", *node.outputs) for node in pipeline.nodes}


def _training(checkpoint: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give what is the same in all checkpoints of a training."""
    return checkpoint.get("format_version"), checkpoint.get("fingerprint")


def _model(node: Node) -> str:
    """Name the models that a node reads."""
    return " ".join(sorted(name for name in node.inputs if name.endswith(".best")))
