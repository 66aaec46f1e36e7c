"""Tables of a prediction: what was seen in each image, and which files could not be read."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.predictions import read_results
from construction_panoptic.files import atomic_path
from construction_panoptic.prediction.results import INDEX, PANOPTIC
from construction_panoptic.prediction.sources import video_of

SEEN_COLUMNS = ["image", "class", "kind", "count", "area_share", "best_score"]
REJECTED_COLUMNS = ["file", "reason", "detail"]


def write_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``seen.csv`` and ``rejected.csv`` into a results folder; give both tables."""
    seen, rejected = seen_table(folder), rejected_table(folder)
    for name, table in {"seen": seen, "rejected": rejected}.items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    return seen, rejected


def seen_table(folder: Path) -> pd.DataFrame:
    """Count what was seen in the images and videos of a results folder.

    Gives a row for each image or video and class: ``image``, ``class``, ``kind`` (thing or stuff), ``count`` (segments
    of an image; of a video, things by their identity, and 1 for stuff), ``area_share`` (of the pixels of the image or
    of all predicted frames, 0…1), ``best_score`` (0…1). Where nothing was seen there is one row with no class and the
    count 0.
    """
    data = read_results(folder / PANOPTIC)
    categories = {category["id"]: category for category in data["categories"]}
    pixels: Counter[str] = Counter()
    seen: dict[str, dict[int, list[tuple[int, dict[str, Any]]]]] = {}
    for image, annotation in zip(data["images"], data["annotations"], strict=True):
        video = video_of(image["file_name"])
        source = video or image["file_name"]
        pixels[source] += image["width"] * image["height"]
        by_class = seen.setdefault(source, defaultdict(list))
        for segment in annotation["segments_info"]:
            identity = segment["id"] if video is None else segment.get("track_id", 0)
            by_class[segment["category_id"]].append((identity, segment))
    rows: list[dict[str, Any]] = []
    for source, by_class in seen.items():
        if not by_class:
            rows.append({"image": source, "count": 0, "area_share": 0.0})
        rows += [
            {
                "image": source,
                "class": categories[category_id]["name"],
                "kind": "thing" if categories[category_id]["isthing"] else "stuff",
                "count": len({identity for identity, _ in segments}),
                "area_share": round(sum(segment["area"] for _, segment in segments) / pixels[source], 6),
                "best_score": round(max(segment["score"] for _, segment in segments), 4),
            }
            for category_id, segments in sorted(by_class.items())
        ]
    return pd.DataFrame(rows, columns=SEEN_COLUMNS)


def rejected_table(folder: Path) -> pd.DataFrame:
    """List the files that could not be read: ``file``, ``reason``, ``detail``; `InputDataError`: no results there."""
    index = folder / INDEX
    if not index.is_file():
        raise InputDataError(f"{index} does not exist; predict first.")
    return pd.DataFrame(json.loads(index.read_text())["rejected"], columns=REJECTED_COLUMNS)
