"""Predicting image files in as many processes as it is worth."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.evaluation.predictions import ImagePrediction, predict_images
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.parallel.device import resolve_device
from construction_panoptic.parallel.model_pool import batches_in_block, in_this_process, map_on_devices
from construction_panoptic.parallel.workers import blocks_of
from construction_panoptic.training.loading import build_loader, collate
from construction_panoptic.training.samples import SampleKey, Target, check_size

Prepare = Callable[[Tensor], Tensor]


class ImageFiles(Dataset[tuple[Tensor, Target]]):
    """The images of a COCO file, by their ids, as samples for `build_loader`; a sample is what `image_sample` gives.

    Of an image ``id`` and ``file_name`` are read, and ``width`` and ``height`` where its size is to be checked.
    ``prepare`` is the model's.
    """

    def __init__(self, data: Mapping[str, Any], folder: Path, prepare: Prepare) -> None:
        self.images = sorted(data["images"], key=lambda image: image["id"])
        self.folder = folder
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Target]:
        """Read an image; `InputDataError`: it is missing, no image, or not of the size that it should have."""
        image = self.images[key[1] if isinstance(key, tuple) else key]
        path = self.folder / image["file_name"]
        pixels = read_rgb(path)
        height, width, _ = pixels.shape
        check_size(path, pixels.shape, (image.get("height", height), image.get("width", width)))
        return image_sample(pixels, image["file_name"], image["id"], self.prepare)


def image_sample(pixels: NDArray[np.uint8], name: str, image_id: int, prepare: Prepare) -> tuple[Tensor, Target]:
    """Prepare an image, uint8 [H, W, 3], RGB, upright, for `collate`.

    Gives the input, float32 [3, h, w], and ``image_id``, ``file_name``, ``orig_size`` and ``size`` (int64 [2], height
    and width in pixels before and after).
    """
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    prepared = prepare(image)
    return prepared, {
        "image_id": torch.tensor(image_id),
        "file_name": name,
        "orig_size": torch.tensor(image.shape[-2:]),
        "size": torch.tensor(prepared.shape[-2:]),
    }


def predict_files(model: PanopticModel, files: ImageFiles, settings: EvaluationSettings) -> Iterator[ImagePrediction]:
    """Predict images, in order, as they are asked for; copies of the model, on the CPU, go to the processes."""
    predict = partial(predict_images, overrides=settings.overrides, precision=settings.precision)
    if in_this_process(settings.execution, settings.device):
        loader = build_loader(files, batch_size=settings.batch_size, shuffle=False, workers=settings.workers)
        return predict(on_device(model, settings.device), loader)
    batches = blocks_of(range(len(files)), settings.batch_size)
    blocks = map_on_devices(
        partial(_predict_block, model, settings.device, files, predict),
        blocks_of(batches, batches_in_block(settings.batch_size)),
        execution=settings.execution,
        device=settings.device,
    )
    return chain.from_iterable(blocks)


def on_device(model: PanopticModel, device: str) -> PanopticModel:
    """Put a model's network on the device of a name, see `resolve_device`."""
    model.network.to(resolve_device(device))
    return model


def _predict_block(
    model: PanopticModel,
    device: str,
    files: ImageFiles,
    predict: Callable[..., Iterator[ImagePrediction]],
    batches: list[list[int]],
) -> list[ImagePrediction]:
    with ThreadPoolExecutor(1) as reader:
        read = reader.map(lambda batch: collate([files[index] for index in batch]), batches)
        return [prediction.packed() for prediction in predict(on_device(model, device), read)]
