"""The parameters of prediction: what each means, its unit and its default."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from construction_panoptic.annotations.settings import ExecutionSettings

PositiveInt = Annotated[int, Field(gt=0)]


class PredictionSettings(BaseModel):
    """What is predicted, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    source: str | None = Field(
        default=None, min_length=1, description="An image, a video, a folder (with its subfolders) or a glob pattern."
    )
    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(
        default=None,
        description="Least score of a segment and of a drawn box; null takes the one the model was validated with.",
    )
    batch_size: PositiveInt = Field(default=1, description="Images or frames a forward pass.")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="'auto' takes CUDA if there is one."
    )
    execution: ExecutionSettings = ExecutionSettings()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic; 'auto' is bfloat16 autocast on CUDA, float32 on a CPU."
    )
    every_nth_frame: PositiveInt = Field(default=1, description="Of a video, predict the frames 0, n, 2n, ….")


class ExportSettings(BaseModel):
    """How the model is handed on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    registered_name: str | None = Field(
        default="construction_panoptic",
        pattern=r"^[^/:]+$",
        description="Name in MLflow's model registry, where each export is a new version; null: not registered.",
    )
