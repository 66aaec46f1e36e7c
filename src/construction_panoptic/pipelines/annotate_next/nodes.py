"""Nodes that say which photographs to annotate next."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from construction_panoptic.annotations.images import perceptual_hash, read_rgb
from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.prediction import AnnotateNextSettings, PredictionSettings
from construction_panoptic.errors import InputDataError, ParameterError
from construction_panoptic.evaluation.predictions import ImagePrediction, read_predictions, read_results
from construction_panoptic.models.files import model_of, spec_of
from construction_panoptic.parallel.workers import Workers
from construction_panoptic.prediction.embedding import Novelty, embed_images
from construction_panoptic.prediction.ranking import class_rarity, rank_images
from construction_panoptic.prediction.results import PANOPTIC
from construction_panoptic.prediction.running import (
    Picture,
    PredictedPicture,
    RejectedFile,
    kept_classes,
    predict_source,
    with_classes,
)
from construction_panoptic.prediction.sources import SourceFile, find_files
from construction_panoptic.visualisation.examples import overlays_of
from construction_panoptic.visualisation.sheets import mosaic

logger = logging.getLogger(__name__)


def predict(
    checkpoint: dict[str, Any], parameters: AnnotateNextSettings, prediction: PredictionSettings
) -> Iterator[ImagePrediction]:
    """Predict all classes in the photographs, one at a time; those that cannot be read are logged."""
    files = [file for file in find_files(_folder(parameters)) if not file.is_video]
    settings = prediction.model_copy(update={"classes": None, "things_only": False})
    return _readable(predict_source(model_of(checkpoint, "the best checkpoint"), files, settings))


def rank(
    checkpoint: dict[str, Any],
    predictions: Path,
    panoptic_train: Mapping[str, Any],
    converted: ConvertedImages,
    parameters: AnnotateNextSettings,
    prediction: PredictionSettings,
) -> pd.DataFrame:
    """Rank the photographs beside the training images; see `rank_images`."""
    results, folder = read_results(predictions), _folder(parameters)
    if not results["images"]:
        raise InputDataError(f"annotate_next.images: there is no photograph in {folder} that can be read.")
    annotated = {record.key: record.phash for record in converted}
    files = [folder / image["file_name"] for image in results["images"]]
    known = [converted.image_folder / image["file_name"] for image in panoptic_train["images"]]
    with Workers(prediction.execution.workers, prediction.execution.engine) as workers:
        hashes = list(workers.map(perceptual_hash, files))
    cells = embed_images(model_of(checkpoint, "the best checkpoint"), [*files, *known], prediction)
    novelty = Novelty(cells[: len(files)], cells[len(files) :])
    return rank_images(results, hashes, annotated, class_rarity(panoptic_train), novelty, parameters)


def choose(
    checkpoint: dict[str, Any],
    predictions: Path,
    ranking: pd.DataFrame,
    parameters: AnnotateNextSettings,
    prediction: PredictionSettings,
) -> Iterator[PredictedPicture]:
    """Give the best photographs with the model's segments, the best first, for pictures and CVAT."""
    spec, folder, names = spec_of(checkpoint), _folder(parameters), _best(ranking, parameters)["image"].tolist()
    if not names:
        raise InputDataError(f"annotate_next.images: all in {folder} are near-duplicates of annotated images.")
    kept, threshold = kept_classes(spec.categories, prediction), spec.overridden(prediction.overrides).least_score
    found = {each.file_name: each for each in read_predictions(predictions) if each.file_name in names}

    def picture(name: str) -> PredictedPicture:
        seen = found[name] if kept is None else with_classes(found[name], kept)
        file = SourceFile(folder / name, name)
        return PredictedPicture(Picture(name, file, read_rgb(file.path)), seen, threshold, prediction.cvat or "masks")

    return map(picture, names)


def draw(ranking: pd.DataFrame, chosen: Path, parameters: AnnotateNextSettings) -> Image.Image:
    """Draw the chosen photographs with their segments, and under each its rank and why it was chosen."""
    overlays = overlays_of(read_results(chosen / PANOPTIC), _folder(parameters), chosen / PANOPTIC)
    rows = _best(ranking, parameters).fillna({"least_certain": "no segment", "rarest": "no class"})
    reasons = (
        f"{row['rank']}. uncertain {row['uncertainty']:.2f} ({row['least_certain'].split(', ')[0]}), "
        f"rare {row['rarity']:.2f} ({row['rarest']}), novel {row['novelty']:.2f}"
        for row in rows.to_dict("records")
    )
    return mosaic(overlays, rows["image"].tolist(), list(reasons))


def _folder(parameters: AnnotateNextSettings) -> Path:
    if parameters.images is None:
        raise ParameterError(
            "annotate_next.images: say which photographs, a folder: "
            "--params annotate_next.images=/folder/of/photographs"
        )
    folder = Path(parameters.images).expanduser()
    if not folder.is_dir():
        raise InputDataError(f"annotate_next.images: {folder} is no folder.")
    return folder


def _best(ranking: pd.DataFrame, parameters: AnnotateNextSettings) -> pd.DataFrame:
    return ranking[ranking["near_duplicate_of"].isna()].head(parameters.count)


def _readable(found: Iterable[PredictedPicture | RejectedFile]) -> Iterator[ImagePrediction]:
    for item in found:
        if isinstance(item, RejectedFile):
            logger.warning("%s is left out: %s", item.file, item.detail)
        else:
            yield item.prediction
