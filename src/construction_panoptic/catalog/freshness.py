"""Keeps results and what they were made from together: an outdated result is neither mistaken for a good one nor lost.

Kedro decides by existence alone what is missing. When a node replaces its outputs, all that was made from the old ones
is marked as outdated: it stays, but does not count as existing. When such a result, or a finished one, is at last
replaced, it moves to ``data/<layer>/previous/<time>/``.
"""

import logging
import shutil
import time
from glob import escape
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from construction_panoptic.catalog.files import local_path, outdated_mark, shown_path
from construction_panoptic.files import remove_leftovers

logger = logging.getLogger(__name__)

FIRST_KEPT_LAYER = "06"  # what lies in earlier layers is made anew in minutes, and large
KEPT = 3  # previous versions of a result


class FreshnessHook:
    """Marks what is outdated, and sets finished results aside before they are replaced."""

    def __init__(self) -> None:
        self._data = Path.cwd() / "data"
        self._pipeline = Pipeline([])
        self._catalog: CatalogProtocol | None = None
        self._begun: set[str] = set()
        self._time = ""

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Remember the data folder."""
        self._data = context.project_path / "data"

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Remove what killed runs left; before ``--only-missing-outputs`` is planned, mark what stands on missing
        outputs.
        """
        self._pipeline, self._catalog, self._begun = pipeline, catalog, set()
        self._time = time.strftime("%Y-%m-%d_%H-%M-%S")
        for folder in _folders([path for node in pipeline.nodes for path in self._paths(node).values()]):
            remove_leftovers(folder)
        if run_params.get("only_missing_outputs"):
            for node in pipeline.nodes:
                if not all(catalog.exists(name) for name in self._lasting(node)):
                    self._mark_after(node)

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """At a node's first save of the run, set its finished results aside and mark all that was made from them."""
        if node.name in self._begun or self._catalog is None:
            return
        self._begun.add(node.name)
        paths = self._paths(node)
        # An interrupted node, a training perhaps, goes on with what it has.
        if all(self._is_written(name) for name in self._lasting(node)):
            for path in paths.values():
                self._set_aside(path)
        self._mark([name for name in paths if name != dataset_name])
        self._mark_after(node)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str) -> None:
        """Take the mark away."""
        path = None if self._catalog is None else local_path(self._catalog, dataset_name)
        if path is not None:
            outdated_mark(path).unlink(missing_ok=True)

    def _paths(self, node: Node) -> dict[str, Path]:
        """Give the node's outputs that have a local file or folder."""
        catalog = self._catalog
        assert catalog is not None
        paths = {name: local_path(catalog, name) for name in node.outputs if name in catalog}
        return {name: path for name, path in paths.items() if path is not None}

    def _lasting(self, node: Node) -> list[str]:
        """Give the node's outputs without which it is not finished."""
        return [name for name in self._paths(node) if not getattr(self._dataset(name), "_EPHEMERAL", False)]

    def _dataset(self, name: str) -> Any:
        assert self._catalog is not None
        return self._catalog.get(name)

    def _is_written(self, name: str) -> bool:
        """Whether an entry is there, outdated or not."""
        return bool(self._dataset(name).exists())

    def _mark_after(self, node: Node) -> None:
        later = self._pipeline.from_nodes(node.name).nodes
        self._mark([name for other in later if other.name != node.name for name in self._paths(other)])

    def _mark(self, names: list[str]) -> None:
        for name in names:
            path = Path(self._dataset(name)._filepath)
            if self._is_written(name) and not outdated_mark(path).exists():
                logger.info("%s is outdated now", name)
                outdated_mark(path).touch()

    def _set_aside(self, path: Path) -> None:
        """Move a result to ``previous``, and remove the oldest of its versions there."""
        if not path.is_relative_to(self._data) or not path.exists():
            return
        layer, *rest = path.relative_to(self._data).parts
        if layer < FIRST_KEPT_LAYER or not rest:
            return
        previous, name = self._data / layer / "previous", "/".join(rest)
        kept = previous / self._time / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        logger.info("The finished %s is kept as %s", name, shown_path(kept, self._data.parent))
        for old in sorted(previous.glob(f"*/{escape(name)}"))[:-KEPT]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
            for folder in old.parents:
                if folder == previous or any(folder.iterdir()):
                    break
                folder.rmdir()


def _folders(paths: list[Path]) -> list[Path]:
    """Give the folders of some files and folders, none of them within another."""
    folders = {path if path.is_dir() else path.parent for path in paths}
    return [folder for folder in folders if folders.isdisjoint(folder.parents)]
