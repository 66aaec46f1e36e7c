"""The parameters of evaluation: what each means, its unit and its default."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from construction_panoptic.annotations.settings import ExecutionSettings

PositiveInt = Annotated[int, Field(gt=0)]


class EvaluationSettings(BaseModel):
    """How the validation images are predicted and measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["hotcoco", "reference"] = Field(
        default="hotcoco", description="hotcoco, or panopticapi and pycocotools: the same numbers, slower."
    )
    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.85,
        description="Least class probability of a predicted segment (DETR, appendix on panoptic segmentation).",
    )
    batch_size: PositiveInt = Field(default=1, description="Images a forward pass.")
    workers: Annotated[int, Field(ge=0)] = Field(default=2, description="Loading processes; 0 loads in the main one.")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="'auto' takes CUDA if there is one."
    )
    execution: ExecutionSettings = ExecutionSettings()
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic; 'auto' is bfloat16 autocast on CUDA, float32 on a CPU."
    )
    examples: PositiveInt = Field(default=8, description="Images on the sheet of examples, and on that of the worst.")
    threshold_images: PositiveInt = Field(
        default=64, description="Training images on which score thresholds are tried; each is predicted once."
    )

    @property
    def quality_engine(self) -> Literal["hotcoco", "panopticapi"]:
        """The engine for PQ."""
        return "hotcoco" if self.engine == "hotcoco" else "panopticapi"

    @property
    def precision_engine(self) -> Literal["hotcoco", "pycocotools"]:
        """The engine for AP."""
        return "hotcoco" if self.engine == "hotcoco" else "pycocotools"
