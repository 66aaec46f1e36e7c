"""Labelling the stuff of all images, in the processes that the labeller can use; what is finished is not done again."""

import logging
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import pandas as pd

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.stuff.label_maps import FinishedLabels, StuffOfImage
from construction_panoptic.annotations.stuff.labeller import (
    Fringe,
    ImageToLabel,
    StuffLabeller,
    label_block,
    label_images,
)
from construction_panoptic.annotations.tables import RowsOfKeys, StoredTable
from construction_panoptic.config.base import ONE_PROCESS, Execution
from construction_panoptic.parallel.model_pool import batches_in_block, in_this_process, map_on_devices
from construction_panoptic.parallel.workers import Workers, blocks_of

logger = logging.getLogger(__name__)

_SHOWN = 5


def label_all(
    images: pd.DataFrame,
    annotations: StoredTable,
    labeller: StuffLabeller,
    fringe: Fringe,
    folder: Path,
    *,
    execution: Execution = ONE_PROCESS,
) -> Iterator[StuffOfImage]:
    """Label the images that are not labelled yet; give the stuff of each image in the order of the table.

    Takes the tables of `reading.Exports`; ``folder`` is where the labels go, and those of an earlier run are. Images of
    one batch are padded alike, which a network notices in the last bits. A batch is therefore labelled as a whole or
    not at all, and the outcome is that of a run without interruption, with any number of processes.
    """
    finished = FinishedLabels(folder)
    order: deque[StuffOfImage | None] = deque()  # None: the labeller gives it
    unknown: list[str] = []

    def unfinished() -> Iterator[ImageToLabel]:
        for batch in blocks_of(images_to_label(images, annotations, labeller, fringe), labeller.batch_size):
            found = [finished.find(image.key, image.digest) for image in batch]
            if None in found:
                order.extend([None] * len(batch))
                yield from batch
            else:
                order.extend(found)

    for stuff in _label(labeller, fringe, unfinished(), execution):
        while (done := order.popleft()) is not None:
            yield done
        yield stuff
        if stuff.labels is None:
            unknown.append(stuff.key)
    yield from cast("deque[StuffOfImage]", order)
    if unknown:
        shown = ", ".join(unknown[:_SHOWN]) + (", …" if len(unknown) > _SHOWN else "")
        text = "%d of %d images have no stuff prediction and stay void outside things: %s"
        logger.warning(text, len(unknown), len(images), shown)


def images_to_label(
    images: pd.DataFrame, annotations: StoredTable, labeller: StuffLabeller, fringe: Fringe
) -> Iterator[ImageToLabel]:
    """Give each image with its things and the digest of all that its labels depend on."""
    rows = RowsOfKeys(annotations, ["is_thing", "rle"])
    common = digest_of(labeller.identity, fringe.leftover, fringe.distance)
    columns = images[["key", "location", "sha256", "height", "width"]]
    for key, location, sha256, height, width in columns.itertuples(index=False, name=None):
        codes = tuple(row["rle"] for row in rows.of(key) if row["is_thing"])
        found = labeller.find(key)
        digest = digest_of(common, key, sha256, height, width, codes, found)[:32]
        yield ImageToLabel(key, location, (height, width), codes, found, digest)


def _label(
    labeller: StuffLabeller, fringe: Fringe, images: Iterator[ImageToLabel], execution: Execution
) -> Iterator[StuffOfImage]:
    label = partial(label_block, labeller, fringe)
    if labeller.device is None:
        with Workers(**execution.model_dump()) as workers:
            yield from chain.from_iterable(workers.map(label, blocks_of(images, 1)))
    elif in_this_process(execution, labeller.device):
        yield from label_images(labeller, fringe, images)
    else:
        # Whole batches, so that images are padded as in one process.
        blocks = blocks_of(images, batches_in_block(labeller.batch_size) * labeller.batch_size)
        labelled = map_on_devices(label, blocks, execution=execution, device=labeller.device)
        yield from chain.from_iterable(labelled)
