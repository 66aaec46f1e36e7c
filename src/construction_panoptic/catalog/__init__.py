"""The Kedro datasets of the project: atomic files, folders of pictures, checkpoints."""

from construction_panoptic.catalog.checkpoints import CheckpointDataset, ResumeDataset
from construction_panoptic.catalog.files import (
    CSVDataset,
    FigureDataset,
    HTMLTextDataset,
    JSONDataset,
    ParquetDataset,
    PictureDataset,
    PlotlyDataset,
    ProgressDataset,
)
from construction_panoptic.catalog.folders import (
    ConvertedImagesDataset,
    FolderDataset,
    GeneratedFilesDataset,
    PredictionsDataset,
    StuffLabelsDataset,
)

__all__ = [
    "CSVDataset",
    "CheckpointDataset",
    "ConvertedImagesDataset",
    "FigureDataset",
    "FolderDataset",
    "GeneratedFilesDataset",
    "HTMLTextDataset",
    "JSONDataset",
    "ParquetDataset",
    "PictureDataset",
    "PlotlyDataset",
    "PredictionsDataset",
    "ProgressDataset",
    "ResumeDataset",
    "StuffLabelsDataset",
]
