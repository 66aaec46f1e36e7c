"""A million images through everything that does not touch pixels: ``python -m benchmarks.scale``.

Synthetic records go through the project's own functions for the index of converted images, the grouping of
near-duplicates, the split, the COCO panoptic files and the merging of PQ. Each step runs in a process of its own, at a
tenth of the size and at the whole, so that its peak of memory shows what grows with the number of images.
"""

import argparse
import csv
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.memory import peak_memory
from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.annotations.records import ConvertedRecord, Segment
from construction_panoptic.annotations.split.grouping import near_duplicate_groups
from construction_panoptic.annotations.split.splitting import split
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.evaluation.quality import SegmentCounts, merge_counts, quality_of_counts
from construction_panoptic.files import atomic_path

TAXONOMY = Path(__file__).parents[1] / "conf/base/taxonomy.json"
IMAGES = 1_000_000
DISTANCE = 24  # bits, as in conf/base
NEAR_DUPLICATES = 0.1  # of the images are a few bits from an earlier one
SEGMENTS = 8  # on average
COUNTS = "_8" + 200 * "N2" + "PX1"  # a run-length code as long as that of a polygon of 200 columns
IMAGES_OF_SHARD = 1000


@dataclass(frozen=True)
class Measured:
    """What a step took: wall and processor seconds, and by how many MiB its process grew at its peak."""

    step: str
    images: int
    seconds: float
    processor: float
    grown_mb: float


def synthetic_records(count: int) -> Iterator[ConvertedRecord]:
    """Records of 1920 x 1080 images with random classes, boxes and hashes, in the order of their keys."""
    generator = np.random.default_rng(0)
    recent: list[int] = []
    for number in range(count):
        value = int.from_bytes(generator.bytes(32), "big")
        if recent and generator.random() < NEAR_DUPLICATES:
            value = recent[int(generator.integers(len(recent)))] ^ (1 << int(generator.integers(256)))
        recent = [*recent[-99:], value]
        categories = generator.integers(1, 65, 1 + generator.poisson(SEGMENTS - 1)).tolist()
        segments = [
            Segment(k, category, 20_000 + k, (10 * k, 20, 200, 100), COUNTS, 0, k if category > 16 else None)
            for k, category in enumerate(categories, 1)
        ]
        key = f"export_{number // 10_000:05d}/frame_{number:09d}.jpg"
        stem = key.removesuffix(".jpg").replace("/", "__")
        yield ConvertedRecord(key, stem, f"{stem}.jpg", 1920, 1080, segments, 0, [], f"{value:064x}")


