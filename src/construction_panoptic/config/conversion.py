"""The parameters of the conversion and of the way back to CVAT: what each means, its unit and its default."""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from construction_panoptic.config.base import Device, Execution, Fraction, PositiveInt, Seed, Settings, Threshold

PUBLISHED_DETR = "detr-r101-panoptic"


class StuffSettings(Settings):
    """Where the stuff regions come from, and how a network labels them."""

    old_names: ClassVar[Mapping[str, str | None]] = {"explained_share": "explained_fraction"}

    source: Literal["detr", "universal", "ready", "none"] = "detr"
    """A COCO panoptic DETR, a panoptic model of transformers, ready predictions, or no stuff at all."""
    weights: str = Field(default=PUBLISHED_DETR, min_length=1)
    """detr: a published name, or the path of a checkpoint. universal: a repository of the Hugging Face hub, or the
    folder of a model."""
    revision: str | None = None
    """universal: commit, tag or branch of the repository; null: its main branch."""
    threshold: Threshold = 0.85
    """Networks: least class probability of a query."""
    side: PositiveInt = 800
    """Networks: shorter side of the input, pixels; EoMT has its own."""
    max_side: PositiveInt = 1333
    """Networks: longest side of the input, pixels."""
    batch_size: PositiveInt = 1
    """Networks: images a forward pass."""
    explained_fraction: Fraction = 0.5
    """A COCO thing of which annotated things cover more than this fraction is not used as stuff."""
    fringe_distance: PositiveInt = 10
    """Pixels of a leftover class this close to a thing are counted as its fringe, pixels."""
    device: Device = "auto"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == "universal" and self.weights == PUBLISHED_DETR:
            raise ValueError(
                f"weights is {self.weights}, which is for source: detr; name a panoptic model of the Hugging Face hub, "
                "such as tue-mps/coco_panoptic_eomt_large_640, or the folder of one"
            )
        if self.side > self.max_side:
            raise ValueError(f"side is {self.side} and max_side {self.max_side}; side must not be larger")
        return self


class SplitSettings(Settings):
    """How the images are divided into training and validation."""

    old_names: ClassVar[Mapping[str, str | None]] = {"validation_share": "validation_fraction"}

    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Fraction of the images."""
    seed: Seed = 42
    """Seed of the division."""
    near_duplicate_distance: Annotated[int, Field(ge=0, le=256)] = 24
    """Images whose 256-bit perceptual hashes differ in at most so many bits stay together."""
    video_pattern: str | None = r"(.*?)frame_\d{6,}"
    """File names without suffix that match are frames; those of one folder with the same first group are one video and
    stay together. null: no videos."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Number of folds; validation_fraction is not used then. null: one split."""
    fold: PositiveInt = 1
    """folds: the one to validate on, from 1."""
    list: str | None = None
    """CSV file with columns key and split (train or val) to use instead. null: divide."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folds is not None and self.fold > self.folds:
            raise ValueError(f"fold is {self.fold} of {self.folds} folds; give one of 1…{self.folds}")
        try:
            re.compile(self.video_pattern or "")
        except re.error as error:
            raise ValueError(f"video_pattern {self.video_pattern!r} is no regular expression ({error})") from None
        return self


class ConversionSettings(Settings):
    """The conversion of CVAT exports to COCO panoptic."""

    on_error: Literal["quarantine", "fail"] = "quarantine"
    """List what cannot be used and go on, or stop at the first."""
    boxes_without_polygon: Literal["reject", "keep"] = "reject"
    """Annotations with a box but no outline: reject them, or take the box as the mask."""
    crowds: Literal["keep", "single"] = "keep"
    """Annotations with iscrowd 1: keep them as crowds, or take each as a single thing."""
    overlap: Literal["last_on_top", "smallest_on_top", "fail"] = "last_on_top"
    """Which of two overlapping things lies on top; the first is CVAT's order."""
    overlap_stuff: Literal["last_on_top", "smallest_on_top"] = "smallest_on_top"
    """The same of two annotations of stuff, which are often drawn through what stands before them."""
    execution: Execution = Execution()
    stuff: StuffSettings = StuffSettings()
    split: SplitSettings = SplitSettings()


class CvatExportSettings(Settings):
    """The way back to CVAT."""

    shapes: Literal["masks", "polygons"] = "masks"
    """Things as masks, or as polygons along the pixels' edges; crowds and what has holes stay masks."""
