"""Keeps results and what they were made from together: outdated outputs are removed, not mistaken for finished ones.

``kedro run --only-missing-outputs`` decides by existence alone. An output that exists but was made from data that has
since changed would be skipped, and a run that was interrupted would go on with a mixture of old and new.
"""

import logging
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from construction_panoptic.catalog.files import local_path
from construction_panoptic.files import remove_leftovers

logger = logging.getLogger(__name__)


class FreshnessHook:
    """Removes the outputs of all that comes after a node, once that node replaces its own."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None
        self._catalog: CatalogProtocol | None = None
        self._begun: set[str] = set()

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Remember the run; remove what killed runs left, and before ``--only-missing-outputs`` is planned, what
        stands on missing outputs.
        """
        self._pipeline, self._catalog, self._begun = pipeline, catalog, set()
        for folder in _output_folders(pipeline, catalog):
            remove_leftovers(folder)
        if run_params.get("only_missing_outputs"):
            for node in pipeline.nodes:
                if any(_is_missing(catalog, name) for name in node.outputs):
                    self._forget_after(node)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """At a node's first save of the run, remove its other outputs and all that was made from them."""
        if self._pipeline is None or node.name in self._begun:
            return
        self._begun.add(node.name)
        _forget(self._catalog, [name for name in node.outputs if name != dataset_name])
        self._forget_after(node)

    def _forget_after(self, node: Node) -> None:
        assert self._pipeline is not None
        later = self._pipeline.from_nodes(node.name).nodes
        _forget(self._catalog, [name for other in later if other.name != node.name for name in other.outputs])


def _output_folders(pipeline: Pipeline, catalog: CatalogProtocol) -> list[Path]:
    """Give the folders that the pipeline writes into, none of them within another."""
    paths = [local_path(catalog, name) for name in pipeline.all_outputs() if name in catalog]
    folders = {path if path.is_dir() else path.parent for path in paths if path is not None}
    return [folder for folder in folders if folders.isdisjoint(folder.parents)]


def _is_missing(catalog: CatalogProtocol, name: str) -> bool:
    return name in catalog and not _is_ephemeral(catalog, name) and not catalog.exists(name)


def _is_ephemeral(catalog: CatalogProtocol, name: str) -> bool:
    return bool(getattr(catalog.get(name), "_EPHEMERAL", False))


def _forget(catalog: CatalogProtocol | None, names: list[str]) -> None:
    """Remove persisted outputs; a dataset without ``invalidate`` keeps what it has."""
    if catalog is None:
        return
    for name in names:
        if name not in catalog:
            continue
        invalidate = getattr(catalog.get(name), "invalidate", None)
        if invalidate is None:
            if not _is_ephemeral(catalog, name):
                logger.debug("%s cannot be invalidated", name)
            continue
        if catalog.exists(name):
            logger.info("Removing outdated %s", name)
        invalidate()
