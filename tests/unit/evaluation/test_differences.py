import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from construction_panoptic.evaluation.analysis import image_scores
from construction_panoptic.evaluation.differences import Numbers, image_counts, quality_differences

CLASSES = pd.DataFrame({"name": ["sky", "crane", "pump"], "kind": ["stuff", "thing", "thing"]})


def segment(image: int, side: str, category: int, outcome: str, iou: float = 0.0) -> dict[str, object]:
    return {"image_id": image, "side": side, "category_id": category, "outcome": outcome, "iou": iou}


def random_counts(seed: int, images: int, better: float = 0.0) -> Numbers:
    generator = np.random.default_rng(seed)
    tp, fp, fn = generator.integers(0, 3, (3, images, 3)).astype(float)
    return np.stack([tp * (0.5 + better + generator.random((images, 3)) / 10), tp, fp, fn])


def pq_of(counts: Numbers, draw: list[int] | slice = slice(None)) -> Any:
    iou, tp, fp, fn = counts[:, draw].sum(axis=1)
    return iou / (tp + fp / 2 + fn / 2)


def test_segments_are_counted_as_pq_does() -> None:
    table = pd.DataFrame(
        [
            segment(7, "true", 1, "matched", 0.8),
            segment(7, "predicted", 1, "matched", 0.8),
            segment(7, "true", 2, "badly_outlined", 0.3),
            segment(7, "predicted", 2, "badly_outlined", 0.3),
            segment(7, "predicted", 3, "spurious"),
            segment(7, "predicted", 3, "ignored"),
            segment(9, "true", 3, "missed"),
        ]
    )
    counts = image_counts(table, np.array([7, 8, 9]), [1, 2, 3])
    assert counts.tolist() == [
        [[0.8, 0, 0], [0, 0, 0], [0, 0, 0]],  # IoU
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],  # true positives
        [[0, 1, 1], [0, 0, 0], [0, 0, 0]],  # false positives
        [[0, 1, 0], [0, 0, 0], [0, 0, 1]],  # false negatives
    ]
    assert image_scores(table).to_dict() == pytest.approx({7: 0.8 / 3, 9: 0.0})


def test_the_means_are_over_the_classes_that_there_are() -> None:
    one, other = random_counts(0, 20), random_counts(1, 20)
    rows = quality_differences(one, other, CLASSES).set_index("name")
    for name, counts in (("one", one), ("other", other)):
        pq = pq_of(counts)
        assert rows.loc["All", name] == pytest.approx(pq.mean())
        assert rows.loc["Things", name] == pytest.approx(pq[1:].mean())
        assert rows.loc["sky", name] == pytest.approx(pq[0])
    assert rows["difference"].to_numpy() == pytest.approx((rows["other"] - rows["one"]).to_numpy())


def test_the_interval_is_that_of_drawing_every_possible_set_of_images() -> None:
    """Of three images there are 27 draws; the bootstrap samples come from them, each equally often."""
    one, other = random_counts(4, 3), random_counts(5, 3)
    possible = []
    for draw in itertools.product(range(3), repeat=3):
        with np.errstate(invalid="ignore"):  # a draw without the class has no PQ
            pq = [pq_of(counts, list(draw))[0] for counts in (one, other)]
        possible.append(pq[1] - pq[0])
    row = quality_differences(one, other, CLASSES).set_index("name").loc["sky"]
    assert [row["low"], row["high"]] == pytest.approx(np.nanpercentile(possible, [2.5, 97.5]), abs=0.02)


def test_the_same_model_does_not_differ_from_itself() -> None:
    counts = random_counts(4, 10)
    rows = quality_differences(counts, counts, CLASSES)
    assert (rows[["difference", "low", "high"]].dropna() == 0).all(axis=None)


def test_more_images_make_it_surer() -> None:
    few = quality_differences(random_counts(5, 10), random_counts(8, 10, better=0.2), CLASSES).iloc[0]
    many = quality_differences(random_counts(5, 300), random_counts(8, 300, better=0.2), CLASSES).iloc[0]
    assert few["low"] > 0
    assert many["high"] - many["low"] < few["high"] - few["low"]


def test_a_class_that_is_in_none_of_the_images_has_no_difference() -> None:
    counts = random_counts(6, 10)
    counts[:, :, 2] = 0
    row = quality_differences(counts, counts, CLASSES).set_index("name").loc["pump"]
    assert row[["one", "other", "difference", "low", "high"]].isna().all()
