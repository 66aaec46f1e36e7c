"""The file datasets of kedro-datasets, made atomic, and pictures with a preview."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import CatalogProtocol, DatasetError
from kedro_datasets._typing import HTMLPreview, ImagePreview, JSONPreview
from kedro_datasets.json import JSONDataset as KedroJSONDataset
from kedro_datasets.matplotlib import MatplotlibDataset
from kedro_datasets.pandas import CSVDataset as KedroCSVDataset
from kedro_datasets.pandas import ParquetDataset as KedroParquetDataset
from kedro_datasets.pillow import ImageDataset
from kedro_datasets.plotly import JSONDataset as KedroPlotlyDataset
from kedro_datasets.text import TextDataset
from PIL import Image

from construction_panoptic.catalog.previews import picture_preview
from construction_panoptic.errors import DamagedFileError
from construction_panoptic.files import atomic_path

PREVIEW_BYTES = 64 * 2**20


class AtomicSave:
    """Makes a file dataset save to a temporary name beside its file and rename it.

    Put it before a dataset of kedro-datasets with a local ``filepath``. A reader, or a run that is killed, never
    meets half a file. An empty file, as a power cut may leave one, does not exist for Kedro.
    """

    _filepath: PurePosixPath

    def load(self) -> Any:
        """Load through the dataset below.

        Raises:
            DamagedFileError: what is in the file cannot be read.
        """
        try:
            return super().load()  # type: ignore[misc]
        except DatasetError as error:
            if isinstance(error.__cause__, OSError | MemoryError | None):
                raise
            raise damaged(Path(self._filepath), error.__cause__) from error

    def save(self, data: Any) -> None:
        """Save through the dataset below, atomically."""
        target = self._filepath
        with atomic_path(Path(target)) as temporary:
            self._filepath = PurePosixPath(temporary)
            try:
                super().save(data)  # type: ignore[misc]
            finally:
                self._filepath = target

    def invalidate(self) -> None:
        """Remove the file: what it was made from has changed."""
        Path(self._filepath).unlink(missing_ok=True)

    def _exists(self) -> bool:
        return super()._exists() and Path(self._filepath).stat().st_size > 0  # type: ignore[misc]


class CSVDataset(AtomicSave, KedroCSVDataset):
    """A table as CSV (see kedro-datasets), saved atomically."""


class ParquetDataset(AtomicSave, KedroParquetDataset):
    """A table as Parquet (see kedro-datasets), saved atomically."""


class JSONDataset(AtomicSave, KedroJSONDataset):
    """A JSON document (see kedro-datasets), saved atomically; the preview shows the beginning of each list."""

    def preview(self) -> JSONPreview:
        """Give the document with its lists cut to three items; of a file beyond 64 MiB, its size alone."""
        size = Path(self._filepath).stat().st_size
        if size > PREVIEW_BYTES:
            return JSONPreview(json.dumps({"bytes": size, "preview": "the file is too large to show"}))
        return JSONPreview(json.dumps(shortened(json.loads(Path(self._filepath).read_bytes()))))


class PlotlyDataset(AtomicSave, KedroPlotlyDataset):
    """A plotly figure as JSON (see kedro-datasets), saved atomically; kedro-viz draws it."""


class FigureDataset(AtomicSave, MatplotlibDataset):
    """A matplotlib figure as PNG (see kedro-datasets), saved atomically; kedro-viz shows it."""


class HTMLTextDataset(AtomicSave, TextDataset):
    """An HTML page, saved atomically; kedro-viz shows it."""

    def preview(self) -> HTMLPreview:
        """Give the page itself; kedro-viz takes it for Markdown too, in which underscores have a meaning."""
        return HTMLPreview(self.load().replace("_", "&#95;"))


class PictureDataset(AtomicSave, ImageDataset):
    """A PIL image (see kedro-datasets), saved atomically; kedro-viz shows it."""

    def preview(self) -> ImagePreview:
        """Give the picture, or its upper part, as base64 PNG."""
        return picture_preview(self.load())


class ProgressDataset(PictureDataset):
    """A picture that is drawn anew from time to time; ``UNCHANGED`` leaves it."""

    _EPHEMERAL = True  # a training without pictures is complete

    def save(self, data: Image.Image | str) -> None:
        """Save the picture."""
        if not isinstance(data, str):
            super().save(data)


def shortened(data: Any) -> Any:
    """Cut the lists in a JSON document to three items, the fourth says how many more there are; so for long texts."""
    if isinstance(data, dict):
        return {key: shortened(value) for key, value in data.items()}
    if isinstance(data, list):
        more = [f"… {len(data) - 3} more"] if len(data) > 4 else []
        return [shortened(item) for item in (data[:3] if more else data)] + more
    if isinstance(data, str) and len(data) > 200:
        return data[:200] + "…"
    return data


def damaged(path: Path, error: BaseException, place: str = "") -> DamagedFileError:
    """Give the error of a file whose content cannot be read, at a place in it."""
    reason = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
    return DamagedFileError(
        f"{path}{place} is damaged ({reason}). If a run has made it, remove it: with --only-missing-outputs the next "
        "run makes it anew, and what follows from it."
    )


def local_path(catalog: CatalogProtocol, name: str) -> Path | None:
    """Give the local file or folder of a catalog entry; None for one that has none."""
    path = getattr(catalog.get(name), "_filepath", None)
    return None if path is None else Path(path)


def shown_path(path: Path | None, project: Path) -> str:
    """Give a path as people read it: relative to the project if it is in there; "" for None."""
    if path is None:
        return ""
    return str(path.relative_to(project) if path.is_relative_to(project) else path)
