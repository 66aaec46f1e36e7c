"""The project's catalog: entries are saved atomically; damaged, empty and outdated files are told from good ones."""

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.framework.context import CatalogCommandsMixin
from kedro.io import AbstractDataset, AbstractVersionedDataset, CatalogProtocol, DataCatalog, DatasetError

from construction_panoptic.errors import InputDataError, UserError, causes, damaged
from construction_panoptic.files import UNCHANGED, atomic_path

logger = logging.getLogger(__name__)


class LocalDataset(AbstractDataset[Any, Any]):
    """An entry with a local file or folder, which loads as its path unless a subclass reads it."""

    INDEX = ""  # of a folder, the file that is written last: the entry exists when it does

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Any:
        """Give the path."""
        return self._filepath

    def save(self, data: Any) -> None:
        """Refuse: people, or another entry, write what is there."""
        raise NotImplementedError(f"this entry only reads {self._filepath}")

    def _exists(self) -> bool:
        return (self._filepath / self.INDEX).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class ProjectCatalog(DataCatalog, CatalogCommandsMixin):
    """Kedro's catalog, in which a reader, or a run that is killed, never meets half a file.

    Stock datasets are saved to a temporary file, which is renamed; the project's own ones do so by themselves.
    """

    def save(self, ds_name: str, data: Any) -> None:
        """Save an entry, or leave it as it is if the data are ``UNCHANGED`` or a `StorageError` is raised."""
        if isinstance(data, str) and data == UNCHANGED:
            return
        dataset = self[ds_name]
        if not isinstance(dataset, AbstractVersionedDataset):
            super().save(ds_name, data)
            return
        target = dataset._filepath
        with atomic_path(Path(target)) as temporary:
            dataset._filepath = PurePosixPath(temporary)
            try:
                super().save(ds_name, data)
            finally:
                dataset._filepath = target

    def load(self, ds_name: str, version: str | None = None) -> Any:
        """Load an entry; `InputDataError`: its file is not there, `DamagedFileError`: it cannot be read."""
        path = local_path(self, ds_name)
        if path is not None and outdated_mark(path).exists():
            logger.warning("%s is outdated: what it was made from has been made anew since", ds_name)
        try:
            return super().load(ds_name, version)
        except DatasetError as error:
            cause = next((found for found in causes(error) if not isinstance(found, DatasetError)), None)
            if path is None or cause is None or isinstance(cause, UserError | MemoryError):
                raise
            if isinstance(cause, FileNotFoundError) and not path.exists():
                raise InputDataError(f"{ds_name} is missing ({path}): run the pipeline that makes it first.") from error
            if isinstance(cause, OSError):
                raise
            raise damaged(path, cause) from error

    def exists(self, ds_name: str) -> bool:
        """Whether an entry is there, whole, and not outdated; an empty file is what a power cut may leave."""
        path = local_path(self, ds_name)
        if path is not None and (outdated_mark(path).exists() or (path.is_file() and path.stat().st_size == 0)):
            return False
        return bool(super().exists(ds_name))


def outdated_mark(path: Path) -> Path:
    """Give the hidden file that says that a result is outdated: what it was made from has changed."""
    return path.with_name(f".{path.name}.outdated")


def model_note(path: Path) -> Path:
    """Give the hidden file that says which model a result was made with."""
    return path.with_name(f".{path.name}.model")


def local_path(catalog: CatalogProtocol, name: str) -> Path | None:
    """Give the local file or folder of a catalog entry; None for one that has none."""
    path = getattr(catalog.get(name), "_filepath", None)
    return None if path is None else Path(path)
