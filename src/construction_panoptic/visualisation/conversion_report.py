"""The node that sets the data report."""

from typing import Any

import pandas as pd

from construction_panoptic.annotations.records import ConvertedRecord
from construction_panoptic.annotations.suspicion import images_of_classes, size_distributions, suspicious_images
from construction_panoptic.annotations.tables import StoredTable
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.visualisation.data_report import data_report
from construction_panoptic.visualisation.page import ReportPicture
from construction_panoptic.visualisation.progress import overlay_of


def report_data(
    converted: ConvertedImages,
    annotations: StoredTable,
    rejected: pd.DataFrame,
    counts: pd.DataFrame,
    summary: dict[str, Any],
    taxonomy: dict[str, Any],
) -> str:
    """Set the data report: numbers, images worth a look, and ground truth of each class.

    Returns:
        An HTML page with its pictures inside.
    """
    classes = Taxonomy.from_dict(taxonomy)

    def picture(record: ConvertedRecord, note: str = "") -> ReportPicture:
        image, annotation = {"file_name": record.image_file}, record.to_dict() | {"file_name": record.png_file}
        annotation["segments_info"] = annotation["segments"]
        overlay = overlay_of(converted.image_folder, converted.png_folder, image, annotation, classes)[1]
        return ReportPicture(overlay, record.key + (f": {note}" if note else ""))

    return data_report(
        summary,
        counts,
        size_distributions(converted),
        [picture(record, note) for record, note in suspicious_images(converted, annotations, rejected)],
        {name: [picture(r) for r in chosen] for name, chosen in images_of_classes(converted, classes).items()},
    )
