"""PQ against training time: both recipes, what their parts are worth, and a Mask2Former of `transformers`.

    python -m benchmarks.accuracy --project . --env sample            # data/ must be converted there
    python -m benchmarks.accuracy --project /path/to/project --env laptop --seeds 0 --only Panoptic-DeepLab

Every training runs in a copy of the project below --out, and is not repeated if its row is in --out/accuracy.csv.
The peer trains as many seconds as Panoptic-DeepLab did. Seconds are those of the steps, without validation.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import yaml

from benchmarks import mask2former
from construction_panoptic.annotations.panoptic_png import encode_id_map
from construction_panoptic.config.training import PanopticDeeplabTrainingSettings, ScheduleSettings
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.training.loading import BatchLoader, loader_of
from construction_panoptic.training.optimisation import rate_factor
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.tasks.panoptic_deeplab import build_network

STAGES = {"detr": ("detection", "mask_head"), "panoptic_deeplab": ("panoptic_deeplab",)}
PEER = "Mask2Former (transformers)"


@dataclass(frozen=True)
class Variant:
    """A recipe with some parameters changed; ``weights_of`` names the variant whose weights are evaluated again."""

    recipe: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    weights_of: str | None = None


VARIANTS = {
    "Panoptic-DeepLab": Variant("panoptic_deeplab"),
    "Panoptic-DeepLab, copy-paste": Variant("panoptic_deeplab", {"panoptic_deeplab.augmentation.copy_paste": 0.5}),
    "Panoptic-DeepLab, no repeat factors": Variant("panoptic_deeplab", {"panoptic_deeplab.repeat_threshold": 0}),
    "DETR, merged by masks": Variant("detr", {"panoptic_evaluation.merging": "masks"}),
    "DETR, merged by masks, no repeat factors": Variant(
        "detr", {"panoptic_evaluation.merging": "masks", "detection.repeat_threshold": 0}
    ),
    "DETR, merged by masks, no anchors": Variant(
        "detr", {"panoptic_evaluation.merging": "masks", "model.anchors": False}
    ),
    "DETR, merged by pixels": Variant("detr", {"panoptic_evaluation.merging": "pixels"}, "DETR, merged by masks"),
}


def main() -> None:
    parser = project_parser(__doc__, "accuracy")
    parser.add_argument("--only", nargs="+", default=[*VARIANTS, PEER], choices=[*VARIANTS, PEER], metavar="NAME")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "accuracy.csv"
    rows: list[dict[str, Any]] = pd.read_csv(table).to_dict("records") if table.is_file() else []  # type: ignore[assignment]
    for seed in options.seeds:
        for name in options.only:
            if not any(row["variant"] == name and row["seed"] == seed for row in rows):
                print(f"{name}, seed {seed} …", file=sys.stderr, flush=True)
                measured = train_peer(options, seed, rows) if name == PEER else run_variant(options, name, seed)
                rows.append({"variant": name, "seed": seed, **measured})
                pd.DataFrame(rows).to_csv(table, index=False)
    print(summary(pd.DataFrame(rows)))
    draw(pd.DataFrame(rows), options.out / "accuracy.png")


def project_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Make the command line of what trains in copies of a project, with several seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path(), help="a project whose data/ is converted")
    parser.add_argument("--env", default="sample", help="the environment of its conf/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("data/08_reporting") / out)
    parser.add_argument("--params", default="", help="more of `kedro run --params`, for every run")
    return parser


def run_variant(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Train and evaluate a variant by `kedro run`, in a project of its own."""
    variant = VARIANTS[name]
    stages = STAGES[variant.recipe]
    folder = options.out / f"{variant.weights_of or name} {seed}".replace(" ", "_")
    trainings = [] if variant.weights_of else [f"{stage}_training" for stage in stages]
    if not variant.weights_of:
        copy_project(options.project, folder)
    evaluation = "panoptic_evaluation" if variant.recipe == "detr" else f"{variant.recipe}_panoptic_evaluation"
    params = dict(variant.changed) | {f"{stage}.seed": seed for stage in stages}
    kedro_run(folder, options.env, [*trainings, evaluation], params, options.params)
    return measured(folder, stages)


def kedro_run(folder: Path, env: str, pipelines: Sequence[str], params: Mapping[str, Any], more: str = "") -> None:
    """Run pipelines in a project's folder; ``more`` is a text of further ``--params``."""
    text = ",".join([*(f"{key}={value}" for key, value in params.items()), *filter(None, [more])])
    command = ["kedro", "run", "--env", env, "--pipelines", ",".join(pipelines), "--params", text]
    environment = os.environ | {"PYTHONPATH": str((folder / "src").resolve())}
    subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, check=True)


