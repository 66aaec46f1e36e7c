"""How much PQ differs between two models on the same images, and how sure that is.

The interval is that of the bootstrap (Efron 1979) over images: the validation set is drawn anew from its own images,
with replacement, the same ones for both models, and PQ measured again each time; 95 % of the differences lie within.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from construction_panoptic.evaluation.analysis import class_counts

SAMPLES, CHUNK = 1000, 100  # bootstrap samples, and how many are drawn at a time
SPLITS = {"All": ("thing", "stuff"), "Things": ("thing",), "Stuff": ("stuff",)}

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class ImageCounts:
    """What PQ is made of, image by image.

    Attributes:
        images: ids, ascending.
        iou: [images, classes], sum of matched IoU.
        weight: [images, classes], TP + FP / 2 + FN / 2.
        present: bool [images, classes], whether the truth has a segment.
    """

    images: NDArray[np.int64]
    iou: Numbers
    weight: Numbers
    present: NDArray[np.bool_]


def image_counts(segments: pd.DataFrame, categories: Sequence[int]) -> ImageCounts:
    """Count the segments of `evaluation.segments.match_segments` by image and by class; ``categories`` ascend."""
    images = np.unique(segments["image_id"].to_numpy())
    counts = class_counts(segments, ("image_id", "category_id"))
    place = (
        np.searchsorted(images, counts.index.get_level_values("image_id").to_numpy()),
        np.searchsorted(np.asarray(categories), counts.index.get_level_values("category_id").to_numpy()),
    )
    tables = np.zeros((3, len(images), len(categories)))
    for table, numbers in zip(
        tables,
        (counts["iou"], counts["tp"] + counts["fp"] / 2 + counts["fn"] / 2, counts["tp"] + counts["fn"]),
        strict=True,
    ):
        table[place] = numbers
    iou, weight, true = tables
    return ImageCounts(images, iou, weight, true > 0)


def quality_differences(one: ImageCounts, other: ImageCounts, classes: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Compare the PQ of two models on the same images.

    Args:
        one: counts of the first.
        other: counts of the second, of the same images.
        classes: columns ``name`` and ``kind`` (thing, stuff), a row a class in the order of the counts.
        seed: of the bootstrap.

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
    everything = np.ones((1, count))
    first, second = (_qualities(counts, everything, kinds)[0] for counts in (one, other))
    low, high = _percentiles(samples)
    members = [np.isin(kinds, split) for split in SPLITS.values()] + list(np.eye(len(kinds), dtype=bool))
    return pd.DataFrame(
        {
            "name": [*SPLITS, *classes["name"]],
            "kind": ["", "thing", "stuff", *kinds],
            "images": [int(one.present[:, member].any(axis=1).sum()) for member in members],
            "one": first,
            "other": second,
            "difference": second - first,
            "low": low,
            "high": high,
        }
    )


def _qualities(counts: ImageCounts, weights: Numbers, kinds: NDArray[np.object_]) -> Numbers:
    """PQ of All, Things, Stuff and each class, for images that count as often as ``weights`` [samples, images] says."""
    pq = _ratio(weights @ counts.iou, weights @ counts.weight)
    means = [_mean(pq[:, np.isin(kinds, split)]) for split in SPLITS.values()]
    return np.column_stack([*means, pq])


def _ratio(iou: Numbers, weight: Numbers) -> Numbers:
    return np.divide(iou, weight, out=np.full_like(iou, np.nan), where=weight > 0)


def _mean(pq: Numbers) -> Numbers:
    present = ~np.isnan(pq)
    count = present.sum(axis=1)
    return np.divide(np.nansum(pq, axis=1), count, out=np.full(len(pq), np.nan), where=count > 0)


def _percentiles(samples: Numbers) -> tuple[Numbers, Numbers]:
    known = ~np.isnan(samples).all(axis=0)
    low, high = np.full((2, samples.shape[1]), np.nan)
    low[known], high[known] = np.nanpercentile(samples[:, known], [2.5, 97.5], axis=0)
    return low, high
