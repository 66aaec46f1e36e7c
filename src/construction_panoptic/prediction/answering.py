"""What a served model answers: images as they come over the wire in, segments as JSON out."""

import base64
import binascii
import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.images import MAX_FILE_BYTES, ImageError, read_rgb
from construction_panoptic.annotations.merging.segment_shapes import segment_rles
from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.evaluation.predictions import ImagePrediction
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.running import predict_pixels

_SHOWN = 60  # characters of a text that is no image


def answer(model: PanopticModel, images: Sequence[Any], threshold: float | None = None) -> list[dict[str, Any]]:
    """Predict images.

    Args:
        model: the model, on its device.
        images: each a path, the bytes of an image file, or these bytes as base64 (with or without
            ``data:image/…;base64,`` before it).
        threshold: least score of a segment, 0…1; by default the model's own.

    Returns:
        For each image ``width`` and ``height`` (pixels); ``segments``, each with ``id``, ``category_id``, ``class``,
        ``isthing``, ``score`` (0…1), ``area`` (pixels), ``bbox`` (x, y, width, height in pixels) and ``rle`` (COCO's
        compressed run-length code: ``size``, ``counts``); and ``png``, the COCO panoptic PNG as base64.

    Raises:
        InputDataError: an image cannot be read; the message says which one, and why.
        ParameterError: the threshold is not between 0 and 1.
    """
    if threshold is not None and not 0 <= threshold < 1:
        raise ParameterError(f"threshold is {threshold}; give a score from 0 to below 1.")
    # All are read first: a bad one costs no prediction.
    pixels = [_read(image, number) for number, image in enumerate(images, 1)]
    names = {category["id"]: category["name"] for category in model.spec.categories}
    return [_as_json(prediction, names) for prediction in predict_pixels(model, pixels, threshold)]


def _read(image: Any, number: int) -> NDArray[np.uint8]:
    try:
        if isinstance(image, str) and os.path.isfile(image):  # noqa: PTH113 - false for what cannot be a path
            return read_rgb(image)
        content = image if isinstance(image, bytes) else _decode(image)
        if len(content) > MAX_FILE_BYTES:
            raise ImageError("too_large", f"it is larger than {MAX_FILE_BYTES} bytes.")
        return read_rgb("the content", BytesIO(content))
    except ImageError as error:
        raise InputDataError(f"Image {number}: {error}") from error


def _decode(image: Any) -> bytes:
    if not isinstance(image, str):
        raise ImageError("unreadable_image", f"a path, bytes or base64 is needed, not {type(image).__name__}.")
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        shown = image if len(image) <= _SHOWN else f"{image[:_SHOWN]}…"
        raise ImageError("missing_file", f"{shown!r} is neither a file on this machine nor base64.") from None


def _as_json(prediction: ImagePrediction, names: dict[int, str]) -> dict[str, Any]:
    rles = segment_rles(prediction.id_map)
    segments = [
        {
            "id": segment["id"],
            "category_id": segment["category_id"],
            "class": names[segment["category_id"]],
            "isthing": bool(segment["isthing"]),
            "score": segment["score"],
            "area": segment["area"],
            "bbox": segment["bbox"],
            "rle": rles[segment["id"]],
        }
        for segment in prediction.segments_info
    ]
    png = base64.b64encode(prediction.png).decode()
    return {"width": prediction.width, "height": prediction.height, "segments": segments, "png": png}
