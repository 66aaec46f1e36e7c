"""Which images to annotate next: the score of an image has three parts.

- **Uncertainty** is ``v + (1 - v) · mean(1 - score)`` over the segments, where ``v`` is the fraction of void pixels.
- **Rarity** is the largest ``score · ln(1 / f) / ln(n + 1)`` of a segment. ``f = (k + 1) / (n + 1)`` for a class that
  ``k`` of ``n`` training images have; ``ln(1 / f)`` is twice the logarithm of the repeat factor ``sqrt(t / f)`` at the
  threshold 1. A class of all images counts 0, one that no image has 1.
- **Novelty** says how unlike the annotated images and those ranked before an image is; see `embedding.Novelty`.

The score is the mean of the three by their weights. Of images that look alike only the best has a part in this.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import pandas as pd

from construction_panoptic.annotations.split.grouping import near_duplicate_groups
from construction_panoptic.config.prediction import AnnotateNextSettings
from construction_panoptic.prediction.embedding import Novelty

PARTS = ["score", "uncertainty", "rarity", "novelty"]
LEAST_CERTAIN = 3  # classes that are named


def class_rarity(panoptic: Mapping[str, Any]) -> dict[str, float]:
    """Say how rare each class is in the images of a COCO panoptic file, by its name, 0…1; crowds do not count."""
    counts: Counter[int] = Counter()
    images = 0
    for annotation in panoptic["annotations"]:
        images += 1
        counts.update({item["category_id"] for item in annotation["segments_info"] if not item.get("iscrowd", 0)})
    return {
        category["name"]: 1 - log(counts[category["id"]] + 1) / log(max(images, 1) + 1)
        for category in panoptic["categories"]
    }


def rank_images(
    results: Mapping[str, Any],
    hashes: Sequence[str],
    annotated: Mapping[str, str],
    rarity: Mapping[str, float],
    novelty: Novelty,
    settings: AnnotateNextSettings,
) -> pd.DataFrame:
    """Rank predicted images by the gain that is expected of annotating them.

    ``settings.count`` images are chosen one after the other, each with the highest score beside those before it. The
    others follow by their scores beside all of these, and near-duplicates last, with the novelty 0.

    ``results`` are COCO panoptic results of one image at least, as `read_results` gives them, ``hashes`` the perceptual
    hashes of their images, ``annotated`` those of the images that are annotated already, by key; ``rarity`` is that of
    a class by name, 0…1, 1 where it is missing; ``novelty`` is that of the images in the order of the results.
    Errors as of `near_duplicate_groups`.

    Gives a row for each image: ``rank``, from 1; ``image``; ``score``, ``uncertainty``, ``rarity``, ``novelty``;
    ``near_duplicate_of``, an image of a better rank or the key of an annotated one, else missing; ``segments``, their
    number; ``least_certain``, the classes of the lowest scores; ``rarest``, the class that makes the rarity.
    """
    table = _describe(results, rarity)
    weights = settings.weights
    total = weights.uncertainty + weights.rarity + weights.novelty
    table["own"] = (weights.uncertainty * table["uncertainty"] + weights.rarity * table["rarity"]) / total
    table = table.assign(novelty=novelty.of_each, position=range(len(table)), hash=list(hashes))
    table["score"] = table["own"] + weights.novelty / total * table["novelty"]
    table = table.sort_values(["score", "image"], ascending=[False, True], ignore_index=True)
    table["near_duplicate_of"] = _originals(table, annotated, settings.near_duplicate_distance)
    copies = table["near_duplicate_of"].notna()
    chosen = _choose(table[~copies], novelty, weights.novelty / total, settings.count)
    last = table[copies].assign(novelty=0.0, score=lambda rows: rows["own"])
    ranked = pd.concat([chosen, last], ignore_index=True)
    ranked["rank"] = range(1, len(ranked) + 1)
    columns = ["rank", "image", *PARTS, "near_duplicate_of", "segments", "least_certain", "rarest"]
    return ranked[columns].round(4)


def _describe(results: Mapping[str, Any], rarity: Mapping[str, float]) -> pd.DataFrame:
    """What is known of each image by itself."""
    names = {category["id"]: category["name"] for category in results["categories"]}
    rows = []
    for image, annotation in zip(results["images"], results["annotations"], strict=True):
        segments = sorted(annotation["segments_info"], key=lambda segment: segment["score"])
        void = 1 - sum(segment["area"] for segment in segments) / (image["width"] * image["height"])
        classes = [(names[segment["category_id"]], segment["score"]) for segment in segments]
        doubt = np.mean([1 - score for _, score in classes]) if classes else 0.0
        rare = max(((score * rarity.get(name, 1.0), name) for name, score in classes), default=(0.0, ""))
        least_certain = ", ".join(list(dict.fromkeys(name for name, _ in classes))[:LEAST_CERTAIN])
        rows.append((image["file_name"], void + (1 - void) * doubt, *rare, len(segments), least_certain))
    return pd.DataFrame(rows, columns=["image", "uncertainty", "rarity", "rarest", "segments", "least_certain"])


def _originals(table: pd.DataFrame, annotated: Mapping[str, str], distance: int) -> list[str | None]:
    """What each image of a table, best first, is a near-duplicate of: annotated images, then better ones."""
    keys = [*(f"annotated/{key}" for key in annotated), *(f"new/{name}" for name in table["image"])]
    groups = near_duplicate_groups([*annotated.values(), *table["hash"]], keys, distance)
    first: dict[int, str] = {}
    originals = []
    for group, name in zip(groups, [*annotated, *table["image"]], strict=True):
        originals.append(first.get(group))
        first.setdefault(group, name)
    return originals[len(annotated) :]


def _choose(table: pd.DataFrame, novelty: Novelty, weight: float, count: int) -> pd.DataFrame:
    """Choose images from a table, best first, each beside those before it; give the table in the order of ranks."""
    positions, own, found = table["position"].to_numpy(), table["own"].to_numpy(), np.empty(len(table))
    left, order = np.arange(len(table)), []
    for _ in range(min(count, len(table))):
        found[left] = novelty.of_each[positions[left]]
        best = left[np.argmax((own + weight * found)[left])]
        order.append(best)
        left = left[left != best]
        novelty.add(positions[best])
    found[left] = novelty.of_each[positions[left]]
    score = own + weight * found
    order += left[np.argsort(-score[left], kind="stable")].tolist()
    return table.assign(novelty=found, score=score).iloc[order]
