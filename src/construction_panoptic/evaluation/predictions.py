"""Running a model over images, and its predictions as COCO files."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from scipy.ndimage import find_objects
from torch import Tensor, nn
from torch.utils.data import Dataset

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.quality import load_json
from construction_panoptic.files import atomic_path, write_bytes, write_json
from construction_panoptic.models.detr.model import Detr, DetrPanoptic
from construction_panoptic.models.detr.postprocess import PanopticResult, box_results
from construction_panoptic.models.detr.segmenting import segment_images
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.augmentations import evaluation_resize, normalise
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.samples import SampleKey, Target

PREDICTIONS_FILE = "predictions.json"
BOXES_FILE = "boxes.jsonl"
THRESHOLD = 0.85  # DETR, section 4.4


@dataclass(frozen=True)
class ImagePrediction:
    """What the model sees in one image.

    Attributes:
        image_id: id of the image.
        file_name: its file name.
        width: in pixels, of the image file.
        height: in pixels, of the image file.
        png: the segment ids as a COCO panoptic PNG, [height, width], 0 = void.
        segments_info: a dict for each id in the PNG: ``id``, ``category_id``, ``isthing``, ``area`` (pixels),
            ``bbox`` (x, y, width, height in pixels, of the segment's pixels), ``score`` (0…1).
        boxes: COCO box results, a dict for each query: ``image_id``, ``category_id``, ``bbox`` (x, y, width,
            height in pixels, fractional, may reach beyond the image), ``score`` (0…1).
        categories: the COCO categories that the model predicts, the same object for all images.
    """

    image_id: int
    file_name: str
    width: int
    height: int
    png: bytes = field(repr=False)
    segments_info: list[dict[str, Any]]
    boxes: list[dict[str, Any]] = field(repr=False)
    categories: Sequence[Mapping[str, Any]] = field(repr=False)


class ImageFiles(Dataset[tuple[Tensor, Target]]):
    """Image files without annotations, as samples for `build_loader`.

    A sample is ``(image, target)``: image float32 [3, H, W], upright, resized as in evaluation and
    normalised; target with ``image_id`` (1, 2, … in the order given), ``file_name``, ``orig_size`` and
    ``size`` (int64 [2], height and width in pixels).

    Args:
        paths: the files; in any format that the conversion reads.
        settings: sizes and normalisation; the recipe's by default.
        names: ``file_name`` of each image; its path's last part by default.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        settings: AugmentationSettings | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.settings = settings or AugmentationSettings()
        self.names = list(names) if names is not None else [path.name for path in self.paths]
        if len(self.names) != len(self.paths):
            raise ValueError(f"{len(self.names)} names for {len(self.paths)} paths")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        """Read the image of an index, or of an (epoch, index).

        Raises:
            InputDataError: the file is missing or is not an image.
        """
        index = key[1] if isinstance(key, tuple) else key
        pixels = torch.from_numpy(read_rgb(self.paths[index]).copy()).permute(2, 0, 1)
        image = evaluation_resize(pixels, self.settings)
        target: Target = {
            "image_id": torch.tensor(index + 1),
            "file_name": self.names[index],
            "orig_size": torch.tensor(pixels.shape[-2:]),
            "size": torch.tensor(image.shape[-2:]),
        }
        return normalise(image, self.settings), target


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in eval mode, in which nothing is drawn at random, then give each part its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def predict_images(
    model: DetrPanoptic,
    batches: Iterable[Batch],
    *,
    categories: Sequence[Mapping[str, Any]],
    is_thing: Mapping[int, bool] | None = None,
    threshold: float = THRESHOLD,
    device: torch.device | None = None,
    precision: str = "auto",
) -> Iterator[ImagePrediction]:
    """Predict boxes and the panoptic segmentation of images, batch by batch.

    Masks are computed only for the queries that are kept, which gives the same segmentation. A model can have
    more outputs than there are categories (ids need not be without gaps, and an id 0 is never used): a query
    whose best class is not among the categories is treated as no-object, here and in the boxes.

    Args:
        model: the model; in eval mode while this runs, and with its modes as they were afterwards.
        batches: what a loader of `PanopticSamples` (not in training), `DetectionSamples` or `ImageFiles`
            gives.
        categories: COCO categories; the ids that a prediction may have.
        is_thing: category id → is a thing; from the categories' ``isthing`` by default.
        threshold: smallest class probability of a query that is kept, exclusive.
        device: where to run; by default where the model is. The model is not moved.
        precision: ``auto``, ``float32`` or ``bfloat16``; see `autocast`.

    Yields:
        A prediction for each image, in order, at the size of its file.
    """
    things = {
        int(category["id"]): bool(category["isthing"] if is_thing is None else is_thing[category["id"]])
        for category in categories
    }
    device = device or next(model.parameters()).device
    shared = tuple(categories)
    with evaluating(model):
        for batch in batches:
            results, boxes = _predict_batch(
                model, batch, things, threshold=threshold, device=device, precision=precision
            )
            for number, (target, name) in enumerate(zip(batch.targets, batch.file_names, strict=True)):
                height, width = target["orig_size"].tolist()
                id_map = results[number].id_map.numpy()
                yield ImagePrediction(
                    image_id=int(target["image_id"]),
                    file_name=name,
                    width=width,
                    height=height,
                    png=encode_id_map(id_map),
                    segments_info=_segments_info(results[number], id_map),
                    boxes=boxes[number],
                    categories=shared,
                )


def predict_boxes(
    model: Detr | DetrPanoptic,
    batches: Iterable[Batch],
    *,
    category_ids: Collection[int],
    device: torch.device | None = None,
    precision: str = "auto",
) -> list[dict[str, Any]]:
    """Predict the boxes of images; no mask is computed.

    Args:
        model: the detector, or a panoptic model, whose detector is used.
        batches: see `predict_images`.
        category_ids: the ids that a box may have; a query whose best class is another one gives no box.
        device: where to run; by default where the model is.
        precision: ``auto``, ``float32`` or ``bfloat16``.

    Returns:
        COCO box results of all queries of all images: ``{image_id, category_id, bbox, score}``.
    """
    detector = model.detr if isinstance(model, DetrPanoptic) else model
    device = device or next(detector.parameters()).device
    known = set(category_ids)
    boxes: list[dict[str, Any]] = []
    with evaluating(detector):
        for batch in batches:
            for found in _detect_batch(detector, batch, known, device, precision):
                boxes += found
    return boxes


@torch.no_grad()
def _detect_batch(
    detector: Detr, batch: Batch, known: Collection[int], device: torch.device, precision: str
) -> list[list[dict[str, Any]]]:
    with autocast(device, precision):
        outputs = detector(*_inputs(batch, device))
    return _boxes(outputs["pred_logits"], outputs["pred_boxes"], batch, known)


@torch.no_grad()
def _predict_batch(
    model: DetrPanoptic,
    batch: Batch,
    is_thing: Mapping[int, bool],
    *,
    threshold: float,
    device: torch.device,
    precision: str,
) -> tuple[list[PanopticResult], list[list[dict[str, Any]]]]:
    images, padding_mask = _inputs(batch, device)
    with autocast(device, precision):
        results, features = segment_images(
            model,
            images,
            padding_mask,
            processed_sizes=[tuple(target["size"].tolist()) for target in batch.targets],
            target_sizes=[tuple(target["orig_size"].tolist()) for target in batch.targets],
            is_thing=is_thing,
            threshold=threshold,
        )
    return results, _boxes(features.pred_logits, features.pred_boxes, batch, is_thing)


def _inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
    mask = batch.padding_mask
    images = batch.images.to(device, non_blocking=True)
    return images, None if mask is None else mask.to(device, non_blocking=True)


def _boxes(logits: Tensor, boxes: Tensor, batch: Batch, known: Collection[int]) -> list[list[dict[str, Any]]]:
    """COCO box results of each image of a batch."""
    sizes = torch.stack([target["orig_size"] for target in batch.targets]).cpu()
    outputs = {"pred_logits": logits.cpu(), "pred_boxes": boxes.cpu()}
    return [
        [
            {"image_id": int(target["image_id"]), "category_id": label, "bbox": box, "score": score}
            for score, label, box in zip(
                result["scores"].tolist(),
                result["labels"].tolist(),
                _corners_to_coco(result["boxes"]).tolist(),
                strict=True,
            )
            if label in known
        ]
        for target, result in zip(batch.targets, box_results(outputs, sizes), strict=True)
    ]


def _corners_to_coco(boxes: Tensor) -> Tensor:
    """[N, 4] from x0, y0, x1, y1 to x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def _segments_info(result: PanopticResult, id_map: np.ndarray) -> list[dict[str, Any]]:
    regions = find_objects(id_map)
    segments = []
    for segment in result.segments:
        rows, columns = regions[segment["id"] - 1]
        bbox = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        segments.append({**segment, "bbox": bbox})
    return segments


def write_predictions(predictions: Iterable[ImagePrediction], folder: Path | str) -> None:
    """Write predictions as COCO panoptic results, one image at a time.

    The folder gets a PNG an image, ``boxes.jsonl`` (a line an image: ``image_id``, ``file_name`` of the PNG,
    ``boxes``) and, last, ``predictions.json`` with ``images``, ``categories`` and ``annotations``
    (``image_id``, ``file_name`` of the PNG, ``segments_info``). PNGs that an earlier call wrote there and
    this one did not are removed.

    Args:
        predictions: the predictions.
        folder: made if it is missing.
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
            images.append(
                {
                    "id": prediction.image_id,
                    "file_name": prediction.file_name,
                    "width": prediction.width,
                    "height": prediction.height,
                }
            )
            categories = prediction.categories
    write_json(target, {"images": images, "categories": list(categories), "annotations": annotations})
    for name in stale - written:
        (folder / name).unlink(missing_ok=True)


def png_name(prediction: ImagePrediction, taken: Collection[str]) -> str:
    """A file name without folders, made from the image's; the id is added where two would be the same."""
    path = PurePosixPath(prediction.file_name)
    stem = "__".join(part for part in path.with_suffix("").parts if part not in ("/", ".."))
    name = f"{stem}.png"
    return name if name not in taken else f"{stem}__{prediction.image_id}.png"


def read_predictions(folder: Path | str) -> Iterator[ImagePrediction]:
    """Read what `write_predictions` wrote, one image at a time.

    Raises:
        InputDataError: a file is missing or malformed.
    """
    folder = Path(folder)
    data = load_json(folder / PREDICTIONS_FILE)
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
        yield ImagePrediction(
            image_id=image["id"],
            file_name=image["file_name"],
            width=image["width"],
            height=image["height"],
            png=path.read_bytes(),
            segments_info=annotation["segments_info"],
            boxes=line["boxes"],
            categories=categories,
        )


def read_boxes(folder: Path | str) -> list[dict[str, Any]]:
    """Read the COCO box results of all images from what `write_predictions` wrote.

    Raises:
        InputDataError: ``boxes.jsonl`` is missing or malformed.
    """
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
