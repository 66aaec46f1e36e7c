"""Which images come first, with results of a few images written out by hand."""

from math import log
from typing import Any

import pandas as pd
import pytest
import torch

from construction_panoptic.config.prediction import AnnotateNextSettings, RankingWeights
from construction_panoptic.prediction.embedding import Novelty
from construction_panoptic.prediction.ranking import class_rarity, rank_images

CATEGORIES = [{"id": 7, "name": "crane"}, {"id": 9, "name": "pump"}, {"id": 2, "name": "sky"}]
CRANE, PUMP, SKY = 7, 9, 2
RARITY = {"crane": 0.1, "sky": 0.0}  # no training image has a pump


def results_of(images: dict[str, list[tuple[int, int, float]]]) -> dict[str, Any]:
    """COCO panoptic results of images of 10 x 10 pixels: (category, area, score) of each segment."""
    annotations = [
        {"segments_info": [{"category_id": c, "area": area, "score": score} for c, area, score in segments]}
        for segments in images.values()
    ]
    entries = [{"file_name": name, "width": 10, "height": 10} for name in images]
    return {"categories": CATEGORIES, "images": entries, "annotations": annotations}


def ranked(
    images: dict[str, list[tuple[int, int, float]]],
    hashes: list[str] | None = None,
    annotated: dict[str, str] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    weights = RankingWeights(**dict(zip(("uncertainty", "rarity", "novelty"), settings.pop("weights"), strict=True)))
    apart = [f"{(1 << 40 * k) - 1:064x}" for k in range(len(images))]
    novelty = Novelty(cells_of(settings.pop("looks", [0] * len(images))), cells_of([-1, 1]))
    chosen = AnnotateNextSettings(weights=weights, **settings)
    return rank_images(results_of(images), hashes or apart, annotated or {}, RARITY, novelty, chosen).set_index("image")


def cells_of(looks: list[float]) -> torch.Tensor:
    """Images that look like a number in all of their cells; of -1 and 1 the standard deviation is 1."""
    return torch.tensor(looks, dtype=torch.float32)[:, None, None].expand(-1, 64, 1)


def test_unsure_segments_and_void_are_uncertain() -> None:
    found = ranked(
        {
            "sure.jpg": [(SKY, 100, 1.0)],
            "unsure.jpg": [(SKY, 90, 1.0), (CRANE, 5, 0.6), (CRANE, 5, 0.5)],
            "void.jpg": [(SKY, 60, 1.0)],
            "unsure_void.jpg": [(SKY, 50, 0.8)],
            "nothing.jpg": [],
        },
        weights=(1, 0, 0),
    )
    assert found["uncertainty"].to_dict() == {
        "nothing.jpg": 1,
        "unsure_void.jpg": pytest.approx(0.5 + 0.5 * 0.2),
        "void.jpg": pytest.approx(0.4),
        "unsure.jpg": pytest.approx(0.3),  # by segments: the large sky does not hide the cranes
        "sure.jpg": 0,
    }
    assert found.index.tolist() == ["nothing.jpg", "unsure_void.jpg", "void.jpg", "unsure.jpg", "sure.jpg"]
    assert found["score"].tolist() == found["uncertainty"].tolist()
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert found["segments"].tolist() == [0, 1, 1, 3, 1]
    assert found.loc["unsure.jpg", "least_certain"] == "crane, sky"


def test_a_rare_class_counts_by_its_score() -> None:
    found = ranked(
        {
            "crane.jpg": [(CRANE, 100, 1.0)],
            "pump.jpg": [(CRANE, 50, 1.0), (PUMP, 50, 0.9)],
            "perhaps.jpg": [(PUMP, 100, 0.5)],
        },
        weights=(0, 1, 0),
    )
    assert found.index.tolist() == ["pump.jpg", "perhaps.jpg", "crane.jpg"]
    assert found["rarity"].tolist() == [pytest.approx(0.9), pytest.approx(0.5), pytest.approx(0.1)]
    assert found["rarest"].tolist() == ["pump", "pump", "crane"]


def test_rarity_is_the_log_of_repeat_factors() -> None:
    def image(*segments: tuple[int, int]) -> dict[str, Any]:
        return {"segments_info": [{"category_id": category, "iscrowd": crowd} for category, crowd in segments]}

    train = {
        "categories": CATEGORIES,
        "annotations": [image((SKY, 0), (SKY, 0), (PUMP, 1)), image((SKY, 0), (CRANE, 0))],
    }
    assert class_rarity(train) == {"sky": 0, "crane": pytest.approx(1 - log(2) / log(3)), "pump": 1}
    assert class_rarity({"categories": CATEGORIES, "annotations": []}) == dict.fromkeys(("crane", "pump", "sky"), 1)


def test_an_image_like_those_chosen_waits() -> None:
    images = {"a.jpg": [(CRANE, 100, 0.5)], "b.jpg": [(CRANE, 100, 0.6)], "c.jpg": [(SKY, 100, 0.7)], "d.jpg": []}
    looks = [11, 10, -4, 1]  # those that are annotated look like -1 and 1
    found = ranked(images, weights=(0, 0, 1), looks=looks)
    assert found.index.tolist() == ["a.jpg", "c.jpg", "b.jpg", "d.jpg"]
    assert found["novelty"].tolist() == pytest.approx([10 / 2**0.5, 3 / 2**0.5, 1 / 2**0.5, 0], abs=1e-4)
    assert found["score"].tolist() == found["novelty"].tolist()
    assert ranked(images, weights=(1, 0, 0), looks=looks).index.tolist() == ["d.jpg", "a.jpg", "b.jpg", "c.jpg"]
    both = ranked(images, weights=(1, 0, 1), looks=looks)
    assert both["score"].tolist() == pytest.approx(((both["uncertainty"] + both["novelty"]) / 2).tolist(), abs=1e-4)


def test_images_beyond_the_count_follow_by_their_score_beside_those_chosen() -> None:
    images: dict[str, list[tuple[int, int, float]]] = {f"{name}.jpg": [] for name in "abcd"}
    looks = [10, 9.5, -3, -3.1]
    for count, order in ((1, "adcb"), (2, "adbc"), (3, "adbc")):
        found = ranked(images, weights=(0, 0, 1), looks=looks, count=count)
        assert found.index.tolist() == [f"{name}.jpg" for name in order], count
    # Beside a alone c is new, beside a and d no more.
    novelty = [ranked(images, weights=(0, 0, 1), looks=looks, count=n)["novelty"].to_dict()["c.jpg"] for n in (1, 2)]
    assert novelty[0] > 1
    assert novelty[1] < 0.1


def test_near_duplicates_count_once() -> None:
    images = {
        name: [(CRANE, 100, score)] for name, score in (("a.jpg", 0.6), ("b.jpg", 0.5), ("c.jpg", 0.9), ("d.jpg", 0.1))
    }
    hashes = ["0" * 62 + "01", "0" * 62 + "03", "f" * 64, "0f" * 32]
    near = {"near_duplicate_distance": 1, "weights": (1, 0, 1)}
    found = ranked(images, hashes, {"export/old.jpg": "0f" * 32}, **near)
    assert found.index.tolist() == ["b.jpg", "c.jpg", "d.jpg", "a.jpg"]
    assert found["near_duplicate_of"].fillna("").to_dict() == {
        "b.jpg": "",
        "c.jpg": "",
        "d.jpg": "export/old.jpg",  # annotated already
        "a.jpg": "b.jpg",
    }
    assert found.loc[["d.jpg", "a.jpg"], "novelty"].tolist() == [0, 0]
    assert found["score"].tolist() == pytest.approx(((found["uncertainty"] + found["novelty"]) / 2).tolist(), abs=1e-4)
    assert ranked(images, hashes, near_duplicate_distance=0, weights=(1, 0, 1))["near_duplicate_of"].isna().all()


def test_all_weights_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="one of them must not be"):
        RankingWeights(uncertainty=0, rarity=0, novelty=0)
