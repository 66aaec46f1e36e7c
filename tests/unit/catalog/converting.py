"""A conversion as the pipeline runs it, that can be killed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord
from construction_panoptic.annotations.stuff.label_maps import encode_labels
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.catalog.datasets import ConvertedImagesDataset, Finished

STUFF = encode_labels(np.repeat(np.array([[1], [2]], np.uint8), 15, axis=0).repeat(40, axis=1))


def convert(raw: Path, folder: Path, taxonomy: Path, kill_at: int | None = None, **options: Any) -> list[str]:
    """Convert exports into a folder; return the keys of the images that were made, not found finished.

    Args:
        raw: folder of exports with images of 40 x 30 pixels.
        folder: for the results.
        taxonomy: JSON file.
        kill_at: kill this process before it writes the image of this number.
        **options: of `merge_images`.
    """
    classes = Taxonomy.from_dict(json.loads(taxonomy.read_text()))
    exports = read_exports(raw, classes)
    dataset = ConvertedImagesDataset(
        filepath=str(folder / "converted.jsonl"), image_folder="images", png_folder="panoptic"
    )
    made = []

    def watched(finished: Finished) -> Iterator[ConvertedImage | ConvertedRecord]:
        items = merge_images(
            exports.images, exports.annotations, lambda _: STUFF, classes, finished=finished, **options
        )
        for number, item in enumerate(items):
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if isinstance(item, ConvertedImage):
                made.append(item.record.key)
            yield item

    dataset.save(watched)
    return made
