"""Label maps, uint8 [H, W] of the project's stuff ids (0 = none), and the 8-bit PNG files that hold them."""

from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from construction_panoptic.annotations.panoptic_png import encode_png
from construction_panoptic.errors import InputDataError

LabelMap = NDArray[np.uint8]


class StuffOfImage(NamedTuple):
    """The stuff of one image, and how much of a leftover class lies around its things."""

    key: str
    labels: bytes | Path | None  # what `encode_labels` gave, or the file that it is in; None: nothing is known
    fringe_before: int = 0  # pixels of a leftover class close to a thing, had all segments been used
    fringe_after: int = 0  # the same in `labels`
    digest: str = ""  # of all that it was made from

    @property
    def file_name(self) -> str | None:
        """Name of the labels' file, with all that is known of them, so that a file that is there is finished."""
        return None if self.labels is None else f"{self.digest}-{self.fringe_before}-{self.fringe_after}.png"


class FinishedLabels:
    """The label maps that an earlier run, which may have been killed, has left in a folder."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name.partition("-")[0]: path for path in folder.glob("[!.]*-*-*.png")}

    def find(self, key: str, digest: str) -> StuffOfImage | None:
        """Return what was made from the same; None if there is nothing, or its file is damaged."""
        try:
            path = self._files[digest]
            with Image.open(path, formats=["PNG"]) as image:
                image.verify()
        except (KeyError, OSError, SyntaxError):
            return None
        _, before, after = path.stem.split("-")
        return StuffOfImage(key, path, int(before), int(after), digest)


def encode_labels(labels: LabelMap) -> bytes:
    """Encode a label map as an 8-bit greyscale PNG file; `ValueError`: it is not uint8 [H, W], or has no pixels."""
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise ValueError(f"a label map is uint8 [H, W] with pixels, not {labels.dtype} {labels.shape}")
    return encode_png([labels], 1)


def decode_labels(png: bytes) -> LabelMap:
    """Decode what `encode_labels` gave; `InputDataError` where it is not an 8-bit greyscale PNG."""
    try:
        with Image.open(BytesIO(png), formats=["PNG"]) as image:
            if image.mode != "L":
                raise InputDataError(f"stuff labels: expected an 8-bit greyscale PNG, not mode {image.mode}.")
            return np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise InputDataError(f"stuff labels: not a readable PNG ({error}); label the stuff again.") from None
