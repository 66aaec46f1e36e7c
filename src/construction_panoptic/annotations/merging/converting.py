"""All images of the exports, each converted by `merging`, in processes where that is asked for."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.merging.merging import (
    METHOD,
    OVERLAPS,
    MergeTask,
    Overlap,
    merge_task,
    unique_stems,
)
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord
from construction_panoptic.annotations.tables import RowsOfKeys, Table
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import ParameterError
from construction_panoptic.parallel.workers import Engine, WorkerCount, Workers

StuffReader = Callable[[str], NDArray[np.uint8] | bytes | None]
"""Gives the stuff labels of an image key: uint8 [H, W] or the file that `stuff.encode_labels` made; None: no stuff."""

Finished = Callable[[str, str], ConvertedRecord | None]
"""Gives the record of an image that is converted already, by its key and digest; None: it is not."""

_ROWS_AT_ONCE = 64


def merge_images(
    images: pd.DataFrame,
    annotations: Table,
    stuff_reader: StuffReader,
    taxonomy: Taxonomy,
    overlap: Overlap = "last_on_top",
    *,
    workers: WorkerCount = 1,
    engine: Engine = "local",
) -> Iterator[ConvertedImage]:
    """Convert images one at a time, in the order of their keys; only one, or a few a worker, are in memory.

    Args:
        images: the table of accepted images, see `cvat.Exports`.
        annotations: the table of accepted annotations, see `cvat.Exports`.
        stuff_reader: gives the stuff labels of an image key, see `merge_image`; None where it has none.
        taxonomy: the project's classes.
        overlap: which thing is on top, see `merge_image`.
        workers: processes, or "auto" for one a CPU core; the result is the same with any number.
        engine: what runs them, see `parallel.Workers`.

    Raises:
        InputDataError: see `merge_image`.
        ParameterError: ``overlap`` has another value.
    """
    converted = merge_unfinished(
        images, annotations, stuff_reader, taxonomy, overlap, finished=_nothing, workers=workers, engine=engine
    )
    return cast("Iterator[ConvertedImage]", converted)


def _nothing(key: str, digest: str) -> None:  # noqa: ARG001
    return None


def merge_unfinished(
    images: pd.DataFrame,
    annotations: Table,
    stuff_reader: StuffReader,
    taxonomy: Taxonomy,
    overlap: Overlap = "last_on_top",
    *,
    finished: Finished,
    workers: WorkerCount = 1,
    engine: Engine = "local",
) -> Iterator[ConvertedImage | ConvertedRecord]:
    """Do what `merge_images` does, without doing again what is finished.

    Args:
        finished: gives what an earlier conversion made of the same input.

    Yields:
        A record in place of an image that is finished.
    """
    if overlap not in OVERLAPS:
        raise ParameterError(f"overlap must be one of {', '.join(OVERLAPS)}, not {overlap!r}.")
    stems = unique_stems(images["key"].tolist())
    common = digest_of(METHOD, taxonomy.model_dump(), overlap)

    def tasks() -> Iterator[MergeTask]:
        for image, rows in _rows_by_image(images, annotations):
            key = image["key"]
            stuff, stem = stuff_reader(key), stems[key]
            content = stuff.tobytes() if isinstance(stuff, np.ndarray) else stuff or b""
            digest = digest_of(common, image, rows, stem, content)
            yield MergeTask(image, rows, stuff, stem, digest, finished(key, digest))

    with Workers(workers, engine) as pool:
        yield from pool.map(partial(merge_task, taxonomy, overlap), tasks())


def _rows_by_image(images: pd.DataFrame, annotations: Table) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Give each image's row and those of its annotations, in the order of the keys."""
    rows = RowsOfKeys(annotations)
    order = images["key"].argsort().to_numpy()
    # Many rows at once: taking them one by one would cost more than drawing them.
    for start in range(0, len(order), _ROWS_AT_ONCE):
        chosen = cast("list[dict[str, Any]]", images.iloc[order[start : start + _ROWS_AT_ONCE]].to_dict("records"))
        for image in chosen:
            yield image, rows.of(image["key"])