class Index:
    """The records of an index file, read anew by each iteration."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[ConvertedRecord]:
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                yield ConvertedRecord.from_dict(json.loads(line))


def write_index(folder: Path, images: int) -> None:
    """Write one JSON line an image, then read them all."""
    with atomic_path(folder / "index.jsonl") as path, path.open("w", encoding="utf-8") as index:
        for record in synthetic_records(images):
            index.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")
    found = sum(1 for _ in Index(folder / "index.jsonl"))
    assert found == images


def group(folder: Path, images: int) -> None:
    """Group near-duplicates."""
    keys, hashes = zip(*((record.key, record.phash) for record in Index(folder / "index.jsonl")), strict=True)
    groups = near_duplicate_groups(hashes, keys, DISTANCE)
    assert 0.85 * images < max(groups) < 0.95 * images
    with (folder / "groups.csv").open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows(zip(keys, groups, strict=True))


def split_images(folder: Path, images: int) -> None:
    """Divide the groups into train and val, stratified by class."""
    with (folder / "groups.csv").open(encoding="utf-8", newline="") as rows:
        keys, groups = zip(*((key, int(number)) for key, number in csv.reader(rows)), strict=True)
    shared: dict[frozenset[int], frozenset[int]] = {}
    classes = []
    for record in Index(folder / "index.jsonl"):
        seen = frozenset(segment.category_id for segment in record.segments)
        classes.append(shared.setdefault(seen, seen))
    table = split(keys, groups, classes, val_fraction=0.2, seed=0)
    assert 0.15 < (table["split"] == "val").mean() < 0.25
    assert table.groupby("group")["split"].nunique().max() == 1
    assert len(table) == images
    table.to_parquet(folder / "split.parquet")


def write_coco(folder: Path, images: int) -> None:
    """Write the COCO panoptic files of both sides, item by item; PNGs are not looked at."""
    table, taxonomy = pd.read_parquet(folder / "split.parquet"), Taxonomy.from_dict(json.loads(TAXONOMY.read_text()))
    files = CocoFiles(Index(folder / "index.jsonl"), table, taxonomy)
    for side in ("train", "val"):
        document = files.panoptic(side)
        with atomic_path(folder / f"panoptic_{side}.json") as path, path.open("w", encoding="utf-8") as file:
            file.writelines(json_parts(document))
    text = sum((folder / f"panoptic_{side}.json").stat().st_size for side in ("train", "val"))
    assert text > 400 * images


def merge_quality(folder: Path, images: int) -> None:  # noqa: ARG001
    """Merge the counts of segments of single images, then of shards, into PQ."""
    generator = np.random.default_rng(0)
    total = np.zeros(4)

    def shard(count: int) -> Iterator[dict[int, SegmentCounts]]:
        for values in generator.integers(0, 3, (count, SEGMENTS, 4)).tolist():
            total[:] += np.sum(values, axis=0)
            yield {1 + 8 * k: SegmentCounts(tp, fp, fn, 0.75 * tp) for k, (tp, fp, fn, _) in enumerate(values)}

    counts = merge_counts(merge_counts(shard(IMAGES_OF_SHARD)) for _ in range(images // IMAGES_OF_SHARD))
    assert [sum(c[k] for c in counts.values()) for k in range(3)] == total[:3].tolist()
    quality = quality_of_counts(counts, [{"id": k, "isthing": k > 16} for k in range(1, 65)])
    assert quality["All"]["n"] == SEGMENTS
    assert abs(quality["All"]["sq"] - 0.75) < 1e-9


STEPS: dict[str, Callable[[Path, int], None]] = {
    "index": write_index,
    "grouping": group,
    "split": split_images,
    "COCO files": write_coco,
    "PQ merging": merge_quality,
}


def measure(step: str, folder: Path, images: int) -> Measured:
    """Run a step in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (step, folder, images))


def _measured(step: str, folder: Path, images: int) -> Measured:
    start, processor, memory = time.perf_counter(), time.process_time(), peak_memory()
    STEPS[step](folder, images)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return Measured(step, images, round(seconds, 2), round(processor, 2), round(peak_memory() - memory, 1))


def simulate(images: int, folder: Path) -> list[Measured]:
    """Run every step at a tenth of the size and at the whole."""
    sizes = (images // 10, images)
    for size in sizes:
        (folder / str(size)).mkdir(parents=True, exist_ok=True)
    return [measure(step, folder / str(size), size) for step in STEPS for size in sizes]


def table(results: list[Measured]) -> str:
    """A line a step: time, and memory at both sizes."""
    lines = [f"{'step':12s} {'images':>9s} {'s':>8s} {'CPU s':>8s} {'µs/image':>9s} {'MB at 1/10':>11s} {'MB':>7s}"]
    for small, whole in zip(results[::2], results[1::2], strict=True):
        each = 1e6 * whole.processor / whole.images
        numbers = (
            f"{whole.seconds:8.1f} {whole.processor:8.1f} {each:9.1f} {small.grown_mb:11.0f} {whole.grown_mb:7.0f}"
        )
        lines.append(f"{whole.step:12s} {whole.images:9d} {numbers}")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--images", type=int, default=IMAGES, help="at least 10 000")
    arguments.add_argument("--json", action="store_true", help="print JSON in place of a table")
    arguments.add_argument(
        "--folder", type=Path, help="where the files go (and stay), 7 kB an image; else a temporary one"
    )
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale_") as temporary:
        results = simulate(chosen.images, chosen.folder or Path(temporary))
    print(json.dumps([asdict(result) for result in results]) if chosen.json else table(results))


if __name__ == "__main__":
    main()
