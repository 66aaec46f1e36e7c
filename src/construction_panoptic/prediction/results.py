"""The folder of results: COCO panoptic files, both views of each image, and videos with them."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import count
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any
from zipfile import ZipFile

from PIL import Image

from construction_panoptic.annotations.formats.cvat_export import ANNOTATIONS_FILE, cvat_annotations, cvat_document
from construction_panoptic.evaluation.predictions import ImagePrediction, png_name, read_predictions, write_predictions
from construction_panoptic.files import atomic_path, write_bytes, write_json
from construction_panoptic.prediction.running import PredictedPicture, RejectedFile
from construction_panoptic.prediction.videos import VideoWriter
from construction_panoptic.visualisation.overlays import ClassTable, boxes_overlay, panoptic_overlay
from construction_panoptic.visualisation.overlays import Picture as Pixels

INDEX = "index.json"
PANOPTIC = "panoptic"
CVAT = "cvat.zip"
VIEWS = ("masks", "boxes")
JPEG_QUALITY = 92


def write_results(items: Iterable[PredictedPicture | RejectedFile], folder: Path | str) -> None:
    """Write what `predict_source` yields as it comes.

    The folder gets ``panoptic/`` (`write_predictions`); in ``masks/`` and ``boxes/`` the views, a JPEG of each image
    and an MP4 of each video; and ``cvat.zip`` where the predictions ask for it. ``index.json`` is written last; it
    lists what this call wrote and the files that could not be read. What an earlier call alone wrote is removed.
    """
    folder = Path(folder)
    index = folder / INDEX
    earlier = set(json.loads(index.read_text())["files"]) if index.is_file() else set()
    write_json(index, {"complete": False, "files": sorted(earlier), "rejected": []})
    rejected: list[RejectedFile] = []
    with ExitStack() as stack:
        pictures = _Views(folder, stack.enter_context(ExitStack()))

        def predictions() -> Iterator[ImagePrediction]:
            add_to_cvat: Callable[[PredictedPicture], None] | None = None
            for item in items:
                if isinstance(item, RejectedFile):
                    rejected.append(item)
                    continue
                pictures.add(item)
                if item.cvat is not None:
                    add_to_cvat = add_to_cvat or stack.enter_context(_cvat_archive(pictures.place(CVAT)))
                    add_to_cvat(item)
                yield item.prediction

        write_predictions(predictions(), folder / PANOPTIC)
    for name in earlier - pictures.written:
        (folder / name).unlink(missing_ok=True)
    content = {"complete": True, "files": sorted(pictures.written), "rejected": list(map(vars, rejected))}
    write_json(index, content, indent=2)


def merge_panoptic(folders: Iterable[Path | str], folder: Path | str) -> None:
    """Merge the ``panoptic/`` of a source's parts, in order, into what the whole gives, byte for byte.

    Raises an `InputDataError` if a part lacks a file, or is damaged.
    """
    predictions = (prediction for part in folders for prediction in read_predictions(Path(part) / PANOPTIC))
    numbered = (
        replace(prediction, image_id=k, boxes=[{**box, "image_id": k} for box in prediction.boxes])
        for k, prediction in enumerate(predictions, 1)
    )
    write_predictions(numbered, folder)


def is_result_in(folder: Path, file: Path) -> bool:
    """Whether a file is a picture that an earlier prediction wrote into a folder, perhaps among the photographs."""
    places = [(folder / name).resolve() for name in (PANOPTIC, *VIEWS)]
    return (folder / INDEX).is_file() and any(file.resolve().is_relative_to(place) for place in places)


def is_complete(folder: Path) -> bool:
    """Whether a folder has results that were written to their end."""
    index = folder / INDEX
    return index.is_file() and bool(json.loads(index.read_text())["complete"])


def views(picture: PredictedPicture, *, max_side: int = 1600) -> dict[str, Pixels]:
    """Draw the masks, and the boxes of things that score above the threshold, uint8 [h, w, 3] each."""
    prediction, pixels = picture.prediction, picture.picture.pixels
    classes = ClassTable.from_categories(prediction.categories)
    shown = (box for box in prediction.boxes if box["score"] > picture.threshold)
    boxes = [box for box in shown if classes.is_thing[box["category_id"]]]
    return {
        "masks": panoptic_overlay(pixels, prediction.id_map, prediction.segments_info, classes, max_side=max_side),
        "boxes": boxes_overlay(pixels, boxes, classes, max_side=max_side),
    }


@contextmanager
def _cvat_archive(path: Path) -> Iterator[Callable[[PredictedPicture], None]]:
    """Write an export in CVAT's format COCO 1.0, things and stuff, picture by picture."""
    images: list[dict[str, Any]] = []
    names: dict[int, str] = {}
    numbers = count(1)
    # An archive takes one member at a time: the annotations wait in a file until all images are in.
    with atomic_path(path) as temporary, ZipFile(temporary, "w") as archive, TemporaryFile("w+b") as lines:

        def add(item: PredictedPicture) -> None:
            picture, found = item.picture, item.prediction
            is_frame = picture.frame is not None
            name = f"{picture.name}.jpg" if is_frame else picture.name
            archive.writestr(f"images/{name}", _jpeg(picture.pixels) if is_frame else picture.file.path.read_bytes())
            images.append({"id": found.image_id, "file_name": name, "width": found.width, "height": found.height})
            names.update((category["id"], category["name"]) for category in found.categories)
            assert item.cvat is not None
            for entry in cvat_annotations(found.segments_info, found.id_map, found.image_id, item.cvat):
                number = next(numbers)
                lines.write(b"," * (number > 1) + json.dumps({"id": number, **entry}).encode())

        yield add
        lines.seek(0)
        with archive.open(ANNOTATIONS_FILE, "w", force_zip64=True) as member:
            member.write(json.dumps(cvat_document(names, images)).removesuffix("]}").encode())
            shutil.copyfileobj(lines, member)
            member.write(b"]}")


