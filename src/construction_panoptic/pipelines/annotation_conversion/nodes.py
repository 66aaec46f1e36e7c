"""Nodes that turn CVAT exports into COCO panoptic and detection files."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from construction_panoptic.annotations.coco_files import CocoFiles
from construction_panoptic.annotations.formats.reading import Exports, read_exports
from construction_panoptic.annotations.formats.sources import NoExportError
from construction_panoptic.annotations.merging.converting import merge_images
from construction_panoptic.annotations.records import ConvertedImage, ConvertedImages, ConvertedRecord
from construction_panoptic.annotations.rejected import all_rejected, check_conservation, repaired_and_kept
from construction_panoptic.annotations.split import grouping, options, splitting
from construction_panoptic.annotations.stuff.fringe import Fringe, leftover_classes
from construction_panoptic.annotations.stuff.label_maps import StuffOfImage
from construction_panoptic.annotations.stuff.labelling import label_all
from construction_panoptic.annotations.stuff.registry import LABELLERS, origin_of
from construction_panoptic.annotations.summary import class_counts_and_summary, survey
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.catalog.datasets import Finished, StuffLabelFolder
from construction_panoptic.config.conversion import ConversionSettings
from construction_panoptic.evaluation.examples import some_images
from construction_panoptic.visualisation.examples import overlay_of, overlays_of
from construction_panoptic.visualisation.page import ReportPicture, about
from construction_panoptic.visualisation.reports import data_report
from construction_panoptic.visualisation.sheets import mosaic

logger = logging.getLogger(__name__)

MOSAIC_PICTURES = 24


def read_annotations(raw_data: Any, taxonomy: dict[str, Any], parameters: ConversionSettings) -> Exports:
    """Give accepted images, accepted annotations, rejected and repaired records of all exports."""
    try:
        exports = read_exports(raw_data, Taxonomy.from_dict(taxonomy), parameters)
    except NoExportError as error:
        raise NoExportError(f"{error} Or run `kedro run --env sample --pipelines sample_data`.") from None
    counts = len(exports.images), len(exports.annotations), len(exports.rejected), len(exports.repaired)
    logger.info("%d images and %d annotations accepted, %d records rejected, %d repaired", *counts)
    if crowds := int(exports.annotations.frame(["iscrowd"])["iscrowd"].sum()):
        hint = "CVAT marks masks of the brush so. If they are single things, set annotation_conversion.crowds to single"
        logger.warning("%d annotations are crowds. %s", crowds, hint)
    return exports


def label_stuff(
    images: pd.DataFrame,
    annotations: StoredTable,
    stuff_predictions: Path,
    taxonomy: dict[str, Any],
    parameters: ConversionSettings,
) -> Callable[[Path], Iterable[StuffOfImage]]:
    """Give what labels the stuff of each image, unless an interrupted run has left it in a folder."""
    stuff, classes = parameters.stuff, Taxonomy.from_dict(taxonomy)
    if stuff.source == "none":
        return lambda folder: (StuffOfImage(key, None) for key in images["key"])  # noqa: ARG005
    labeller = LABELLERS[stuff.source](stuff, classes, stuff_predictions)
    fringe = Fringe(leftover_classes(classes), stuff.fringe_distance)
    return partial(label_all, images, annotations, labeller, fringe, execution=parameters.execution)


def merge_annotations(
    images: pd.DataFrame,
    annotations: StoredTable,
    stuff_labels: StuffLabelFolder,
    taxonomy: dict[str, Any],
    parameters: ConversionSettings,
) -> Callable[[Finished], Iterable[ConvertedImage | ConvertedRecord]]:
    """Give what lays things over stuff in each image, unless an interrupted run has finished it."""
    return partial(
        merge_images,
        images,
        annotations,
        stuff_labels.content,
        Taxonomy.from_dict(taxonomy),
        parameters.overlap,
        parameters.overlap_stuff,
        **parameters.execution.model_dump(),
    )


def account_for_records(
    images: pd.DataFrame,
    annotations: StoredTable,
    rejected_while_reading: pd.DataFrame,
    repaired_while_reading: pd.DataFrame,
    converted: ConvertedImages,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List everything that was not used, and what was changed, and make sure that nothing was lost."""
    rejected = all_rejected(rejected_while_reading, check_conservation(annotations, images, converted))
    repaired = repaired_and_kept(repaired_while_reading, rejected)
    for what, level, table in (("Rejected", logging.WARNING, rejected), ("Repaired", logging.INFO, repaired)):
        for reason, count in table["reason"].value_counts().items():
            logger.log(level, "%s: %d × %s", what, count, reason)
    return rejected, repaired


