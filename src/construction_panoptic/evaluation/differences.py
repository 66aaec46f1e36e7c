"""How much PQ differs between two models on the same images, and how sure that is."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.evaluation.analysis import class_counts
from construction_panoptic.evaluation.quality import SPLITS, pq_sq_rq

SAMPLES, CHUNK = 1000, 100  # bootstrap samples, and how many are drawn at a time

Numbers = NDArray[np.float64]


def image_counts(segments: pd.DataFrame, images: NDArray[np.int64], categories: Sequence[int]) -> Numbers:
    """Count what PQ is made of: sum of matched IoU, TP, FP, FN; float64 [4, images, classes].

    ``images`` has the ids of the images in `segments.match_segments`, or more; they and ``categories`` ascend.
    """
    counts = class_counts(segments, ("image_id", "category_id"))
    row = np.searchsorted(images, counts.index.get_level_values("image_id").to_numpy())
    column = np.searchsorted(np.asarray(categories), counts.index.get_level_values("category_id").to_numpy())
    table = np.zeros((4, len(images), len(categories)))
    table[:, row, column] = counts[["iou", "tp", "fp", "fn"]].to_numpy(dtype=np.float64).T
    return table


def quality_differences(one: Numbers, other: Numbers, classes: pd.DataFrame) -> pd.DataFrame:
    """Compare the PQ of two models, given by their `image_counts` of the same images.

    The interval is that of the bootstrap (Efron 1979) over images: the set is drawn anew from its own images, with
    replacement, the same ones for both models, and PQ measured again each time; 95 % of the differences lie within.
    ``classes`` has ``name`` and ``kind`` (thing, stuff), a row a class in the order of the counts.

    Returns:
        Rows All, Things, Stuff, then the classes; columns ``name``, ``kind``, ``images`` (that truly have the class),
        ``one``, ``other``, ``difference`` (other - one), ``low``, ``high``, in 0…1; NaN where there is no such class.
    """
    kinds = classes["kind"].to_numpy()
    random = np.random.default_rng(0)
    count = one.shape[1]
    drawn = []
    for _ in range(SAMPLES // CHUNK):
        weights = random.multinomial(count, np.full(count, 1 / count), size=CHUNK).astype(np.float64)
        drawn.append(_qualities(other, weights, kinds) - _qualities(one, weights, kinds))
    samples = np.concatenate(drawn)
    first, second = (_qualities(counts, np.ones((1, count)), kinds)[0] for counts in (one, other))
    low, high = _quiet(np.nanpercentile, samples, [2.5, 97.5])
    present = one[1] + one[3] > 0
    members = [np.isin(kinds, split) for split in SPLITS.values()] + list(np.eye(len(kinds), dtype=bool))
    return pd.DataFrame(
        {
            "name": [*SPLITS, *classes["name"]],
            "kind": ["", "thing", "stuff", *kinds],
            "images": [int(present[:, member].any(axis=1).sum()) for member in members],
            "one": first,
            "other": second,
            "difference": second - first,
            "low": low,
            "high": high,
        }
    )


def _qualities(counts: Numbers, weights: Numbers, kinds: NDArray[np.object_]) -> Numbers:
    """PQ of All, Things, Stuff and each class, for images that count as often as ``weights`` [samples, images] says."""
    pq = pq_sq_rq(*(weights @ part for part in counts))[0]
    means = [_quiet(np.nanmean, pq[:, np.isin(kinds, split)].T) for split in SPLITS.values()]
    return np.column_stack([*means, pq])


def _quiet(function: Callable[..., Any], values: Numbers, *arguments: Any) -> Any:
    """Apply a nan-function along the first axis; where all is NaN it gives NaN, without its warning."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return function(values, *arguments, axis=0)
