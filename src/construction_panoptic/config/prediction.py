"""The parameters of prediction: what each means, its unit and its default."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from construction_panoptic.config.base import NotNegative, PositiveInt, Settings
from construction_panoptic.config.evaluation import ModelUse


class PredictionSettings(ModelUse):
    """What is predicted, and how."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    source: str | None = Field(default=None, min_length=1)
    """An image, a video, a folder (with its subfolders) or a glob pattern."""
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the classes that are kept; null keeps all."""
    things_only: bool = False
    """Leave stuff out."""
    cvat: Literal["masks", "polygons"] | None = None
    """Write cvat.zip, which CVAT imports, with segments of this shape; null: none."""
    every_nth_frame: PositiveInt = 1
    """Of a video, predict the frames 0, n, 2n, …."""


class RankingWeights(Settings):
    """Weights of the parts of an image's score; `prediction.ranking` has their formulas."""

    novelty: NotNegative = 1.0
    """Of what is unlike the annotated images and those that are chosen before."""
    uncertainty: NotNegative = 0.0
    """Of unsure segments and void."""
    rarity: NotNegative = 0.0
    """Of classes that few training images have."""

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if not self.uncertainty + self.rarity + self.novelty:
            raise ValueError("all three are 0; one of them must not be")
        return self


class AnnotateNextSettings(Settings):
    """Which photographs are proposed for annotation; they are predicted as `PredictionSettings` say."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    images: str | None = Field(default=None, min_length=1)
    """A folder of photographs, with its subfolders."""
    count: PositiveInt = 50
    """Images that are chosen, drawn and written for CVAT."""
    near_duplicate_distance: Annotated[int, Field(ge=0, le=256)] = 24
    """Images whose 256-bit perceptual hashes differ in at most so many bits count once."""
    weights: RankingWeights = RankingWeights()


class ExportSettings(Settings):
    """How the model is handed on."""

    registered_name: str | None = Field(default="construction_panoptic", pattern=r"^[^/:]+$")
    """Name in MLflow's model registry, where each export is a new version; null: not registered."""
