"""The folder of results of a prediction."""

from collections.abc import Iterable
from pathlib import Path

from kedro_datasets._typing import ImagePreview

from construction_panoptic.catalog.folders import LocalDataset
from construction_panoptic.catalog.previews import image_grid
from construction_panoptic.prediction.results import is_complete, write_results
from construction_panoptic.prediction.running import PredictedPicture, RejectedFile


class PredictionResultsDataset(LocalDataset):
    """Predictions of images and videos: COCO panoptic files, both views of each image, and videos with them.

    Args:
        filepath: local path of the folder; ``index.json`` in it is written last.
        metadata: arbitrary metadata, for plugins.
    """

    def load(self) -> Path:
        """Give the path of the folder."""
        return self._filepath

    def save(self, data: Iterable[PredictedPicture | RejectedFile]) -> None:
        """Write each prediction as it comes; see `write_results`."""
        write_results(data, self._filepath)

    def _exists(self) -> bool:
        return is_complete(self._filepath)

    def preview(self) -> ImagePreview:
        """Show a grid of masks views."""
        return image_grid(sorted((self._filepath / "masks").glob("*.jpg")))
