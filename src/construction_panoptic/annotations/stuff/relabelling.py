"""Labelling stuff without doing again what an interrupted run has done."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.stuff.annotated_things import AnnotatedThings
from construction_panoptic.annotations.stuff.fringe import OutlinedThings, StuffOfImage
from construction_panoptic.annotations.tables import RowsOfKeys, Table
from construction_panoptic.config.base import ONE_PROCESS, Execution
from construction_panoptic.parallel.model_pool import batches_in_block, in_this_process, map_with_model
from construction_panoptic.parallel.workers import blocks_of

if TYPE_CHECKING:  # a run that finds all done needs no torch
    from construction_panoptic.annotations.stuff.detr_labeller import DetrStuffLabeller

Finished = Callable[[str, str], StuffOfImage | None]
"""Gives the stuff of an image that is labelled already, by its key and digest; None: it is not."""


def label_unfinished(
    images: pd.DataFrame,
    annotations: Table,
    finished: Finished,
    labeller: Callable[[], "DetrStuffLabeller"],
    *,
    batch_size: int,
    common: str,
    execution: Execution = ONE_PROCESS,
    device: str = "cpu",
) -> Iterator[StuffOfImage]:
    """Label the images that are not labelled yet.

    Images of one batch are padded alike, which a network notices in the last bits. A batch is therefore labelled as
    a whole or not at all, and the outcome is that of a run without interruption.

    Args:
        images: the table of accepted images, see `reading.Exports`.
        annotations: the table of accepted annotations, see `reading.Exports`.
        finished: gives what an earlier run made of the same input.
        labeller: makes the labeller; not called if all is finished. Pickled, where there are more processes than one.
        batch_size: images of a batch of the labeller.
        common: digest of what all labels depend on: weights, settings, classes.
        execution: the processes that label, see `model_pool.process_count`.
        device: where labellers run.

    Yields:
        The stuff of each image with its digest, in the order of the table.
    """
    things = AnnotatedThings(images, annotations)
    rows = list(zip(images["key"], images["location"], image_digests(images, annotations, common), strict=True))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    done = [all(finished(key, digest) for key, _, digest in batch) for batch in batches]
    pending = [row[:2] for batch, is_done in zip(batches, done, strict=True) if not is_done for row in batch]
    labelled = _label(pending, things, labeller, batch_size, execution, device) if pending else iter(())
    for batch, is_done in zip(batches, done, strict=True):
        for key, _, digest in batch:
            stuff = finished(key, digest) if is_done else next(labelled)
            if stuff is None or stuff.key != key:
                raise RuntimeError(f"the labels of {key!r} were changed while they were in use")
            yield stuff._replace(digest=digest)


def _label(
    images: list[tuple[str, str]],
    things: AnnotatedThings,
    labeller: Callable[[], "DetrStuffLabeller"],
    batch_size: int,
    execution: Execution,
    device: str,
) -> Iterator[StuffOfImage]:
    from construction_panoptic.annotations.stuff.detr_labeller import label_block

    if in_this_process(execution, device):
        return _label_here(images, things, labeller())
    outlined = ((key, location, things.of(key)) for key, location in images)
    blocks = blocks_of(outlined, batches_in_block(batch_size) * batch_size)
    return chain.from_iterable(map_with_model(labeller, label_block, blocks, execution=execution, device=device))


def _label_here(
    images: list[tuple[str, str]], things: AnnotatedThings, labeller: "DetrStuffLabeller"
) -> Iterator[StuffOfImage]:
    waiting: dict[str, OutlinedThings] = {}

    def with_things() -> Iterator[tuple[str, str]]:
        # They are read in the order of the keys; the labeller's threads ask for them in any.
        for key, location in images:
            waiting[key] = things.of(key)
            yield key, location

    return labeller.label_around(with_things(), lambda key: waiting.pop(key).mask())


def image_digests(images: pd.DataFrame, annotations: Table, common: str) -> Iterator[str]:
    """Give for each row of ``images`` the digest of what its labels depend on."""
    things = RowsOfKeys(annotations, ["is_thing", "rle"])
    for key, *facts in images[["key", "sha256", "width", "height"]].itertuples(index=False, name=None):
        outlines = [row["rle"] for row in things.of(key) if row["is_thing"]]
        yield digest_of(common, key, *facts, outlines)


def checkpoint_identity(weights: str) -> list[Any]:
    """Return what tells one checkpoint from another: a published name, or a file's path, size and time."""
    path = Path(weights)
    if not path.is_file():
        return [weights]
    state = path.stat()
    return [weights, state.st_size, state.st_mtime_ns]
