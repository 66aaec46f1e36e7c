"""Two runs at once do not make the same files."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from construction_panoptic.catalog.files import local_path, shown_path
from construction_panoptic.errors import UserError

LOCKS = Path(".mlflow", "locks")
PATIENCE = 2.0  # seconds for a run that was killed to be gone


class RunningElsewhereError(UserError):
    """Another run is making the same files."""


class ExclusiveHook:
    """Refuses a run whose outputs another one is making; runs with other outputs may go on beside it.

    Each output has a file that the run locks; the system unlocks it when the run's process ends, however it does.
    """

    def __init__(self) -> None:
        self._project = Path.cwd()
        self._locks = ExitStack()

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Remember the project folder."""
        self._project = context.project_path

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Lock the outputs.

        Raises:
            RunningElsewhereError: another run has one of them.
        """
        (self._project / LOCKS).mkdir(parents=True, exist_ok=True)
        for name in sorted(pipeline.all_outputs()):
            path = local_path(catalog, name) if name in catalog else None
            if path is None:
                continue
            lock = self._project / LOCKS / f"{quote(shown_path(path, self._project), safe='')}.lock"
            try:
                self._locks.enter_context(FileLock(lock, timeout=PATIENCE))
            except Timeout as error:
                self._unlock()
                raise RunningElsewhereError(
                    f"Another run in this project is making the same files, {name} among them. "
                    "Wait until it has ended, or end it; then run again."
                ) from error

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Unlock the outputs."""
        self._unlock()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Unlock the outputs."""
        self._unlock()

    def _unlock(self) -> None:
        self._locks.close()
