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


class ModelUse(Settings):
    """How a trained model is used."""

    threshold: Threshold | None = None
    """Least score of a segment and of a drawn box; null takes the one that the model was validated with."""
    threshold_stuff: Threshold | None = None
    """The same of stuff alone; null takes ``threshold``, or what the model says."""
    merging: Merging | None = None
    """pixels or masks; null takes what the model says."""
    batch_size: PositiveInt = 1
    """Images or frames a forward pass."""
    device: Device = "auto"
    execution: Execution = Execution()
    precision: Precision = "auto"

    @property
    def overrides(self) -> dict[str, Any]:
        """What replaces values of the model's spec; None does not."""
        return self.model_dump(include={"threshold", "threshold_stuff", "merging"})


class EvaluationSettings(ModelUse):
    """How the validation images are predicted and measured."""

    engine: Literal["hotcoco", "reference"] = "hotcoco"
    """hotcoco, or panopticapi and pycocotools: the same numbers, slower."""
    workers: NotNegativeInt = 2
    """Loading processes; 0 loads in the main one."""
    examples: PositiveInt = 8
    """Images on the sheet of examples, and on that of the worst."""
    threshold_images: PositiveInt = 64
    """Training images on which score thresholds are tried; each is predicted once."""
