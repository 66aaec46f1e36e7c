"""Entries that are written, and read, a part at a time: folders of many files, and files with long lists."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from kedro_datasets._typing import ImagePreview, JSONPreview, TablePreview
from kedro_datasets.json import JSONDataset

from construction_panoptic.annotations.json_stream import JSONDocument, json_parts
from construction_panoptic.annotations.records import ConvertedImage, ConvertedImages, ConvertedRecord
from construction_panoptic.annotations.stuff.label_maps import StuffOfImage
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.catalog.files import LocalDataset
from construction_panoptic.catalog.journal import Journal
from construction_panoptic.catalog.previews import image_grid
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.predictions import PREDICTIONS_FILE, ImagePrediction, write_predictions
from construction_panoptic.files import atomic_path, write_bytes, write_json
from construction_panoptic.prediction.results import is_complete, write_results
from construction_panoptic.prediction.running import PredictedPicture, RejectedFile

Finished = Callable[[str, str], ConvertedRecord | None]
COMPLETE = "complete"
_PREVIEW_ROWS, _PREVIEW_ITEMS, _PREVIEW_BYTES = 5, 3, 64 * 2**20


class FolderDataset(LocalDataset):
    """A folder that this entry only reads; the node that gets its path says what is wrong with its content."""

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def preview(self) -> JSONPreview:
        """List what is in the folder."""
        names = sorted(p.name + ("/" if p.is_dir() else "") for p in self._filepath.glob("[!.]*"))
        return JSONPreview(json.dumps({"folder": self._filepath.name, "holds": names[:100]}))


class GeneratedFilesDataset(LocalDataset):
    """Files made by a generator, (relative path, content) each, with their names in ``.generated.jsonl``.

    These tell them from files that a person put there: a new save removes the former, and refuses to touch a folder of
    ``guarded`` that holds the latter.
    """

    def __init__(
        self, *, filepath: str, guarded: list[str] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._guarded = guarded or []
        self._journal = self._filepath / ".generated.jsonl"

    def save(self, data: Iterable[tuple[str, bytes]]) -> None:
        """Write every file; `InputDataError`: a guarded subfolder holds files that were not generated."""
        self._clear()
        self._filepath.mkdir(parents=True, exist_ok=True)
        with self._journal.open("w", encoding="utf-8") as journal:
            for name, content in data:
                # Named before it is written: a run that is killed leaves no file that looks like a person's.
                journal.write(json.dumps(name) + "\n")
                journal.flush()
                write_bytes(self._filepath / name, content)
            journal.write(COMPLETE + "\n")  # all are there

    def _clear(self) -> None:
        generated = set(self._generated())
        guarded = [self._filepath / name for name in self._guarded]
        for folder in guarded:
            others = [path for path in folder.rglob("[!.]*") if path.is_file() and path not in generated]
            if others:
                raise InputDataError(
                    f"{min(others)} was not generated: what this run makes would mix with your own. "
                    f"Move {folder} away, or leave out the pipeline that writes there."
                )
        for path in generated:
            path.unlink(missing_ok=True)
        for folder in guarded:
            shutil.rmtree(folder, ignore_errors=True)

    def _lines(self) -> list[str]:
        return self._journal.read_text(encoding="utf-8").splitlines() if self._journal.is_file() else []

    def _generated(self) -> list[Path]:
        whole = [line for line in self._lines() if line.startswith('"') and line.endswith('"')]
        return [self._filepath / json.loads(line) for line in whole]

    def _exists(self) -> bool:
        return COMPLETE in self._lines()

    def preview(self) -> ImagePreview:
        """Show a grid of generated pictures."""
        return image_grid([path for path in self._generated() if path.suffix in (".jpg", ".jpeg")])


@dataclass(frozen=True)
class StuffLabelFolder:
    """Stuff labels of the raw images, one 8-bit PNG an image."""

    folder: Path
    files: dict[str, str | None]  # by image key; None where an image has no stuff prediction

    def content(self, key: str) -> bytes | None:
        """Read one image's labels, a PNG of project stuff ids (0 = none); None where there are none."""
        name = self.files.get(key)
        return None if name is None else (self.folder / name).read_bytes()

    def fringe(self) -> dict[str, int]:
        """Sum over all images the pixels of leftover stuff around things, before and after cleaning."""
        measured = json.loads((self.folder / "fringe.json").read_text()).values()
        before, after = (sum(counts[position] for counts in measured) for position in (0, 1))
        return {"pixels_before": before, "pixels_after": after}