def split_images(converted: ConvertedImages, parameters: ConversionSettings) -> pd.DataFrame:
    """Divide the images into training and validation: look-alikes and videos together, every class on both sides."""
    settings = parameters.split
    facts = ((record.key, record.phash, {segment.category_id for segment in record.segments}) for record in converted)
    keys, hashes, classes = zip(*facts, strict=True)
    videos = () if settings.video_pattern is None else grouping.video_names(keys, settings.video_pattern)
    groups = grouping.near_duplicate_groups(hashes, keys, settings.near_duplicate_distance, videos)
    if settings.list is not None:
        return options.listed_split(settings.list, keys, groups)
    if settings.folds is not None:
        return options.fold_split(keys, groups, classes, folds=settings.folds, fold=settings.fold, seed=settings.seed)
    return splitting.split(keys, groups, classes, val_fraction=settings.validation_fraction, seed=settings.seed)


def write_coco(converted: ConvertedImages, split: pd.DataFrame, taxonomy: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Give detection of train and val, which checks the PNGs, then panoptic of train and val."""
    files = CocoFiles(converted, split, Taxonomy.from_dict(taxonomy))
    detection = [files.detection(side, converted.png_folder) for side in ("train", "val")]
    return *detection, files.panoptic("train"), files.panoptic("val")


def audit_and_count(
    converted: ConvertedImages,
    split: pd.DataFrame,
    annotations: StoredTable,
    rejected: pd.DataFrame,
    repaired: pd.DataFrame,
    stuff_labels: StuffLabelFolder,
    taxonomy: dict[str, Any],
    parameters: ConversionSettings,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Check the split for leaks, count each class on both sides, and sum the data set up."""
    settings = parameters.split
    classes = Taxonomy.from_dict(taxonomy)
    audited, facts = splitting.audit_split(converted, split, max_distance=settings.near_duplicate_distance)
    counts, summary = class_counts_and_summary(converted, split, classes, annotations, rejected, repaired)
    audited["name"] = audited["class_id"].map(classes.names)
    summary["fringe"] = {"within_pixels": parameters.stuff.fringe_distance, **stuff_labels.fringe()}
    summary["stuff"] = origin_of(parameters.stuff)
    return audited, counts, {**summary, "split": {**facts, "sha256": splitting.split_digest(split)}}


def report_data(
    converted: ConvertedImages,
    annotations: StoredTable,
    rejected: pd.DataFrame,
    counts: pd.DataFrame,
    summary: dict[str, Any],
    taxonomy: dict[str, Any],
    run_name: str,
    *shown: Any,
) -> str:
    """Set the data report: numbers, images worth a look, and ground truth of each class.

    ``shown`` are what the other nodes have audited and drawn.
    """
    classes = Taxonomy.from_dict(taxonomy)

    def picture(record: ConvertedRecord, note: str = "") -> ReportPicture:
        image, png = converted.image_folder / record.image_file, converted.png_folder / record.png_file
        overlay = overlay_of(image, png, [segment.to_dict() for segment in record.segments], classes)
        return overlay, record.key + (f": {note}" if note else "")

    found = survey(converted, annotations, rejected, counts)
    digest, images = summary["split"]["sha256"], f"{summary['all']['images']:,} images"
    return data_report(
        about(run=run_name, images=images, digest=digest),
        summary,
        counts,
        found.sizes,
        [picture(record, note) for record, note in found.suspicious],
        {name: list(map(picture, records)) for name, records in found.of_class.items()},
        *shown,
    )


def draw_ground_truth(panoptic_train: Mapping[str, Any], converted: ConvertedImages) -> Image.Image:
    """Draw the ground truth of images spread over the training set."""
    some = some_images(panoptic_train, MOSAIC_PICTURES)
    overlays = overlays_of(some, converted.image_folder, converted.png_folder)
    return mosaic(overlays, [image["file_name"] for image in some["images"]], columns=4)
