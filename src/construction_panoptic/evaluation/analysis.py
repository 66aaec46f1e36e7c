"""Error analysis of matched segments: which classes are confused, and what costs panoptic quality."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from construction_panoptic.evaluation.quality import SPLITS, pq_sq_rq

LOSSES = ("badly_outlined", "mislabelled", "missed", "spurious")
"""The parts of the loss budget: the outcomes of false positives and false negatives."""

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 2**62)}
"""COCO's sizes: areas in pixels, from … to below …"""

Categories = Sequence[Mapping[str, Any]]


def class_counts(segments: pd.DataFrame, by: Sequence[str] = ("category_id",)) -> pd.DataFrame:
    """Count by class what PQ and its loss budget are made of; with ``image_id`` in ``by``, in each image.

    Gives ``tp``, ``fp``, ``fn`` (segments), ``iou`` (sum over true positives), and :data:`LOSSES` (false positives and
    negatives with this outcome), indexed by ``by``.
    """
    counted = segments[segments["outcome"] != "ignored"]
    matched = counted["outcome"] == "matched"
    true = counted["side"] == "true"
    parts = {
        "tp": matched & true,
        "fp": ~matched & ~true,
        "fn": ~matched & true,
        "iou": counted["iou"].where(matched & true, 0.0),
        **{name: counted["outcome"] == name for name in LOSSES},
    }
    return pd.DataFrame({**{name: counted[name] for name in by}, **parts}).groupby(list(by)).sum()


def loss_budget(segments: pd.DataFrame, categories: Categories) -> pd.DataFrame:
    """Say what costs PQ: the parts of 100 - PQ.

    With TP, FP, FN and IoU of a class as in PQ, and D = TP + FP/2 + FN/2,

        100 - PQ = 100 / D · ( Σ over TP of (1 - IoU)  +  FP/2  +  FN/2 ),

    since PQ = 100 · ΣIoU / D. Each FP and FN has one outcome, its part of the sum; the first term is part of what is
    badly outlined. A mean over classes has the means of their parts.

    Gives a row each for All, Things, Stuff (means over the classes) and then each class that PQ counts, in the order of
    ids: ``name``, ``kind`` (all, thing, stuff), ``pq`` and :data:`LOSSES` (points, 0…100; NaN where there is no class),
    which sum to 100, and ``tp``, ``fp``, ``fn``.
    """
    counts = class_counts(segments)
    size = counts["tp"] + counts["fp"] / 2 + counts["fn"] / 2
    parts = counts[list(LOSSES)] / 2
    parts["badly_outlined"] += counts["tp"] - counts["iou"]
    points = 100 * pd.concat([counts["iou"].rename("pq"), parts], axis=1).div(size, axis=0)
    by_id = {category["id"]: category for category in categories}
    named = {
        "name": [by_id[identity]["name"] for identity in counts.index],
        "kind": ["thing" if by_id[identity]["isthing"] else "stuff" for identity in counts.index],
    }
    classes = pd.concat([pd.DataFrame(named, counts.index), points, counts[["tp", "fp", "fn"]]], axis=1)
    means = []
    for name, kinds in SPLITS.items():
        group = classes[classes["kind"].isin(kinds)]
        kind = kinds[0] if len(kinds) == 1 else "all"
        means.append({"name": name, "kind": kind, **group[list(points)].mean(), **group[["tp", "fp", "fn"]].sum()})
    return pd.concat([pd.DataFrame(means), classes], ignore_index=True)


def confusion_matrix(segments: pd.DataFrame, categories: Categories) -> pd.DataFrame:
    """Count which class true segments (rows) were predicted as (columns).

    A pair has IoU > 0.5, so the diagonal holds PQ's true positives. What is badly outlined has no pair: it is missed on
    one side and spurious on the other. The column ``true`` has the names of the classes that occur, in the order of
    ids, and ``spurious``; then follows an int column each for these classes, and ``missed``.
    """
    from hotcoco import metrics

    counted = segments[segments["outcome"] != "ignored"]
    paired = counted["outcome"].isin(["matched", "mislabelled"])
    true = counted["side"] == "true"
    both, alone = counted[true & paired], counted[~paired]
    missed, spurious = alone[alone["side"] == "true"], alone[alone["side"] == "predicted"]
    occurring = {*counted["category_id"], *both["other_category_id"]}
    known = [category for category in categories if category["id"] in occurring]
    position = {category["id"]: k for k, category in enumerate(known)}
    rows = [*both["category_id"].map(position), *missed["category_id"].map(position), *[None] * len(spurious)]
    columns = [*both["other_category_id"].map(position), *[None] * len(missed), *spurious["category_id"].map(position)]
    matrix = metrics.confusion_matrix(rows, columns, len(known))
    names = [category["name"] for category in known]
    table = pd.DataFrame(matrix.astype(np.int64), columns=pd.Index([*names, "missed"]))
    table.insert(0, "true", [*names, "spurious"])
    return table


