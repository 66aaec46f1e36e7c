"""``python -m construction_panoptic predict PATH``: predict without a Kedro project."""

import re
from pathlib import Path
from typing import Any

import click

from construction_panoptic.commands import Command, device_option, model_option
from construction_panoptic.config.base import parse
from construction_panoptic.config.prediction import PredictionSettings
from construction_panoptic.errors import InputDataError, ParameterError


@click.command(cls=Command)
@click.argument("path")
@model_option
@click.option("--out", default="predictions", type=click.Path(file_okay=False), help="Folder of the results.")
@click.option("--threshold", type=float, help="Least score of a segment, 0 to 1.  [default: the model's own]")
@click.option("--threshold-stuff", type=float, help="The same of stuff alone.  [default: --threshold, or the model's]")
@click.option("--batch-size", type=int, default=1, help="Images or frames at a time.")
@device_option
@click.option(
    "--shard", "part", default="1/1", help="K/N: only the K-th of N parts of PATH, for work on several machines."
)
@click.option("--classes", help="Names of the classes that are kept, with commas between.  [default: all]")
@click.option("--things-only", is_flag=True, help="Leave stuff out.")
@click.option("--cvat", flag_value="masks", help="Write cvat.zip, which CVAT imports, things and stuff as masks.")
@click.option("--cvat-polygons", "cvat", flag_value="polygons", help="The same, with polygons where there is no hole.")
@click.option("--every-nth-frame", type=int, default=1, help="Of a video, predict the frames 0, n, 2n, ….")
def predict(path: str, model: str, out: str, part: str, classes: str | None, **chosen: Any) -> None:
    """Predict PATH: an image, a video, a folder or a quoted pattern ('site/*.jpg')."""
    chosen["execution"] = {"workers": 1}  # more take longer to start than a few images take; see --shard
    if classes is not None:
        chosen["classes"] = tuple(name.strip() for name in classes.split(","))
    settings = parse(PredictionSettings, {"source": path, **chosen}, "predict")
    number, parts = _part(part)
    # Here, since they take seconds to import, too many for --help.
    from construction_panoptic.evaluation.predictions import read_results
    from construction_panoptic.models.files import load_model
    from construction_panoptic.prediction.results import PANOPTIC, is_result_in, write_results
    from construction_panoptic.prediction.running import predict_source
    from construction_panoptic.prediction.sources import find_files, shard
    from construction_panoptic.prediction.tables import write_tables

    folder = Path(out)
    found = [file for file in find_files(path) if not is_result_in(folder, file.path)]
    files = shard(found, number, parts)
    if not files:
        raise InputDataError(f"{path} has fewer files than {parts} parts; part {number} is empty.")
    write_results(predict_source(load_model(model), files, settings), folder)
    seen, rejected = write_tables(folder)
    if seen.empty and parts == 1:  # a part may have nothing but bad files
        raise InputDataError(
            f"None of the {len(files)} files could be read; {folder / 'rejected.csv'} says why. "
            f"The first one: {rejected['detail'].iloc[0]}"
        )
    counts = seen.groupby("class")["count"].sum().sort_values(ascending=False, kind="stable")
    lines = [f"{count:6d}  {name}" for name, count in counts.items()] or ["  nothing was seen; try a lower threshold"]
    if len(rejected):
        lines += ["", "not readable:", *(f"  {row.file}: {row.detail}" for row in rejected.head(10).itertuples())]
    places = "masks/, boxes/ (pictures and videos), panoptic/ (COCO), seen.csv, rejected.csv"
    if settings.cvat is not None:
        places += ", cvat.zip (for CVAT, as COCO 1.0)"
    pictures = len(read_results(folder / PANOPTIC)["images"])
    click.echo("\n".join([*lines, "", f"Images and frames: {pictures}. Results in {folder}: {places}"]))


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise ParameterError(f"--shard is {text!r}; give K/N with K from 1 to N, such as 1/4.")
    return number, of
