"""Folders of many files as catalog entries: they hand out paths and stream, never a million partitions."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kedro.io import AbstractDataset
from kedro_datasets._typing import ImagePreview, JSONPreview

from construction_panoptic.annotations.records import ConvertedImage, ConvertedImages, ConvertedRecord
from construction_panoptic.annotations.stuff.label_maps import StuffOfImage, decode_labels
from construction_panoptic.catalog.journal import Journal
from construction_panoptic.catalog.previews import image_grid
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.predictions import ImagePrediction, write_predictions
from construction_panoptic.files import atomic_path, write_bytes, write_json

COMPLETE = "complete"


class LocalDataset(AbstractDataset[Any, Any]):
    """An entry with a local file or folder.

    Args:
        filepath: its local path.
        metadata: arbitrary metadata, for plugins.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class LocalFileDataset(LocalDataset):
    """An entry whose file says that it is complete."""

    def _exists(self) -> bool:
        return self._filepath.is_file()


class FolderDataset(LocalDataset):
    """A folder that this entry only reads; loads as its path, whether it exists or not."""

    def load(self) -> Path:
        """Give the path; the node that reads it says what is wrong with its content."""
        return self._filepath

    def save(self, data: Path) -> None:
        """Refuse: people, or another entry, fill this folder."""
        raise NotImplementedError(f"this entry only reads {self._filepath}")

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def preview(self) -> JSONPreview:
        """List what is in the folder."""
        names = sorted(p.name + ("/" if p.is_dir() else "") for p in self._filepath.glob("[!.]*"))
        return JSONPreview(json.dumps({"folder": self._filepath.name, "holds": names[:100]}))


class GeneratedFilesDataset(LocalDataset):
    """Files made by a generator, (relative path, content) each, with a journal of them beside.

    The journal (``.generated.jsonl``) tells generated files from those a person put there: a new save removes the
    former and refuses to touch a folder of ``guarded`` that holds the latter.

    Args:
        filepath: local path of the folder.
        guarded: subfolders that must hold nothing but generated files.
        metadata: arbitrary metadata, for plugins.
    """

    def __init__(
        self, *, filepath: str, guarded: list[str] | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._guarded = guarded or []
        self._journal = self._filepath / ".generated.jsonl"

    def load(self) -> Path:
        """Give the path of the folder."""
        return self._filepath

    def save(self, data: Iterable[tuple[str, bytes]]) -> None:
        """Write every file; the journal's last line says that all are there.

        Raises:
            InputDataError: a guarded subfolder holds files that were not generated.
        """
        self._clear()
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._journal.open("w", encoding="utf-8") as journal:
            for name, content in data:
                # Named before it is written: a run that is killed leaves no file that looks like a person's.
                journal.write(json.dumps(name) + "\n")
                journal.flush()
                write_bytes(self._filepath / name, content)
            journal.write(COMPLETE + "\n")

    def _clear(self) -> None:
        generated = set(self._generated())
        for folder in self._guarded:
            for path in sorted((self._filepath / folder).rglob("*")):
                name = path.relative_to(self._filepath).as_posix()
                if path.is_file() and name not in generated and not path.name.startswith("."):
                    raise InputDataError(
                        f"{path} was not generated: the sample data would mix with your own. "
                        f"Move {self._filepath / folder} away, or run without the sample_data pipeline."
                    )
        for name in generated:
            (self._filepath / name).unlink(missing_ok=True)
        for folder in self._guarded:
            shutil.rmtree(self._filepath / folder, ignore_errors=True)

    def _generated(self) -> list[str]:
        if not self._journal.is_file():
            return []
        lines = self._journal.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith('"') and line.endswith('"')]

    def _exists(self) -> bool:
        return self._journal.is_file() and self._journal.read_text(encoding="utf-8").endswith(COMPLETE + "\n")

    def preview(self) -> ImagePreview:
        """Show a grid of generated pictures."""
        pictures = [self._filepath / n for n in self._generated() if n.endswith((".jpg", ".jpeg"))]
        return image_grid(pictures)


@dataclass(frozen=True)
class StuffLabelFolder:
    """Stuff labels of the raw images, one 8-bit PNG an image."""

    folder: Path
    files: dict[str, str | None]
    """Image key to file name; None where an image has no stuff prediction."""

    def content(self, key: str) -> bytes | None:
        """Read the file of one image's labels; None where there is none."""
        name = self.files.get(key)
        return None if name is None else (self.folder / name).read_bytes()

    def labels(self, key: str) -> np.ndarray | None:
        """Read the uint8 [H, W] map of project stuff ids (0 = none) of one image; None where there is none."""
        content = self.content(key)
        return None if content is None else decode_labels(content)

    def fringe(self) -> dict[str, int]:
        """Sum over all images the pixels of leftover stuff around things, before and after cleaning."""
        measured = json.loads((self.folder / "fringe.json").read_text()).values()
        before, after = (sum(counts[position] for counts in measured) for position in (0, 1))
        return {"pixels_before": before, "pixels_after": after}


