"""PQ and box AP of 300 image pairs.

The peer is panopticapi where it is installed, else the measure written down with numpy as its paper defines
it; and pycocotools for AP.
"""

import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measuring import Benchmark, Options, Outputs, Step, main
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.evaluation.precision import average_precision
from construction_panoptic.evaluation.quality import panoptic_quality

CATEGORIES = [{"id": number, "name": str(number), "isthing": int(number > 5)} for number in range(1, 13)]
HAS_PANOPTICAPI = importlib.util.find_spec("panopticapi") is not None


def prepare(options: Options) -> None:
    """Write truth and predictions: rectangles that overlap, and the same moved by some pixels."""
    random = np.random.default_rng(4)
    count, size = (6, (96, 128)) if options.small else (300, (480, 640))
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    predictions: dict[str, Any] = {"annotations": []}
    boxes: list[dict[str, Any]] = []
    folder = Path(options.folder)
    for image_id in range(1, count + 1):
        truth["images"].append({"id": image_id, "file_name": f"{image_id}.jpg", "height": size[0], "width": size[1]})
        rectangles = _rectangles(random, size)
        moved = [
            (category if random.random() < 0.9 else 12, *(value + int(random.integers(-4, 5)) for value in box))
            for category, *box in rectangles
        ]
        for side, content, document in (("truth", rectangles, truth), ("predictions", moved, predictions)):
            segments = _write_png(content, size, folder / side / f"{image_id}.png")
            document["annotations"].append(
                {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
            )
        boxes += [
            {
                "image_id": image_id,
                "category_id": segment["category_id"],
                "bbox": segment["bbox"],
                "score": float(random.random()),
            }
            for segment in predictions["annotations"][-1]["segments_info"]
        ]
    detections = [
        {**segment, "image_id": annotation["image_id"]}
        for annotation in truth["annotations"]
        for segment in annotation["segments_info"]
    ]
    numbered = [{**detection, "id": number} for number, detection in enumerate(detections, 1)]
    detection = {"images": truth["images"], "categories": CATEGORIES, "annotations": numbered}
    for name, data in (
        ("truth.json", truth),
        ("predictions.json", predictions),
        ("detection.json", detection),
        ("boxes.json", boxes),
    ):
        (folder / name).write_text(json.dumps(data), encoding="utf-8")


def _rectangles(random: np.random.Generator, size: tuple[int, int]) -> list[tuple[int, ...]]:
    height, width = size
    content: list[tuple[int, ...]] = [(int(random.integers(1, 6)), 0, 0, height, width)]
    for _ in range(int(random.integers(3, 17))):
        top, left = int(random.integers(0, height - 20)), int(random.integers(0, width - 20))
        box = (top, left, top + int(random.integers(20, height // 2)), left + int(random.integers(20, width // 2)))
        content.append((int(random.integers(6, 13)), *box))
    return content


def _write_png(content: list[tuple[int, ...]], size: tuple[int, int], path: Path) -> list[dict[str, Any]]:
    id_map = np.zeros(size, dtype=np.int32)
    for number, (_, top, left, bottom, right) in enumerate(content, 1):
        id_map[max(top, 0) : bottom, max(left, 0) : right] = number
    segments = []
    for number, (category, *_) in enumerate(content, 1):
        y, x = np.nonzero(id_map == number)
        if len(y):
            box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
            segments.append({"id": number, "category_id": category, "area": len(y), "bbox": box, "iscrowd": 0})
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode_id_map(id_map))
    return segments


def peer(options: Options) -> Step:
    folder = Path(options.folder)

    def step() -> Outputs:
        quality = _quality(folder, "panopticapi") if HAS_PANOPTICAPI else quality_by_hand(folder)
        precision = average_precision(folder / "detection.json", folder / "boxes.json", engine="pycocotools")
        return {"pq": quality, "ap": precision["AP"]}

    return step


def ours(options: Options) -> Step:
    folder = Path(options.folder)

    def step() -> Outputs:
        precision = average_precision(folder / "detection.json", folder / "boxes.json")
        return {"pq": _quality(folder, "hotcoco"), "ap": precision["AP"]}

    return step


def _quality(folder: Path, engine: Any) -> float:
    result = panoptic_quality(
        folder / "truth.json", folder / "truth", folder / "predictions.json", folder / "predictions", engine=engine
    )
    return float(result["All"]["pq"])


def quality_by_hand(folder: Path) -> float:
    """PQ after Kirillov et al., "Panoptic Segmentation", CVPR 2019, for files without void or crowds' matches."""
    truth, predictions = (
        {a["image_id"]: a for a in json.loads((folder / f"{side}.json").read_text(encoding="utf-8"))["annotations"]}
        for side in ("truth", "predictions")
    )
    iou_of: dict[int, float] = defaultdict(float)
    matched: dict[int, int] = defaultdict(int)
    segments: dict[int, int] = defaultdict(int)  # true and predicted ones
    for image_id, annotation in truth.items():
        true_ids, predicted_ids = (
            _read_ids(folder / side / annotation["file_name"]) for side in ("truth", "predictions")
        )
        true = {segment["id"]: segment["category_id"] for segment in annotation["segments_info"]}
        predicted = {segment["id"]: segment["category_id"] for segment in predictions[image_id]["segments_info"]}
        for category in (*true.values(), *predicted.values()):
            segments[category] += 1
        pairs, overlaps = np.unique(true_ids * 2**24 + predicted_ids, return_counts=True)
        areas = [dict(zip(*np.unique(ids, return_counts=True), strict=True)) for ids in (true_ids, predicted_ids)]
        void_of = {int(p % 2**24): int(n) for p, n in zip(pairs, overlaps, strict=True) if p < 2**24}
        for pair, overlap in zip(pairs.tolist(), overlaps.tolist(), strict=True):
            first, second = divmod(pair, 2**24)
            if true.get(first) is None or true[first] != predicted.get(second):
                continue
            iou = overlap / (areas[0][first] + areas[1][second] - overlap - void_of.get(second, 0))
            if iou > 0.5:
                matched[true[first]] += 1
                iou_of[true[first]] += iou
    # A true positive is one true and one predicted segment, any other segment half a mistake.
    return float(np.mean([2 * iou_of[category] / count for category, count in segments.items()]))


def _read_ids(path: Path) -> np.ndarray:
    colours = np.asarray(Image.open(path)).astype(np.int64)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


BENCHMARK = Benchmark(
    name="quality",
    workload="PQ and box AP, 300 image pairs 480x640, 4 to 17 segments",
    peer=f"{'panopticapi' if HAS_PANOPTICAPI else 'numpy'}, pycocotools",
    sides={"peer": peer, "ours": ours},
    prepare=prepare,
)

if __name__ == "__main__":
    main(BENCHMARK)
