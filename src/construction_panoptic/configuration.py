"""Files that lie beside the configuration, wherever that is: a folder, or the archive that ``kedro package`` makes."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kedro.framework.hooks import hook_impl

from construction_panoptic.config.parameters import check_parameters


class ParametersHook:
    """Checks all parameters before anything else is looked at, so that a typo costs seconds and no result."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: Any) -> None:
        """Check conf and ``--params``.

        Raises:
            ParameterError: all mistakes, a line each.
        """
        check_parameters(context.config_loader["parameters"])


class ConfigurationFiles:
    """Remembers where a session's configuration comes from; ``${conf_file:…}`` in the catalog asks for a file of it."""

    def __init__(self) -> None:
        self._source = Path("conf")  # of a session without hooks, such as that of kedro-viz

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: Any) -> None:
        """Remember the source: ``conf``, or what ``--conf-source`` says."""
        self._source = Path(context.config_loader.conf_source)

    def path(self, name: str) -> str:
        """Give the path of a file, such as ``base/taxonomy.json``; an archive is unpacked into a temporary folder."""
        folder = _unpacked(self._source) if self._source.is_file() else self._source
        return (folder / name).as_posix()


@cache
def _unpacked(archive: Path) -> Path:
    folder = TemporaryDirectory(prefix="conf_")
    _FOLDERS.append(folder)
    shutil.unpack_archive(archive, folder.name, filter="data")
    # The archive holds one folder, named as the configuration's folder is.
    return next(path for path in Path(folder.name).iterdir() if path.is_dir())


# Removed when the process ends.
_FOLDERS: list[TemporaryDirectory[str]] = []
CONFIGURATION_FILES = ConfigurationFiles()