def _jpeg(pixels: Pixels) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


class _Views:
    """Writes the views; the video that is being written is renamed to its name when the next file begins."""

    def __init__(self, folder: Path, open_files: ExitStack) -> None:
        self._folder = folder
        self._open = open_files
        self._names: set[str] = set()
        self._video: str | None = None
        self._writers: dict[str, VideoWriter] = {}
        self.written: set[str] = set()

    def add(self, item: PredictedPicture) -> None:
        """Write the views of a picture: an image's as files, a frame's into the videos."""
        # The names of the panoptic PNGs, so that they and the views can be matched.
        name = png_name(item.prediction, self._names)
        self._names.add(name)
        picture = item.picture
        file = picture.file.name if picture.frame is not None else None
        if file != self._video:
            self._open.close()
            self._video = file
            if file is not None:
                self._start_video(item, file)
        for view, pixels in views(item).items():
            if file is not None:
                self._writers[view].write(pixels, picture.time)
            else:
                write_bytes(self.place(f"{view}/{Path(name).stem}.jpg"), _jpeg(pixels))

    def _start_video(self, item: PredictedPicture, file: str) -> None:
        joined = "__".join(part for part in PurePosixPath(file).parts if part not in ("/", ".."))
        name = f"{PurePosixPath(joined).stem}.mp4"
        if f"{VIEWS[0]}/{name}" in self.written:  # clip.avi beside clip.mp4
            name = f"{joined}.mp4"
        for view in VIEWS:
            path = self._open.enter_context(atomic_path(self.place(f"{view}/{name}")))
            self._writers[view] = self._open.enter_context(VideoWriter(path, item.picture.rate))

    def place(self, name: str) -> Path:
        """Give the path of a file that is about to be written."""
        self.written.add(name)
        return self._folder / name
