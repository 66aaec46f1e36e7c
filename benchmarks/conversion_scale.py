"""The conversion at growing size or with more processes: ``python -m benchmarks.conversion_scale``.

Synthetic CVAT exports with ready stuff go through all that the conversion does, from reading the exports to the COCO
panoptic and detection files. Images are small, so that what grows with their number shows, not their decoding;
``--images 300 --size 1000 740 --workers 1 2`` shows what processes gain on photographs. Each column runs in a process
of its own, on as many cores as it has workers, and its time has the start of all other processes in it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.memory import peak_memory
from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.formats.reading import read_exports
from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.annotations.records import ConvertedImage, ConvertedRecord
from construction_panoptic.annotations.rejected import check_conservation
from construction_panoptic.annotations.split.grouping import near_duplicate_groups
from construction_panoptic.annotations.split.splitting import split as divide
from construction_panoptic.annotations.stuff.fringe import Fringe, leftover_classes
from construction_panoptic.annotations.stuff.labelling import label_all
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.base import Execution
from construction_panoptic.config.conversion import ConversionSettings

TAXONOMY = Path(__file__).parents[1] / "conf/base/taxonomy.json"
SMALL = (200, 150)
THINGS = 10
IMAGES_OF_EXPORT = 500
STUFF = (149, 187, 193)  # COCO's road, sky, grass


@dataclass
class Size:
    """What one size took.

    Attributes:
        images: how many.
        annotations: how many.
        workers: processes.
        stages: by stage, milliseconds an image.
        curve: milliseconds an image of the merging, for each tenth of the images.
        peak_mb: peak of the resident memory of the main process, MiB, with Python and the libraries.
        base_mb: the same before anything is read.
        processor: milliseconds of processor time an image of the main process, which other work on the machine
            does not change.
    """

    images: int
    annotations: int = 0
    workers: int = 1
    stages: dict[str, float] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    base_mb: float = 0.0
    processor: float = 0.0

    @property
    def total(self) -> float:
        """Milliseconds an image, all stages."""
        return sum(self.stages.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[name] = self.stages.get(name, 0.0) + 1000 * (time.perf_counter() - start) / self.images


def write_exports(folder: Path, images: int, pixels: tuple[int, int] = SMALL) -> None:
    """Write exports of 500 images with ten polygons each, and ready stuff of all images; ``pixels``: width, height."""
    width, height = pixels
    bands = np.minimum(np.arange(height, dtype=np.uint32) * 3 // height + 1, 3)[:, None].repeat(width, axis=1)
    stuff_png = encode_id_map(bands)
    generator = np.random.default_rng(0)
    names = [thing["name"] for thing in json.loads(TAXONOMY.read_text(encoding="utf-8"))["things"]]
    predictions: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    stuff_folder = folder / "stuff" / "panoptic"
    stuff_folder.mkdir(parents=True)
    for start in range(0, images, IMAGES_OF_EXPORT):
        export = folder / "raw" / f"export_{start:07d}"
        (export / "images").mkdir(parents=True)
        document: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        for number in range(start, min(images, start + IMAGES_OF_EXPORT)):
            name = f"{number:07d}.jpg"
            (export / "images" / name).write_bytes(_photograph(generator, pixels))
            document["images"].append({"id": number, "file_name": name, "width": width, "height": height})
            polygons = [_polygon(generator, pixels) for _ in range(THINGS)]
            document["annotations"] += [
                {
                    "id": THINGS * number + place,
                    "image_id": number,
                    "category_id": int(generator.integers(len(names))),
                    "segmentation": [polygon],
                    "iscrowd": 0,
                }
                for place, polygon in enumerate(polygons)
            ]
            png = f"{number:07d}.png"
            (stuff_folder / png).write_bytes(stuff_png)
            predictions["images"].append({"id": number, "file_name": f"{export.name}/{name}"})
            segments = [{"id": place + 1, "category_id": STUFF[place]} for place in range(3)]
            predictions["annotations"].append({"image_id": number, "file_name": png, "segments_info": segments})
        categories = [{"id": number, "name": name} for number, name in enumerate(names)]
        (export / "coco.json").write_text(json.dumps(document | {"categories": categories}), encoding="utf-8")
    coco_names = {m["coco_id"]: m["coco_name"] for m in json.loads(TAXONOMY.read_text())["coco_to_stuff"]}
    categories = [{"id": number, "name": coco_names[number]} for number in STUFF]
    (folder / "stuff" / "panoptic.json").write_text(json.dumps(predictions | {"categories": categories}))


def _photograph(generator: np.random.Generator, pixels: tuple[int, int]) -> bytes:
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(coarse).resize(pixels, Image.Resampling.BICUBIC).save(stream, format="JPEG")
    return stream.getvalue()


def _polygon(generator: np.random.Generator, pixels: tuple[int, int]) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    unit = min(pixels) / 7.5
    middle = generator.uniform((unit, unit), np.array(pixels) - unit)
    points = middle + generator.uniform(unit / 4, unit * 0.9, (20, 1)) * np.stack(
        [np.cos(angles), np.sin(angles)], axis=1
    )
    return [float(value) for value in points.round(2).ravel()]


def convert(folder: Path, images: int, workers: int = 1) -> Size:
    """Do what the conversion does on as many cores as there are workers, and measure it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    start = time.process_time()
    size = Size(images, workers=workers, base_mb=peak_memory())
    taxonomy = Taxonomy.from_dict(json.loads(TAXONOMY.read_text(encoding="utf-8")))
    out = folder / "out"
    for name in ("images", "panoptic", "stuff"):
        (out / name).mkdir(parents=True)
    with size.stage("read"):
        exports = read_exports(folder / "raw", taxonomy, ConversionSettings(execution=Execution(workers=workers)))
        exports.annotations.copy_to(out / "annotations.parquet")
        annotations = StoredTable(out / "annotations.parquet")
    size.annotations = len(annotations)
    with size.stage("stuff"):
        ready = ReadyStuff(folder / "stuff", taxonomy)
        fringe, execution = Fringe(leftover_classes(taxonomy), 10), Execution(workers=workers)
        labelled = label_all(exports.images, annotations, ready, fringe, folder=out / "stuff", execution=execution)
        for stuff in labelled:
            if isinstance(stuff.labels, bytes):
                (out / "stuff" / _file_name(stuff.key)).write_bytes(stuff.labels)
        del ready

    def labels(key: str) -> bytes:
        return (out / "stuff" / _file_name(key)).read_bytes()

    with size.stage("merge"), (out / "converted.jsonl").open("w", encoding="utf-8") as index:
        last = time.perf_counter()
        merged = merge_images(exports.images, annotations, labels, taxonomy, workers=workers)
        for number, image in enumerate(merged, start=1):
            assert isinstance(image, ConvertedImage)
            record = image.record
            content = image.image if isinstance(image.image, bytes) else image.image.read_bytes()
            (out / "images" / record.image_file).write_bytes(content)
            (out / "panoptic" / record.png_file).write_bytes(image.png)
            index.write(json.dumps(record.to_dict()) + "\n")
            if number % max(1, images // 10) == 0:
                now = time.perf_counter()
                size.curve.append(1000 * (now - last) / max(1, images // 10))
                last = now
    with size.stage("account and split"):
        records = Records(out / "converted.jsonl")
        check_conservation(annotations, exports.images, records)
        hashes, keys = [record.phash for record in records], [record.key for record in records]
        classes = [{segment.category_id for segment in record.segments} for record in records]
        split = divide(keys, near_duplicate_groups(hashes, keys, 24), classes)
    with size.stage("write"):
        files = CocoFiles(records, split, taxonomy)
        for side in ("train", "val"):
            _write_json(out / f"detection_{side}.json", files.detection(side, out / "panoptic"))
            _write_json(out / f"panoptic_{side}.json", files.panoptic(side))
    size.peak_mb = peak_memory()
    size.processor = 1000 * (time.process_time() - start) / images
    return size


@dataclass(frozen=True)
class Records:
    """The records in the index, read anew each time they are iterated over."""

    index: Path

    def __iter__(self) -> Iterator[ConvertedRecord]:
        with self.index.open(encoding="utf-8") as lines:
            for line in lines:
                yield ConvertedRecord.from_dict(json.loads(line))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json_parts(document))


def _file_name(key: str) -> str:
    return f"{Path(key).stem}.png"


def run(images: int, workers: int, pixels: tuple[int, int]) -> Size:
    """Write the input and convert it in a new process.

    It has no file as its main module, which each of its own processes would load anew, pandas and all; the command
    line of Kedro is loaded once.
    """
    code = "import sys; from benchmarks.conversion_scale import print_size; print_size(*sys.argv[1:])"
    with tempfile.TemporaryDirectory(prefix="conversion_scale_") as folder:
        write_exports(Path(folder), images, pixels)
        command = [sys.executable, "-c", code, folder, str(images), str(workers)]
        return Size(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def print_size(folder: str, images: str, workers: str) -> None:
    """Do what `convert` does, and print its result as JSON."""
    print(json.dumps(asdict(convert(Path(folder), int(images), int(workers)))))


def table(sizes: list[Size]) -> str:
    """The sizes beside each other."""
    first = sizes[0]
    rows = [
        ["images", *(f"{size.images:,}" for size in sizes)],
        ["annotations", *(f"{size.annotations:,}" for size in sizes)],
        ["workers", *(str(size.workers) for size in sizes)],
        *([f"{stage}, ms an image", *(f"{size.stages[stage]:.2f}" for size in sizes)] for stage in first.stages),
        ["all, ms an image", *(f"{size.total:.2f}" for size in sizes)],
        ["the first takes", *(f"{first.total / size.total:.2f} x" for size in sizes)],
        ["main processor, ms an image", *(f"{size.processor:.2f}" for size in sizes)],
        ["the first takes", *(f"{first.processor / size.processor:.2f} x" for size in sizes)],
        ["main peak memory, MiB", *(f"{size.peak_mb:.0f}" for size in sizes)],
        ["of that at the start", *(f"{size.base_mb:.0f}" for size in sizes)],
    ]
    lines = ["  ".join([row[0].ljust(28), *(cell.rjust(10) for cell in row[1:])]) for row in rows]
    curves = [f"{size.images:,}: " + " ".join(f"{value:.1f}" for value in size.curve) for size in sizes]
    return "\n".join([*lines, "", "merging, ms an image, by tenths of the images", *curves])


def main() -> None:
    arguments = argparse.ArgumentParser(description="Peak memory and time an image of the conversion, by size.")
    arguments.add_argument("--images", type=int, nargs="+", default=[1000, 10_000], help="the numbers of images")
    arguments.add_argument("--workers", type=int, nargs="+", default=[1], help="the numbers of processes")
    arguments.add_argument("--size", type=int, nargs=2, default=SMALL, help="width and height of the images, pixels")
    arguments.add_argument("--json", action="store_true", help="print JSON in place of a table")
    chosen = arguments.parse_args()
    pixels = (chosen.size[0], chosen.size[1])
    sizes = [run(images, workers, pixels) for images in chosen.images for workers in chosen.workers]
    print(json.dumps([asdict(size) for size in sizes]) if chosen.json else table(sizes))


if __name__ == "__main__":
    main()
