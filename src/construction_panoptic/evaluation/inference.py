"""Predicting a data set in as many processes as it is worth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.evaluation.predictions import ImagePrediction, predict_images
from construction_panoptic.models.detr.model import DetrPanoptic
from construction_panoptic.parallel.device import resolve_device
from construction_panoptic.parallel.model_pool import batches_in_block, in_this_process, map_with_model
from construction_panoptic.parallel.workers import blocks_of
from construction_panoptic.training.loading import Batch, build_loader, collate
from construction_panoptic.training.samples import PanopticSamples


def predict_samples(
    model: DetrPanoptic,
    samples: PanopticSamples,
    settings: EvaluationSettings,
    categories: Sequence[Mapping[str, Any]],
) -> Iterator[ImagePrediction]:
    """Predict the images of a data set.

    Args:
        model: on the CPU; copies of it go to the processes.
        samples: the data set, not in training.
        settings: batches, device, threshold, processes.
        categories: see `predict_images`.

    Returns:
        A prediction for each image, in order, computed as it is asked for: those of one process, which has the same
        batches.
    """
    predict = partial(
        predict_images, categories=list(categories), threshold=settings.threshold, precision=settings.precision
    )
    if in_this_process(settings.execution, settings.device):
        loader = build_loader(samples, batch_size=settings.batch_size, shuffle=False, workers=settings.workers)
        return predict(on_device(model, settings.device), loader)
    batches = blocks_of(range(len(samples)), settings.batch_size)
    blocks = map_with_model(
        partial(on_device, model, settings.device),
        partial(_predict_block, samples, predict),
        blocks_of(batches, batches_in_block(settings.batch_size)),
        execution=settings.execution,
        device=settings.device,
    )
    return chain.from_iterable(blocks)


def on_device(model: DetrPanoptic, device: str) -> DetrPanoptic:
    """Put a model on the device of a name, see `resolve_device`."""
    return model.to(resolve_device(device))


def _predict_block(
    samples: PanopticSamples,
    predict: Callable[..., Iterator[ImagePrediction]],
    model: DetrPanoptic,
    batches: list[list[int]],
) -> list[ImagePrediction]:
    with ThreadPoolExecutor(1) as reader:
        return list(predict(model, reader.map(partial(_read, samples), batches)))


def _read(samples: PanopticSamples, batch: list[int]) -> Batch:
    return collate([samples[index] for index in batch])