class StuffLabelsDataset(LocalDataset):
    """A folder of stuff label maps with an index and ``fringe.json``, written image by image.

    Names of files tell what they were made from, see `StuffOfImage.file_name`; those of earlier runs go at the end.

    Args:
        filepath: local path of the folder; ``index.json`` in it is written last.
        metadata: arbitrary metadata, for plugins.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._index = self._filepath / "index.json"

    def load(self) -> StuffLabelFolder:
        """Give a handle that reads one map at a time."""
        return StuffLabelFolder(self._filepath, json.loads(self._index.read_text()))

    def save(self, data: Iterable[StuffOfImage]) -> None:
        """Write each image's labels as they come, then fringe and index; labels that are in a file stay there."""
        self._index.unlink(missing_ok=True)
        files: dict[str, str | None] = {}
        fringe: dict[str, tuple[int, int]] = {}
        for stuff in data:
            files[stuff.key] = name = stuff.file_name
            fringe[stuff.key] = (stuff.fringe_before, stuff.fringe_after)
            if name is not None and isinstance(stuff.labels, bytes):
                write_bytes(self._filepath / name, stuff.labels)
        _remove_others(self._filepath, {name for name in files.values() if name})
        write_json(self._filepath / "fringe.json", fringe)
        write_json(self._index, files)

    def preview(self) -> ImagePreview:
        """Show a grid of label maps, a colour for each class."""
        return image_grid(sorted(self._filepath.glob("*.png")), labels=True)

    def _exists(self) -> bool:
        return self._index.is_file()


class ConvertedImagesDataset(LocalFileDataset):
    """Images, panoptic PNGs and one JSON line an image, written image by image; the index is renamed last.

    Args:
        filepath: the index, a JSON Lines file.
        image_folder: where the images go; one that needs no change is hard-linked (copied across file systems).
        png_folder: where the panoptic PNGs go.
        metadata: arbitrary metadata, for plugins.
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

    def save(self, data: Iterable[ConvertedImage | ConvertedRecord]) -> None:
        """Write image, PNG and record of each item as it comes; of a mere record the files are there already."""
        self._filepath.unlink(missing_ok=True)
        keys: dict[str, None] = {}
        images: set[str] = set()
        pngs: set[str] = set()
        journal = Journal(self._filepath)
        with atomic_path(self._filepath) as temporary, temporary.open("w", encoding="utf-8") as index:
            for item in data:
                record = item if isinstance(item, ConvertedRecord) else item.record
                content = record.to_dict()
                if isinstance(item, ConvertedImage):
                    files = [self._image_folder / record.image_file, self._png_folder / record.png_file]
                    _place(item.image, files[0])
                    write_bytes(files[1], item.png)
                    journal.add(record.key, item.digest, files, content)
                index.write(json.dumps(content, ensure_ascii=False) + "\n")
                keys[record.key] = None
                images.add(record.image_file)
                pngs.add(record.png_file)
            _remove_others(self._image_folder, images)
            _remove_others(self._png_folder, pngs)
        Journal(self._filepath).keep(keys)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "image_folder": str(self._image_folder)}

    def preview(self) -> ImagePreview:
        """Show a grid of panoptic PNGs, a colour for each id."""
        return image_grid(sorted(self._png_folder.glob("*.png")), labels=True)


def finished_record(journal: Journal, key: str, digest: str) -> ConvertedRecord | None:
    """Give the record of an image that was converted from the same input before, else None."""
    found = journal.find(key, digest)
    return None if found is None else ConvertedRecord.from_dict(found)


class PredictionsDataset(LocalDataset):
    """Predictions as COCO panoptic results: ``predictions.json`` and a PNG an image, and ``boxes.jsonl``."""

    def load(self) -> Path:
        """Give the path of the folder."""
        return self._filepath

    def save(self, data: Iterable[ImagePrediction]) -> None:
        """Write each prediction as it comes, then ``predictions.json``."""
        (self._filepath / "predictions.json").unlink(missing_ok=True)
        write_predictions(data, self._filepath)

    def _exists(self) -> bool:
        return (self._filepath / "predictions.json").is_file()

    def preview(self) -> ImagePreview:
        """Show a grid of predicted panoptic PNGs, a colour for each id."""
        return image_grid(sorted(self._filepath.glob("*.png")), labels=True)


def _place(source: Path | bytes, target: Path) -> None:
    """Put an image at ``target``: bytes are written, a file is hard-linked, or copied where links cannot go."""
    if isinstance(source, bytes):
        write_bytes(target, source)
        return
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _remove_others(folder: Path, keep: set[str]) -> None:
    """Remove the files of an earlier conversion that this one has not."""
    for path in folder.glob("*"):
        if path.is_file() and path.name not in keep and not path.name.startswith("."):
            path.unlink()
