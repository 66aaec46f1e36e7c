"""Running a model over images, and its predictions as COCO files."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from construction_panoptic.annotations.panoptic_png import decode_id_map, encode_id_map
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.quality import load_json
from construction_panoptic.files import atomic_path, write_bytes, write_json
from construction_panoptic.models.protocol import PanopticModel, device_of
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.loading import Batch

PREDICTIONS_FILE = "predictions.json"
BOXES_FILE = "boxes.jsonl"


@dataclass(frozen=True)
class ImagePrediction:
    """What the model sees in one image; sizes and places are in pixels of the image file, scores in 0…1.

    Attributes:
        segments_info: of each segment ``id``, ``category_id``, ``isthing``, ``area``, ``score``, ``bbox`` (x, y, width,
            height of its pixels).
        boxes: COCO box results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height; may reach beyond the
            image), ``score``.
        categories: the COCO categories that the model predicts, the same object for all images.
        segmentation: the segment ids, 0 = void, as int32 [height, width] or as a COCO panoptic PNG.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    segments_info: list[dict[str, Any]]
    boxes: list[dict[str, Any]] = field(repr=False)
    categories: Sequence[Mapping[str, Any]] = field(repr=False)
    segmentation: NDArray[np.int32] | bytes = field(repr=False)

    @property
    def id_map(self) -> NDArray[Any]:
        """The segment ids, [height, width]."""
        return decode_id_map(self.segmentation) if isinstance(self.segmentation, bytes) else self.segmentation

    @property
    def png(self) -> bytes:
        """The segment ids as a COCO panoptic PNG."""
        return self.segmentation if isinstance(self.segmentation, bytes) else encode_id_map(self.segmentation)

    def packed(self) -> "ImagePrediction":
        """The same with the ids as a PNG, which is small enough to be sent to another process."""
        return replace(self, segmentation=self.png)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Keep a network in eval mode, in which nothing is drawn at random, then give each part its mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict_images(
    model: PanopticModel,
    batches: Iterable[Batch],
    *,
    overrides: Mapping[str, Any] | None = None,
    precision: str = "auto",
) -> Iterator[ImagePrediction]:
    """Predict boxes and the panoptic segmentation of images, batch by batch, where the network is.

    See `ModelSpec.overridden` for ``overrides`` and `autocast` for ``precision``. Yields a prediction for each image,
    in order, at the size of its file. The network is in eval mode while this runs.
    """
    device = device_of(model.network)
    with evaluating(model.network):
        for batch in batches:
            with autocast(device, precision):
                found = model.segment(batch.to(device).inputs(), overrides)
            for target, name, each in zip(batch.targets, batch.file_names, found, strict=True):
                image_id, (height, width) = int(target["image_id"]), each.id_map.shape
                extents = zip(each.segments, each.extents(), strict=True)
                segments = [{**segment, "bbox": extent} for segment, extent in extents]
                boxes = [{"image_id": image_id, **box} for box in each.boxes]
                categories = model.spec.categories
                yield ImagePrediction(image_id, name, width, height, segments, boxes, categories, each.id_map)


def write_predictions(predictions: Iterable[ImagePrediction], folder: Path | str) -> None:
    """Write predictions as COCO panoptic results, one image at a time.

    The folder gets a PNG an image, ``boxes.jsonl`` (a line an image: ``image_id``, ``file_name`` of the PNG,
    ``boxes``) and, last, ``predictions.json`` with ``images``, ``categories`` and ``annotations``
    (``image_id``, ``file_name`` of the PNG, ``segments_info``). PNGs that an earlier call alone wrote are removed.
    """
    folder = Path(folder)
    target = folder / PREDICTIONS_FILE
    stale = {line["file_name"] for line in _box_lines(folder)} if (folder / BOXES_FILE).is_file() else set()
    target.unlink(missing_ok=True)
    written: set[str] = set()
    images, annotations = [], []
    categories: Sequence[Mapping[str, Any]] = ()
    with atomic_path(folder / BOXES_FILE) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for prediction in predictions:
            name = png_name(prediction, written)
            written.add(name)
            write_bytes(folder / name, prediction.png)
            entry = {"image_id": prediction.image_id, "file_name": name}
            lines.write(json.dumps({**entry, "boxes": prediction.boxes}, allow_nan=False) + "\n")
            annotations.append({**entry, "segments_info": prediction.segments_info})
            size = {"width": prediction.width, "height": prediction.height}
            images.append({"id": prediction.image_id, "file_name": prediction.file_name, **size})
            categories = prediction.categories
    write_json(target, {"images": images, "categories": list(categories), "annotations": annotations})
    for name in stale - written:
        (folder / name).unlink(missing_ok=True)


def png_name(prediction: ImagePrediction, taken: Collection[str]) -> str:
    """A file name without folders, made from the image's; the id is added until no two are the same."""
    path = PurePosixPath(prediction.file_name)
    stem = "__".join(part for part in path.with_suffix("").parts if part not in ("/", ".."))
    while f"{stem}.png" in taken:
        stem += f"__{prediction.image_id}"
    return f"{stem}.png"


def read_results(folder: Path | str) -> dict[str, Any]:
    """Read the COCO panoptic results of a folder of predictions; `InputDataError`: they are missing or malformed."""
    return load_json(Path(folder) / PREDICTIONS_FILE)


def read_predictions(folder: Path | str) -> Iterator[ImagePrediction]:
    """Read what `write_predictions` wrote, one image at a time; `InputDataError`: a file is missing or malformed."""
    folder = Path(folder)
    data = read_results(folder)
    images = {image["id"]: image for image in data["images"]}
    categories = tuple(data["categories"])
    lines = _box_lines(folder)
    for annotation in data["annotations"]:
        image = images[annotation["image_id"]]
        path = folder / annotation["file_name"]
        line = next(lines, None)
        if line is None or line["image_id"] != image["id"]:
            raise InputDataError(f"{folder / BOXES_FILE} and {PREDICTIONS_FILE} are not of one run; predict again.")
        if not path.is_file():
            raise InputDataError(f"{path} does not exist, but {PREDICTIONS_FILE} names it; predict again.")
        about = image["id"], image["file_name"], image["width"], image["height"]
        yield ImagePrediction(*about, annotation["segments_info"], line["boxes"], categories, path.read_bytes())


def read_boxes(folder: Path | str) -> list[dict[str, Any]]:
    """Read the COCO box results that `write_predictions` wrote; `InputDataError`: they are missing or malformed."""
    return [box for line in _box_lines(Path(folder)) for box in line["boxes"]]


def _box_lines(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / BOXES_FILE
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except FileNotFoundError as error:
        raise InputDataError(f"{path} does not exist; predict first.") from error
    except ValueError as error:
        raise InputDataError(f"{path} cannot be read as JSON lines ({error}); predict again.") from error
