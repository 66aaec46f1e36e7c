"""Tables of a prediction: what was seen in each image, and which files could not be read."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.quality import load_json
from construction_panoptic.prediction.results import INDEX, PANOPTIC

SEEN_COLUMNS = ["image", "class", "kind", "count", "area_share", "best_score"]
REJECTED_COLUMNS = ["file", "reason", "detail"]


def seen_table(folder: Path) -> pd.DataFrame:
    """Count what was seen in the images and frames of a results folder.

    Returns:
        A row for each image and class: ``image``, ``class``, ``kind`` (thing or stuff), ``count`` (segments),
        ``area_share`` (of the image's pixels, 0…1), ``best_score`` (0…1). An image in which nothing was seen has one
        row with no class and the count 0.
    """
    data = load_json(folder / PANOPTIC / "predictions.json")
    images = {image["id"]: image for image in data["images"]}
    categories = {category["id"]: category for category in data["categories"]}
    rows: list[dict[str, Any]] = []
    for annotation in data["annotations"]:
        image = images[annotation["image_id"]]
        by_class: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for segment in annotation["segments_info"]:
            by_class[segment["category_id"]].append(segment)
        if not by_class:
            rows.append({"image": image["file_name"], "count": 0, "area_share": 0.0})
        for category_id, segments in sorted(by_class.items()):
            rows.append(
                {
                    "image": image["file_name"],
                    "class": categories[category_id]["name"],
                    "kind": "thing" if categories[category_id]["isthing"] else "stuff",
                    "count": len(segments),
                    "area_share": round(sum(s["area"] for s in segments) / (image["width"] * image["height"]), 6),
                    "best_score": round(max(s["score"] for s in segments), 4),
                }
            )
    return pd.DataFrame(rows, columns=SEEN_COLUMNS)


def rejected_table(folder: Path) -> pd.DataFrame:
    """List the files that could not be read: ``file``, ``reason``, ``detail``.

    Raises:
        InputDataError: the folder has no results.
    """
    index = folder / INDEX
    if not index.is_file():
        raise InputDataError(f"{index} does not exist; predict first.")
    return pd.DataFrame(json.loads(index.read_text())["rejected"], columns=REJECTED_COLUMNS)
