"""All images of the exports, each converted by `merging.merge_image`, in processes where that is asked for."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.merging.merging import METHOD, MergeTask, Overlap, merge_image, unique_stems
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord
from construction_panoptic.annotations.tables import RowsOfKeys, StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.parallel.workers import Engine, WorkerCount, Workers


def merge_images(
    images: pd.DataFrame,
    annotations: StoredTable,
    stuff_reader: Callable[[str], bytes | None],
    taxonomy: Taxonomy,
    overlap: Overlap = "last_on_top",
    overlap_stuff: Overlap = "smallest_on_top",
    finished: Callable[[str, str], ConvertedRecord | None] = lambda key, digest: None,  # noqa: ARG005
    *,
    workers: WorkerCount = 1,
    engine: Engine = "local",
) -> Iterator[ConvertedImage | ConvertedRecord]:
    """Convert images in the order of their table; only one, or a few a worker, are in memory.

    Takes the tables of `reading.Exports`. ``stuff_reader`` gives the labelled stuff of an image key as
    `label_maps.encode_labels` made it, or None; ``finished``, of a key and a digest, the record of an image that is
    converted already, or None. Of a finished image the record alone is given. Raises `InputDataError`, see
    `merge_image`.
    """
    stems = unique_stems(images["key"].tolist())
    common = digest_of(METHOD, taxonomy.model_dump(), overlap, overlap_stuff)

    def tasks() -> Iterator[MergeTask]:
        rows_of = RowsOfKeys(annotations)
        for values in images.itertuples(index=False, name=None):
            image: dict[str, Any] = dict(zip(images.columns, values, strict=True))
            key = image["key"]
            rows, stuff, stem = rows_of.of(key), stuff_reader(key), stems[key]
            digest = digest_of(common, image, rows, stem, stuff or b"")
            yield MergeTask(image, rows, stuff, stem, digest, finished(key, digest))

    with Workers(workers, engine) as pool:
        yield from pool.map(partial(merge_image, taxonomy, overlap, overlap_stuff), tasks())
