"""The parameters of prediction: what each means, its unit and its default."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from construction_panoptic.config.base import Device, Execution, PositiveInt, Precision, Settings, Threshold
from construction_panoptic.config.model import Merging


class PredictionSettings(Settings):
    """What is predicted, and how."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    source: str | None = Field(default=None, min_length=1)
    """An image, a video, a folder (with its subfolders) or a glob pattern."""
    threshold: Threshold | None = None
    """Least score of a segment and of a drawn box; null takes the one the model was validated with."""
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the classes that are kept; null keeps all."""
    things_only: bool = False
    """Leave stuff out."""
    cvat: Literal["masks", "polygons"] | None = None
    """Write cvat.zip, which CVAT imports, with segments of this shape; null: none."""
    merging: Merging | None = None
    """pixels or masks; null takes what the model says."""
    batch_size: PositiveInt = 1
    """Images or frames a forward pass."""
    device: Device = "auto"
    execution: Execution = Execution()
    precision: Precision = "auto"
    every_nth_frame: PositiveInt = 1
    """Of a video, predict the frames 0, n, 2n, …."""

    @property
    def overrides(self) -> dict[str, Any]:
        """What replaces values of the model's spec; None does not."""
        return {"threshold": self.threshold, "merging": self.merging}


class ExportSettings(Settings):
    """How the model is handed on."""

    registered_name: str | None = Field(default="construction_panoptic", pattern=r"^[^/:]+$")
    """Name in MLflow's model registry, where each export is a new version; null: not registered."""
