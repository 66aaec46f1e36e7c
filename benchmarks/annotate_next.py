"""What annotate_next is worth: PQ of Panoptic-DeepLab on training images that it chose, and on as many random ones.

    python -m benchmarks.annotate_next --project . --env sample --count 200         # data/ must be converted there

For each seed a model is trained on half of the images, taken at random. The other half is taken from the rest, as
that model ranks it or at random; then the recipe is trained anew on both halves. Every training runs in a copy of the
project below --out; a seed is not repeated if its rows are in --out/annotate_next.csv.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.accuracy import copy_project, kedro_run, measured, project_parser, summary
from construction_panoptic.files import write_bytes, write_json

RECIPE = "panoptic_deeplab"


def main() -> None:
    parser = project_parser(__doc__, "annotate_next")
    parser.add_argument("--count", type=int, default=200, help="training images, both halves together")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "annotate_next.csv"
    rows: list[dict[str, Any]] = pd.read_csv(table).to_dict("records") if table.is_file() else []  # type: ignore[assignment]
    for seed in options.seeds:
        if not any(row["seed"] == seed for row in rows):
            rows += compare(options, seed)
            pd.DataFrame(rows).to_csv(table, index=False)
    print(summary(pd.DataFrame(rows)))


def compare(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train on the first half, and with each second half; give a row for each."""
    truth = json.loads((options.project / "data/05_model_input/panoptic_train.json").read_text())
    names = sorted(image["file_name"] for image in truth["images"])
    half = options.count // 2
    if not 0 < 2 * half < len(names):
        sys.exit(f"--count {options.count}: there are {len(names)} training images; take from 2 to fewer than these")
    shuffled = random.Random(seed).sample(names, len(names))
    first, others = shuffled[:half], shuffled[half:]
    rows = [train(options, f"{half} random", first, seed)]
    second = {"chosen": rank(options, f"{half} random", others, half, seed), "random": others[:half]}
    return rows + [
        train(options, f"{2 * half}, half of them {how}", [*first, *more], seed) for how, more in second.items()
    ]


def train(options: argparse.Namespace, name: str, images: Collection[str], seed: int) -> dict[str, Any]:
    """Train and evaluate the recipe on some of the training images, in a project of its own."""
    folder = folder_of(options, name, seed)
    copy_project(options.project, folder)
    keep_images(folder / "data", set(images))
    pipelines = [f"{RECIPE}_training", f"{RECIPE}_panoptic_evaluation"]
    kedro_run(folder, options.env, pipelines, {f"{RECIPE}.seed": seed}, options.params)
    return {"variant": name, "seed": seed, **measured(folder, [RECIPE])}


def rank(options: argparse.Namespace, name: str, images: Collection[str], count: int, seed: int) -> list[str]:
    """Choose images with the model that `train` made under a name, as a user does with photographs in a folder."""
    folder = folder_of(options, name, seed)
    pool = folder / "pool"
    pool.mkdir()
    for image in images:
        os.link(folder / "data/03_primary/images" / image, pool / image)
    params = {"annotate_next.images": pool.resolve(), "annotate_next.count": count}
    kedro_run(folder, options.env, [f"{RECIPE}_annotate_next"], params, options.params)
    ranking = pd.read_csv(folder / "data/07_model_output/annotate_next/ranking.csv")
    return ranking["image"].head(count).tolist()


def folder_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    path: Path = options.out / f"{name} {seed}".replace(",", "").replace(" ", "_")
    return path


def keep_images(data: Path, kept: Collection[str]) -> None:
    """Leave only some training images in the COCO file, and in the list of what is annotated."""
    path = data / "05_model_input/panoptic_train.json"
    truth = json.loads(path.read_text())
    dropped = {image["id"]: image["file_name"] for image in truth["images"] if image["file_name"] not in kept}
    truth["images"] = [image for image in truth["images"] if image["id"] not in dropped]
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] not in dropped]
    write_json(path, truth)
    index = data / "03_primary/converted_images.jsonl"
    gone = set(dropped.values())
    lines = [
        line for line in index.read_bytes().splitlines(keepends=True) if json.loads(line)["image_file"] not in gone
    ]
    write_bytes(index, b"".join(lines))


if __name__ == "__main__":
    main()