def measured(folder: Path, stages: Sequence[str]) -> dict[str, float]:
    """Take PQ and seconds of training from a project's folder."""
    quality = json.loads((folder / "data/08_reporting/panoptic_quality.json").read_text())
    timings = pd.concat([pd.read_csv(folder / f"data/06_models/{stage}/timings.csv") for stage in stages])
    validation = timings.get("time/validation_seconds", pd.Series(dtype=float)).sum()
    return numbers(quality, timings["time/epoch_seconds"].sum() - validation)


CONVERTED = ("02_intermediate", "03_primary", "05_model_input")


def copy_project(project: Path, folder: Path, data: Sequence[str] = CONVERTED) -> None:
    """Copy what a training needs of a project: its data by hard links."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("conf", "src", "pyproject.toml", ".telemetry"):
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, folder / name)
    for name in data:
        shutil.copytree(project / "data" / name, folder / "data" / name, copy_function=os.link)


def train_peer(options: argparse.Namespace, seed: int, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Train the peer as long as Panoptic-DeepLab took, on the same images, batches and augmentation; evaluate it."""
    times = [row["seconds"] for row in rows if row["variant"] == "Panoptic-DeepLab"]
    if not times:
        sys.exit(f"{PEER} trains as long as Panoptic-DeepLab does: measure that first, or with it")
    limit = sum(times) / len(times)
    conf = yaml.safe_load((options.project / f"conf/{options.env}/parameters.yml").read_text())["panoptic_deeplab"]
    settings = PanopticDeeplabTrainingSettings.model_validate(conf | {"seed": seed})
    data = options.project / "data"
    files = {part: json.loads((data / f"05_model_input/panoptic_{part}.json").read_text()) for part in ("train", "val")}
    stuff = [category["id"] for category in files["train"]["categories"] if not category["isthing"]]
    highest = max(category["id"] for category in files["train"]["categories"])

    def loader(part: str, *, training: bool) -> BatchLoader:
        folders = data / "03_primary/images", data / "03_primary/panoptic"
        samples = PanopticSamples(files[part], *folders, settings.augmentation, training=training, seed=seed)
        return loader_of(samples, settings, training=training)

    torch.manual_seed(seed)
    model = mask2former.build(
        build_network(highest + 1, settings).backbone, highest + 1, queries=100, width=128, layers=3
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.optimizer.lr / 2, weight_decay=0.05)
    factor = rate_factor(ScheduleSettings(kind="one_cycle"), epochs=1, steps_per_epoch=1000)
    batches, epoch, seconds = loader("train", training=True), 0, 0.0
    while seconds < limit:
        batches.set_epoch(epoch)
        for batch in batches:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = settings.optimizer.lr / 2 * factor(int(1000 * min(seconds / limit, 0.999)))
            optimizer.zero_grad()
            mask2former.loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seconds += time.perf_counter() - began
            if seconds >= limit:
                break
        epoch += 1
    model.eval()
    pngs = options.out / f"mask2former_{seed}"
    pngs.mkdir(exist_ok=True)
    annotations = []
    for batch in loader("val", training=False):
        found = mask2former.segment(model, batch, stuff)
        for target, name, (ids, segments) in zip(batch.targets, batch.file_names, found, strict=True):
            png = f"{Path(name).stem}.png"
            (pngs / png).write_bytes(encode_id_map(ids.numpy()))
            image_id = int(target["image_id"])
            annotations.append({"image_id": image_id, "file_name": png, "segments_info": segments})
    quality = panoptic_quality(files["val"], data / "03_primary/panoptic", {"annotations": annotations}, pngs)
    return numbers(quality, seconds)


def numbers(quality: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Take PQ, SQ and RQ, in percent, from a result of PQ."""
    kinds = ("All", "Things", "Stuff")
    return {f"{m} {kind}": round(100 * quality[kind][m], 2) for m in ("pq", "sq", "rq") for kind in kinds} | {
        "seconds": round(seconds, 1)
    }


def summary(rows: pd.DataFrame) -> str:
    """Make a Markdown table: the mean over the seeds, and in brackets from lowest to highest PQ."""
    lines = ["| | PQ | things | stuff | training, s | seeds |", "|---|---|---|---|---|---|"]
    for name, group in rows.groupby("variant", sort=False):
        low, high = group["pq All"].min(), group["pq All"].max()
        means = group.mean(numeric_only=True)
        lines.append(
            f"| {name} | {means['pq All']:.1f} ({low:.1f}–{high:.1f}) | {means['pq Things']:.1f} | "
            f"{means['pq Stuff']:.1f} | {means['seconds']:.0f} | {len(group)} |"
        )
    return "\n".join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw PQ of every training against its seconds."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, group in rows.groupby("variant", sort=False):
        axes.scatter(group["seconds"], group["pq All"], label=name)
    axes.set(xlabel="training, seconds", ylabel="PQ", xlim=(0, None), ylim=(0, 100))
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