def size_quality(
    segments: pd.DataFrame, categories: Categories, precision: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """PQ of small, medium and large segments, by COCO's limits of 32² and 96² pixels, and box AP beside it.

    A pair has the size of its true segment, a false positive its own. The means are over the classes of that size.
    ``precision`` has COCO's 12 numbers. Columns are ``size``, ``true_segments``, ``pq``, ``sq``, ``rq``, ``pq_things``,
    ``pq_stuff``, ``ap``, ``ar`` (fractions, NaN where there is none).
    """
    # A matched prediction stands for the pair; its row is not counted by area.
    rows = segments[(segments["side"] == "true") | ~segments["outcome"].isin(["matched", "ignored"])]
    table = []
    for size, (least, limit) in SIZES.items():
        scores = class_scores(rows[(rows["area"] >= least) & (rows["area"] < limit)])
        box = {key: (precision or {}).get(f"{key.upper()}{size[0]}", -1) for key in ("ap", "ar")}
        table.append(
            {
                "size": size,
                "true_segments": int((scores["tp"] + scores["fn"]).sum()),
                **scores[["pq", "sq", "rq"]].mean(),
                **kind_means(scores["pq"], categories),
                **{key: float("nan") if value == -1 else value for key, value in box.items()},
            }
        )
    return pd.DataFrame(table)


def class_scores(segments: pd.DataFrame, by: Sequence[str] = ("category_id",)) -> pd.DataFrame:
    """PQ, SQ and RQ by class (fractions; SQ is 0 without a true positive), tp, fp and fn; see :func:`class_counts`."""
    counts = class_counts(segments, by)
    scores = pq_sq_rq(*(counts[name] for name in ("iou", "tp", "fp", "fn")))
    table = pd.DataFrame(scores.T, index=counts.index, columns=pd.Index(["pq", "sq", "rq"]))
    return table.join(counts[["tp", "fp", "fn"]]).dropna()


def kind_means(pq: pd.Series, categories: Categories) -> dict[str, float]:
    """Mean PQ of all classes, which index it, of things and of stuff; NaN where there is none."""
    is_thing = pq.index.isin([category["id"] for category in categories if category["isthing"]])
    return {"pq": pq.mean(), "pq_things": pq[is_thing].mean(), "pq_stuff": pq[~is_thing].mean()}


def image_scores(segments: pd.DataFrame) -> pd.Series:
    """PQ of each image (fraction): the mean over the classes that occur in it; index ``image_id``, worst first.

    An image without a segment that counts, true or predicted, has none.
    """
    scores = class_scores(segments, ("image_id", "category_id"))["pq"]
    return scores.groupby("image_id").mean().sort_values(kind="stable")


def best_thresholds(curve: pd.DataFrame) -> pd.DataFrame:
    """Compare the thresholds in use with the best of a `thresholds.threshold_curve`.

    A row for things and for stuff, where there are any: ``kind``, ``in_use``, ``best`` (of equals, the one in use, or
    the highest) and ``gain``, the difference of their PQ (fraction).
    """
    rows = []
    for kind in ("things", "stuff"):
        pq, in_use = f"pq_{kind}", f"in_use_{kind}"
        known = curve.dropna(subset=[pq])
        if known[in_use].any():  # not where it has no true segment, and a predicted one at lower thresholds alone
            used, best = known[known[in_use]].iloc[0], known.sort_values([pq, in_use, "threshold"]).iloc[-1]
            rows.append((kind, used["threshold"], best["threshold"], best[pq] - used[pq]))
    return pd.DataFrame(rows, columns=["kind", "in_use", "best", "gain"])
