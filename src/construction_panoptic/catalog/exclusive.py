"""Two runs at once do not make the same files."""

import errno
import fcntl
import hashlib
import logging
import time
from io import FileIO
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline

from construction_panoptic.catalog.files import local_path
from construction_panoptic.errors import UserError

logger = logging.getLogger(__name__)

LOCKS = Path(".mlflow", "running.lock")
PATIENCE = 5.0  # seconds for a run that was killed to be gone


class RunningElsewhereError(UserError):
    """Another run is making the same files."""


class ExclusiveHook:
    """Refuses a run whose outputs another one is making; runs with other outputs may go on beside it.

    Each output has a byte of a file of the project, which the run locks as long as it lives, however it ends.
    """

    def __init__(self) -> None:
        self._project = Path.cwd()
        self._file: FileIO | None = None

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Remember the project folder."""
        self._project = context.project_path

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Lock the outputs.

        Raises:
            RunningElsewhereError: another run has some of them.
        """
        paths = {name: local_path(catalog, name) for name in sorted(pipeline.all_outputs()) if name in catalog}
        try:
            (self._project / LOCKS).parent.mkdir(exist_ok=True)
            self._file = FileIO(str(self._project / LOCKS), "a+")
        except OSError as error:
            logger.debug("Outputs cannot be locked", exc_info=error)
            return
        deadline = time.monotonic() + PATIENCE
        while taken := [name for name, path in paths.items() if path is not None and not self._lock(path)]:
            if time.monotonic() > deadline:
                self._file.close()
                raise RunningElsewhereError(
                    f"Another run in this project is making the same files: {', '.join(taken[:3])}"
                    f"{' and more' if len(taken) > 3 else ''}. Wait until it has ended, or end it; then run again."
                )
            time.sleep(0.2)

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """Unlock the outputs."""
        self._unlock()

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Unlock the outputs."""
        self._unlock()

    def _lock(self, path: Path) -> bool:
        """Lock the byte of a path; a file system that knows no locks is no hindrance."""
        assert self._file is not None
        byte = int.from_bytes(hashlib.sha256(str(path.absolute()).encode()).digest()[:7])
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def _unlock(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
