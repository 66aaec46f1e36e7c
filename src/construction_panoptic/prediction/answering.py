"""What a served model answers: images as they come over the wire in, segments as JSON out."""

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from construction_panoptic.annotations.images import ImageError, read_rgb, stated_size
from construction_panoptic.annotations.merging.segment_shapes import segment_rles
from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.evaluation.predictions import ImagePrediction
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.running import predict_pixels

IMAGE_FOLDER = "CONSTRUCTION_PANOPTIC_IMAGE_FOLDER"
"""Environment variable of a server: the folder below which clients may name images by path; unset: there is none."""

# Of one request; its images are decoded one at a time.
MAX_IMAGES = 64
MAX_BYTES = 64 << 20
MAX_PIXELS = 100_000_000

_LONGEST_PATH = 4096
_REFUSED = (
    "not a readable image: it is neither base64 of an image file (JPEG, PNG, WebP, BMP, TIFF, GIF, JPEG 2000, PPM) nor "
    "the path of one below the folder that the server takes images from."
)


@dataclass(frozen=True)
class ModelToServe:
    """A model to be served by MLflow, and its name in the model registry (None: it is not registered)."""

    model: PanopticModel
    name: str | None


def answer(
    model: PanopticModel, images: Sequence[Any], threshold: float | None = None, folder: Path | None = None
) -> list[dict[str, Any]]:
    """Predict images with a model that is on its device.

    An image is given as the bytes of its file, or these as base64 (with or without ``data:image/…;base64,`` before it),
    or a path below ``folder``, links resolved. ``threshold`` is the least score of a segment, by default the model's
    own.

    Gives for each image ``width`` and ``height`` (pixels); ``segments``, each with ``id``, ``category_id``, ``class``,
    ``isthing``, ``score`` (0…1), ``area`` (pixels), ``bbox`` (x, y, width, height in pixels) and ``rle`` (COCO's
    compressed run-length code: ``size``, ``counts``); and ``png``, the COCO panoptic PNG as base64.

    `InputDataError`: an image cannot be read, or the images are too many or too large; a text is refused in the same
    words, whether a file of that name exists or not. `ParameterError`: the threshold is not between 0 and 1.
    """
    if threshold is not None and not 0 <= threshold < 1:
        raise ParameterError(f"threshold is {threshold}; give a score from 0 to below 1.")
    if len(images) > MAX_IMAGES:
        raise InputDataError(f"The request has {len(images)} images; send at most {MAX_IMAGES} at a time.")
    contents = _contents(images, folder)
    return [_as_json(prediction) for prediction in predict_pixels(model, _decoded(contents), threshold)]


def _contents(images: Sequence[Any], folder: Path | None) -> list[bytes]:
    """Read the files of all images and check what their headers say, before a pixel is decoded."""
    contents: list[bytes] = []
    room, pixels = MAX_BYTES, MAX_PIXELS
    for number, image in enumerate(images, 1):
        try:
            content = _content(image, folder, room)
            width, height = stated_size("the content", content)
        except ImageError as error:
            words = _REFUSED if isinstance(image, str) and error.reason != "too_large" else error
            raise InputDataError(f"Image {number}: {words}") from error
        room, pixels = room - len(content), pixels - width * height
        if pixels < 0:
            raise InputDataError(f"Image {number}: {width} x {height} pixels; a request may have {MAX_PIXELS} in all.")
        contents.append(content)
    return contents


def _content(image: Any, folder: Path | None, room: int) -> bytes:
    too_large = ImageError("too_large", f"the image files of a request may have {MAX_BYTES} bytes in all.")
    if isinstance(image, bytes):
        content = image
    elif not isinstance(image, str):
        raise ImageError("unreadable_image", f"a path, bytes or base64 is needed, not {type(image).__name__}.")
    elif folder and (found := _read_below(folder, image, room + 1)) is not None:
        content = found
    elif len(image) * 3 // 4 > room * 1.1:  # line breaks are 1/77 of base64
        raise too_large
    else:
        code = image.partition(",")[2] if image.startswith("data:") else image
        try:
            content = base64.b64decode("".join(code.split()), validate=True)
        except ValueError:
            raise ImageError("unreadable_image", "it is no base64.") from None
    if len(content) > room:
        raise too_large
    return content


def _read_below(folder: Path, text: str, limit: int) -> bytes | None:
    """Read the file that a text names, if it lies below the folder, links resolved; no other is even looked for."""
    if len(text) > _LONGEST_PATH:
        return None
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - as it is named; links are resolved below
    path = Path(os.path.normpath(root / text))
    try:
        if not path.is_relative_to(root) or not (real := path.resolve(strict=True)).is_relative_to(root.resolve()):
            return None
        if not real.is_file():  # a folder, pipe or device
            return None
        with real.open("rb") as stream:
            return stream.read(limit)
    except (OSError, ValueError, RuntimeError):  # no such file, no permission, no path, a circle of links
        return None


def _decoded(contents: Sequence[bytes]) -> Iterator[NDArray[np.uint8]]:
    for number, content in enumerate(contents, 1):
        try:
            yield read_rgb("the content", BytesIO(content))
        except ImageError as error:
            raise InputDataError(f"Image {number}: {error}") from error


def _as_json(prediction: ImagePrediction) -> dict[str, Any]:
    names = {category["id"]: category["name"] for category in prediction.categories}
    rles = segment_rles(prediction.id_map)
    segments = [
        {
            "id": segment["id"],
            "category_id": segment["category_id"],
            "class": names[segment["category_id"]],
            "isthing": bool(segment["isthing"]),
            **{key: segment[key] for key in ("score", "area", "bbox")},
            "rle": rles[segment["id"]],
        }
        for segment in prediction.segments_info
    ]
    png = base64.b64encode(prediction.png).decode()
    return {"width": prediction.width, "height": prediction.height, "segments": segments, "png": png}
