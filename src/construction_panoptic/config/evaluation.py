"""The parameters of evaluation: what each means, its unit and its default."""

from typing import Any, Literal

from construction_panoptic.config.base import (
    Device,
    Execution,
    NotNegativeInt,
    PositiveInt,
    Precision,
    Settings,
    Threshold,
)
from construction_panoptic.config.model import Merging


class EvaluationSettings(Settings):
    """How the validation images are predicted and measured."""

    engine: Literal["hotcoco", "reference"] = "hotcoco"
    """hotcoco, or panopticapi and pycocotools: the same numbers, slower."""
    threshold: Threshold | None = None
    """Least score of a predicted segment; null takes the one that the checkpoint holds."""
    merging: Merging | None = None
    """pixels or masks; null takes what the checkpoint says."""
    batch_size: PositiveInt = 1
    """Images a forward pass."""
    workers: NotNegativeInt = 2
    """Loading processes; 0 loads in the main one."""
    device: Device = "auto"
    execution: Execution = Execution()
    precision: Precision = "auto"
    examples: PositiveInt = 8
    """Images on the sheet of examples, and on that of the worst."""
    threshold_images: PositiveInt = 64
    """Training images on which score thresholds are tried; each is predicted once."""

    @property
    def overrides(self) -> dict[str, Any]:
        """What replaces values of the model's spec; None does not."""
        return {"threshold": self.threshold, "merging": self.merging}

    @property
    def quality_engine(self) -> Literal["hotcoco", "panopticapi"]:
        """The engine for PQ."""
        return "hotcoco" if self.engine == "hotcoco" else "panopticapi"

    @property
    def precision_engine(self) -> Literal["hotcoco", "pycocotools"]:
        """The engine for AP."""
        return "hotcoco" if self.engine == "hotcoco" else "pycocotools"
