"""Running a model over the files of a source."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import count, tee
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from construction_panoptic.annotations.images import ImageError, read_rgb
from construction_panoptic.config.base import nearest
from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.evaluation.inference import image_sample, on_device
from construction_panoptic.evaluation.predictions import ImagePrediction, predict_images
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.parallel.model_pool import map_on_devices
from construction_panoptic.parallel.workers import blocks_of
from construction_panoptic.prediction.sources import SourceFile, frame_name, readable
from construction_panoptic.prediction.tracks import Tracker
from construction_panoptic.prediction.videos import VideoError, frame_count, read_frames
from construction_panoptic.training.loading import collate


@dataclass(frozen=True)
class Picture:
    """An image, or a frame of a video with its number, its time in seconds, and the video's frames a second.

    ``pixels`` are uint8 [H, W, 3], RGB, upright; a frame's ``name`` is ``<file>/frame_<number>``.
    """

    name: str
    file: SourceFile
    pixels: NDArray[np.uint8] = field(repr=False)
    frame: int | None = None
    time: Fraction = Fraction(0)
    rate: Fraction = Fraction(0)


@dataclass(frozen=True)
class PredictedPicture:
    """A picture, what the model sees in it, the score above which that is shown, and its shape in the CVAT import."""

    picture: Picture
    prediction: ImagePrediction
    threshold: float
    cvat: Literal["masks", "polygons"] | None = None


@dataclass(frozen=True)
class RejectedFile:
    """A file that could not be read, or not to its end."""

    file: str
    reason: str
    detail: str


def predict_source(
    model: PanopticModel, files: Sequence[SourceFile], settings: PredictionSettings
) -> Iterator[PredictedPicture | RejectedFile]:
    """Predict images and videos one after the other; memory does not grow with their number or length.

    Gives a prediction for each image and chosen frame, in order, and a record for each file that cannot be used,
    computed as they are asked for. The things of a video have a ``track_id``; see `Tracker`. The model is moved to the
    device of the settings, whose ``source`` is not read. `ParameterError`: a class of theirs is none of the model's.
    """
    return _predicted(model, files, settings, kept_classes(model.spec.categories, settings))


def kept_classes(categories: Iterable[Mapping[str, Any]], settings: PredictionSettings) -> frozenset[int] | None:
    """Give the ids of the classes that the settings keep; None: all.

    `ParameterError`: a class of the settings is none of the categories, or none would be left.
    """
    if settings.classes is None and not settings.things_only:
        return None
    known = {category["name"]: category for category in categories}
    for name in settings.classes or ():
        if name not in known:
            raise ParameterError(f"classes: the model has no class {name!r}; {nearest(name, known)}")
    named = [known[name] for name in settings.classes or known]
    chosen = frozenset(category["id"] for category in named if category["isthing"] or not settings.things_only)
    if not chosen:
        raise ParameterError(f"things_only: {', '.join(settings.classes or known)} are stuff; nothing would be left.")
    return chosen


def _predicted(
    model: PanopticModel, files: Sequence[SourceFile], settings: PredictionSettings, chosen: frozenset[int] | None
) -> Iterator[PredictedPicture | RejectedFile]:
    threshold = model.spec.overridden(settings.overrides).least_score
    every = settings.every_nth_frame
    groups, again = tee(blocks_of(_pictures(files, every), settings.batch_size))
    numbers = count(1)
    given = ([(item.pixels, item.name, next(numbers)) for item in each if isinstance(item, Picture)] for each in again)
    predict = partial(_predict_group, model, settings, chosen)
    found = map_on_devices(predict, given, execution=settings.execution, device=settings.device)
    video: SourceFile | None = None
    with tqdm(total=_count(files, every), desc="predicting", unit="image", disable=None) as bar:
        for group, predictions in zip(groups, map(iter, found), strict=True):
            for item in group:
                bar.update()
                if isinstance(item, RejectedFile):
                    yield item
                    continue
                prediction = next(predictions)
                if item.frame is not None:
                    if item.file is not video:
                        video, tracker = item.file, Tracker()
                    prediction = tracker.follow(prediction)
                yield PredictedPicture(item, prediction, threshold, settings.cvat)


def _predict_group(
    model: PanopticModel,
    settings: PredictionSettings,
    chosen: frozenset[int] | None,
    pictures: Sequence[tuple[NDArray[np.uint8], str, int]],
) -> list[ImagePrediction]:
    """Predict pictures, given by their pixels, names, and numbers from 1."""
    batches = [collate([image_sample(*picture, model.prepare) for picture in pictures])] if pictures else []
    there = on_device(model, settings.device)
    found = predict_images(there, batches, overrides=settings.overrides, precision=settings.precision)
    return [(prediction if chosen is None else with_classes(prediction, chosen)).packed() for prediction in found]


def with_classes(prediction: ImagePrediction, classes: frozenset[int]) -> ImagePrediction:
    """Give a prediction with the other classes left out; their pixels become void."""
    segments = [segment for segment in prediction.segments_info if segment["category_id"] in classes]
    boxes = [box for box in prediction.boxes if box["category_id"] in classes]
    id_map = prediction.id_map
    kept = np.where(np.isin(id_map, [segment["id"] for segment in segments]), id_map, 0)
    return replace(prediction, segments_info=segments, boxes=boxes, segmentation=kept)


def predict_pixels(
    model: PanopticModel, images: Iterable[NDArray[np.uint8]], threshold: float | None = None
) -> Iterator[ImagePrediction]:
    """Predict images, uint8 [H, W, 3] each, RGB, upright, one at a time, where the model is.

    ``threshold`` is the least score of a segment, 0…1, by default the model's own.
    """
    batches = (collate([image_sample(pixels, str(k), k, model.prepare)]) for k, pixels in enumerate(images, 1))
    yield from predict_images(model, batches, overrides={"threshold": threshold})


def _count(files: Iterable[SourceFile], every: int) -> int | None:
    """Pictures in all; None where a video does not say how many it has."""
    total = 0
    for file in files:
        frames = frame_count(file.path) if file.is_video else 1
        if frames is None:
            return None
        total += -(-frames // every) if file.is_video else 1
    return total


def _pictures(files: Iterable[SourceFile], every: int) -> Iterator[Picture | RejectedFile]:
    for file in files:
        try:
            if not file.is_video:
                yield Picture(file.name, file, read_rgb(file.path))
                continue
            for frame in read_frames(file.path, every):
                name = frame_name(file.name, frame.number)
                yield Picture(name, file, frame.pixels, frame.number, frame.time, frame.rate)
        except ImageError as error:
            yield RejectedFile(file.name, error.reason, readable(str(error)))
        except VideoError as error:
            yield RejectedFile(file.name, "unreadable_video", readable(str(error)))
