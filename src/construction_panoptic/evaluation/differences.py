"""How much PQ differs between two models on the same images, and how sure that is.

The interval is that of the bootstrap (Efron 1979) over images: the validation set is drawn anew from its own images,
with replacement, the same ones for both models, and PQ measured again each time; 95 % of the differences lie within.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.evaluation.analysis import class_counts
from construction_panoptic.evaluation.quality import pq_sq_rq

SAMPLES, CHUNK = 1000, 100  # bootstrap samples, and how many are drawn at a time
SPLITS = {"All": ("thing", "stuff"), "Things": ("thing",), "Stuff": ("stuff",)}

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ImageCounts:
    """What PQ is made of, image by image; ids of images ascend.

    ``counts`` is float64 [4, images, classes]: sum of matched IoU, TP, FP, FN.
    """

    images: NDArray[np.int64]
    counts: Numbers


def image_counts(segments: pd.DataFrame, categories: Sequence[int]) -> ImageCounts:
    """Count the segments of `segments.match_segments` by image and by class; ``categories`` ascend."""
    images = np.unique(segments["image_id"].to_numpy())
    counts = class_counts(segments, ("image_id", "category_id"))
    row = np.searchsorted(images, counts.index.get_level_values("image_id").to_numpy())
    column = np.searchsorted(np.asarray(categories), counts.index.get_level_values("category_id").to_numpy())
    table = np.zeros((4, len(images), len(categories)))
    table[:, row, column] = counts[["iou", "tp", "fp", "fn"]].to_numpy(dtype=np.float64).T
    return ImageCounts(images, table)


def quality_differences(one: ImageCounts, other: ImageCounts, classes: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Compare the PQ of two models on the same images.

    ``classes`` has ``name`` and ``kind`` (thing, stuff), a row a class in the order of the counts.

    Returns:
        Rows All, Things, Stuff, then the classes; columns ``name``, ``kind``, ``images`` (that truly have the class),
        ``one``, ``other``, ``difference`` (other - one), ``low``, ``high``, in 0…1; NaN where there is no such class.
    """
    kinds = classes["kind"].to_numpy()
    random = np.random.default_rng(seed)
    count = len(one.images)
    drawn = []
    for _ in range(SAMPLES // CHUNK):
        weights = random.multinomial(count, np.full(count, 1 / count), size=CHUNK).astype(np.float64)
        drawn.append(_qualities(other, weights, kinds) - _qualities(one, weights, kinds))
    samples = np.concatenate(drawn)
    first, second = (_qualities(counts, np.ones((1, count)), kinds)[0] for counts in (one, other))
    low, high = _quiet(np.nanpercentile, samples, [2.5, 97.5])
    present = one.counts[1] + one.counts[3] > 0
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


def _qualities(counts: ImageCounts, weights: Numbers, kinds: NDArray[np.object_]) -> Numbers:
    """PQ of All, Things, Stuff and each class, for images that count as often as ``weights`` [samples, images] says."""
    pq = pq_sq_rq(*(weights @ part for part in counts.counts))[0]
    means = [_quiet(np.nanmean, pq[:, np.isin(kinds, split)].T) for split in SPLITS.values()]
    return np.column_stack([*means, pq])


def _quiet(function: Callable[..., Any], values: Numbers, *arguments: Any) -> Any:
    """Apply a nan-function along the first axis; where all is NaN it gives NaN, without its warning."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return function(values, *arguments, axis=0)
