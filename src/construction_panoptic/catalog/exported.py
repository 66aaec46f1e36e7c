"""Entries for models that are handed on."""

from construction_panoptic.catalog.folders import LocalDataset
from construction_panoptic.files import write_bytes
from construction_panoptic.models.files import CONFIG, export_model, load_exported
from construction_panoptic.models.protocol import PanopticModel


class ExportedModelDataset(LocalDataset):
    """A folder with ``model.safetensors`` and ``config.json``.

    Args:
        filepath: local path of the folder.
        metadata: arbitrary metadata, for plugins.
    """

    def load(self) -> PanopticModel:
        """Build the model; see `load_exported`."""
        return load_exported(self._filepath)

    def save(self, data: PanopticModel) -> None:
        """Write both files; see `export_model`."""
        export_model(data, self._filepath)

    def invalidate(self) -> None:
        """Remove the description: the model has changed."""
        (self._filepath / CONFIG).unlink(missing_ok=True)

    def _exists(self) -> bool:
        return (self._filepath / CONFIG).is_file()


class BytesDataset(LocalDataset):
    """The content of a file, written atomically.

    Args:
        filepath: local path of the file.
        metadata: arbitrary metadata, for plugins.
    """

    def load(self) -> bytes:
        """Read the file."""
        return self._filepath.read_bytes()

    def save(self, data: bytes) -> None:
        """Write the file under a temporary name and rename it."""
        write_bytes(self._filepath, data)

    def invalidate(self) -> None:
        """Remove the file: what it was made from has changed."""
        self._filepath.unlink(missing_ok=True)

    def _exists(self) -> bool:
        return self._filepath.is_file()