class PictureFolder(LocalDataset):
    """A folder of which the preview shows a grid of pictures: of label maps, in a colour for each id."""

    PICTURES, LABELS = "*.png", True

    def preview(self) -> ImagePreview:
        """Show a grid of pictures."""
        return image_grid(sorted(self._filepath.glob(self.PICTURES)), labels=self.LABELS)


class StuffLabelsDataset(PictureFolder):
    """A folder of stuff label maps with ``fringe.json`` and, written last, ``index.json``.

    Names of files tell what they were made from, see `StuffOfImage.file_name`; those of earlier runs go at the end.
    """

    INDEX = "index.json"

    def load(self) -> StuffLabelFolder:
        """Give a handle that reads one map at a time."""
        return StuffLabelFolder(self._filepath, json.loads((self._filepath / self.INDEX).read_text()))

    def save(self, data: Callable[[Path], Iterable[StuffOfImage]]) -> None:
        """Write each image's labels as they come, then fringe and index.

        ``data`` is called with the folder, and gives what it finds finished there as the path of its file.
        """
        (self._filepath / self.INDEX).unlink(missing_ok=True)
        files: dict[str, str | None] = {}
        fringe: dict[str, tuple[int, int]] = {}
        for stuff in data(self._filepath):
            files[stuff.key] = name = stuff.file_name
            fringe[stuff.key] = (stuff.fringe_before, stuff.fringe_after)
            if name is not None and isinstance(stuff.labels, bytes):
                write_bytes(self._filepath / name, stuff.labels)
        _remove_others(self._filepath, {name for name in files.values() if name})
        write_json(self._filepath / "fringe.json", fringe)
        write_json(self._filepath / self.INDEX, files)


