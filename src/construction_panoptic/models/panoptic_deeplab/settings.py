"""The parameters of Panoptic-DeepLab: what each means, its unit, where its default comes from.

"Published" is Cheng et al. 2020, "Panoptic-DeepLab" (arXiv 1911.10194). A cell is a place of the network's maps, four
by four pixels.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from construction_panoptic.config.base import Fraction, NotNegative, Positive, PositiveInt, Settings, Threshold


class GroupingSettings(Settings):
    """From maps to segments."""

    center_threshold: Threshold = Field(default=0.15, description="Least heat of a centre, exclusive.")
    center_window: Annotated[int, Field(ge=1)] = Field(
        default=5, description="Side of the window in which a centre must be the hottest cell, odd, cells."
    )
    min_thing_area: Fraction = Field(default=0.001, description="Smaller things are dropped, fraction of the image.")
    min_stuff_area: Fraction = Field(
        default=0.01,
        description="Smaller stuff is dropped, fraction of the image (published: 4096 of 641 x 641 pixels).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.center_window % 2 == 0:
            raise ValueError(f"center_window ({self.center_window}) must be odd")
        return self


class PanopticDeeplabSettings(Settings):
    """The network's size and parts; the number of classes follows from the taxonomy."""

    backbone: str = Field(
        default="resnet50", min_length=1, description="Feature extractor: tiny, resnet18 … resnet101, or timm/<name>."
    )
    norm: Literal["frozen", "batch"] = Field(
        default="frozen", description="The backbone's batch normalisation: 'frozen' statistics, or trained ('batch')."
    )
    channels: PositiveInt = Field(default=128, description="Width of the decoder, channels.")
    semantic_channels: PositiveInt = Field(default=48, description="Width of the semantic branch, channels.")
    instance_channels: PositiveInt = Field(default=64, description="Width of the instance branch, channels.")
    grouping: GroupingSettings = Field(default_factory=GroupingSettings, description="From maps to segments.")


class TargetSettings(Settings):
    """What is learnt of an image."""

    sigma: Positive = Field(default=1.5, description="Standard deviation of a centre's Gaussian, cells.")
    small_area: Fraction = Field(
        default=0.01,
        description="Things of less than this fraction of the image count as small (published: 64 x 64 of 641 x 641).",
    )
    small_weight: Positive = Field(
        default=3.0, description="Weight of a small thing's pixels in the cross-entropy, as published."
    )


class LossSettings(Settings):
    """Weights of the loss terms."""

    semantic: NotNegative = Field(default=1.0, description="Classes of pixels, cross-entropy.")
    center: NotNegative = Field(default=50.0, description="Heat of centres, squared error.")
    offset: NotNegative = Field(default=0.3, description="Offsets to centres, L1 distance in cells.")
    hardest_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.25, description="Fraction of an image's pixels, those of highest cross-entropy, that count."
    )