class ConvertedImagesDataset(LocalDataset):
    """Images, panoptic PNGs and their index, a JSON line an image (``filepath``), which is renamed last.

    An image that needs no change is hard-linked (copied across file systems).
    """

    def __init__(
        self, *, filepath: str, image_folder: str, png_folder: str, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        # Kedro makes only `filepath` absolute; the folders are named relative to the index.
        self._image_folder = self._filepath.parent / image_folder
        self._png_folder = self._filepath.parent / png_folder

    def load(self) -> ConvertedImages:
        """Give a handle that iterates over the records."""
        return ConvertedImages(self._image_folder, self._png_folder, self._filepath)

    def save(self, data: Callable[[Finished], Iterable[ConvertedImage | ConvertedRecord]]) -> None:
        """Write image, PNG and record of each item as it comes.

        ``data`` is called with what gives the record of an image that is finished already, by its key and the digest of
        what it is made from, or None; of such an image it gives the record alone.
        """
        self._filepath.unlink(missing_ok=True)
        names: list[tuple[str, str, str]] = []
        journal = Journal(self._filepath)
        with atomic_path(self._filepath) as temporary, temporary.open("w", encoding="utf-8") as index:
            for item in data(partial(_finished, journal)):
                record = item if isinstance(item, ConvertedRecord) else item.record
                content = record.to_dict()
                if isinstance(item, ConvertedImage):
                    files = [self._image_folder / record.image_file, self._png_folder / record.png_file]
                    if isinstance(item.image, bytes):
                        write_bytes(files[0], item.image)
                    else:
                        link(item.image, files[0])
                    write_bytes(files[1], item.png)
                    journal.add(record.key, item.digest, files, content)
                index.write(json.dumps(content, ensure_ascii=False) + "\n")
                names.append((record.key, record.image_file, record.png_file))
            _remove_others(self._image_folder, {image for _, image, _ in names})
            _remove_others(self._png_folder, {png for _, _, png in names})
        Journal(self._filepath).keep([key for key, _, _ in names])

    def preview(self) -> ImagePreview:
        """Show a grid of panoptic PNGs, a colour for each id."""
        return image_grid(sorted(self._png_folder.glob("*.png")), labels=True)


def _finished(journal: Journal, key: str, digest: str) -> ConvertedRecord | None:
    found = journal.find(key, digest)
    return None if found is None else ConvertedRecord.from_dict(found)


class PredictionsDataset(PictureFolder):
    """Predictions as COCO panoptic results: ``predictions.json`` and a PNG an image, and ``boxes.jsonl``."""

    INDEX = PREDICTIONS_FILE

    def save(self, data: Iterable[ImagePrediction] | Path) -> None:
        """Write each prediction as it comes, then ``predictions.json``; or link what is in a folder of predictions."""
        (self._filepath / self.INDEX).unlink(missing_ok=True)
        if not isinstance(data, Path):
            write_predictions(data, self._filepath)
            return
        names = {path.name for path in data.glob("[!.]*")}
        _remove_others(self._filepath, names)
        for name in [*(names - {self.INDEX}), self.INDEX]:
            link(data / name, self._filepath / name)


class PredictionResultsDataset(PictureFolder):
    """Predictions of images and videos: COCO panoptic files, both views of each image, and videos with them."""

    PICTURES, LABELS = "masks/*.jpg", False

    def save(self, data: Iterable[PredictedPicture | RejectedFile]) -> None:
        """Write each prediction as it comes, ``index.json`` last; see `write_results`."""
        write_results(data, self._filepath)

    def _exists(self) -> bool:
        return is_complete(self._filepath)


class LongJSONDataset(JSONDataset):
    """A JSON document with long lists, of which the preview shows the first items."""

    def preview(self) -> JSONPreview:
        """Show the document with its lists cut; of a file beyond 64 MiB, its size alone."""
        path = Path(self._filepath)
        if (size := path.stat().st_size) > _PREVIEW_BYTES:
            return JSONPreview(json.dumps({"bytes": size, "preview": "the file is too large to show"}))
        content = json.loads(path.read_bytes())
        shown = {name: _cut(part) for name, part in content.items()} if isinstance(content, dict) else _cut(content)
        return JSONPreview(json.dumps(shown))


class StreamedJSONDataset(LongJSONDataset):
    """A JSON document whose lists may be iterators; they are drawn from while the file is written."""

    def save(self, data: Mapping[str, Any]) -> None:
        """Write the document; lines are not broken."""
        with self._fs.open(str(self._filepath), mode="w", encoding="utf-8") as file:
            file.writelines(json_parts(data))


class StreamedDocumentDataset(StreamedJSONDataset):
    """A COCO file whose images and annotations are written, and read, one at a time."""

    def load(self) -> JSONDocument:
        """Give the document; of its images and annotations nothing is in memory."""
        return JSONDocument(Path(self._filepath))


class StoredTableDataset(LocalDataset):
    """A table in a Parquet file, of which only a part is ever in memory."""

    def load(self) -> StoredTable:
        """Give a handle that reads columns, or rows by and by."""
        return StoredTable(self._filepath)

    def save(self, data: StoredTable) -> None:
        """Copy the table's file, atomically."""
        with atomic_path(self._filepath) as temporary:
            data.copy_to(temporary)

    def preview(self) -> TablePreview:
        """Give the first rows."""
        first = pd.DataFrame(islice(self.load().rows(), _PREVIEW_ROWS))
        return TablePreview(first.to_dict(orient="split"))


def link(source: Path, target: Path) -> None:
    """Put a file at ``target`` too, hard-linked, or copied where links cannot go."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Remove the files of an earlier run that this one has not."""
    for path in folder.glob("[!.]*"):
        if path.is_file() and path.name not in keep:
            path.unlink()


def _cut(part: Any) -> Any:
    return [*part[:_PREVIEW_ITEMS], "…"] if isinstance(part, list) and len(part) > _PREVIEW_ITEMS else part
