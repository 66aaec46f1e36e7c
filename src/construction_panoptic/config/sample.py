"""What a user may choose about the sample dataset."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from construction_panoptic.config.base import Fraction, Settings

DRAWN = (
    "aac_blocks",
    "distribution_transformer",
    "dump_truck_tipper_truck",
    "fire_extinguishers",
    "hydra_crane",
    "rcc_hume_pipes",
    "transit_mixer",
    "vitrified_tiles",
    "water_tank",
    "wheel_loader",
)
"""The classes that there is a drawing for."""
RARE = "distribution_transformer"


class SampleSettings(Settings):
    """Size, content and difficulty of the sample dataset. Lengths are in pixels of the written images."""

    old_names: ClassVar[Mapping[str, str | None]] = {
        f"{part}_share": f"{part}_fraction"
        for part in ("mixed", "worker", "near_duplicate", "without_stuff", "visible_outline", "fringe", "leak")
    }

    images: int = Field(default=1000, ge=20)
    """Number of images, near-duplicate frames included."""
    seed: int = Field(default=7, ge=0)
    """The same seed and settings give the same bytes, with the same release of Pillow and numpy."""
    height: int = Field(default=96, ge=48, le=1024)
    """Image height in pixels."""
    widths: tuple[int, ...] = Field(default=(96, 104, 112, 128), min_length=1)
    """Image widths in pixels, drawn with equal chance."""
    classes: tuple[str, ...] = Field(default=tuple(name for name in DRAWN if name != RARE), min_length=1)
    """Thing classes with a folder each; they share the images evenly and take part in the mixed export."""
    rare_class: str | None = RARE
    """A class with few images, to show what happens to the long tail; None for no such class."""
    rare_images: int = Field(default=12, ge=1)
    """Number of images of the rare class."""
    mixed_fraction: Fraction = 0.2
    """Fraction of the images that go to the export with several classes together."""
    things: tuple[int, int] = (1, 4)
    """Fewest and most thing instances wanted in an image; a crowded image may hold fewer than wanted."""
    spans: tuple[float, float] = (0.15, 0.6)
    """Smallest and largest size of a thing, as a fraction of the image height (root of width times height)."""
    hidden_limit: Fraction = 0.4
    """Largest fraction of a thing that other things may hide, or that may lie outside the image."""
    worker_fraction: Fraction = 0.12
    """Fraction of the outdoor images in which site workers stand; COCO has them as the thing person."""
    near_duplicate_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.03
    """Fraction of the images that repeat another frame: slightly brighter, shifted or compressed more."""
    without_stuff_fraction: Fraction = 0.004
    """Fraction of the images for which the stuff prediction is empty."""
    visible_outline_fraction: Fraction = 0.2
    """Fraction of the things that the annotator outlined as seen; the others have their full outline."""
    border_wobble: float = Field(default=1.0, ge=0, le=8)
    """Standard deviation in pixels of the error in the borders of the stuff predictions."""
    fringe_fraction: Fraction = 0.3
    """Fraction of the things around which the stuff prediction leaves one pixel of void."""
    leak_fraction: Fraction = 0.03
    """Fraction of the vehicles whose COCO mask (truck) reaches beyond the vehicle."""
    jpeg_quality: int = Field(default=92, ge=30, le=95)
    """JPEG quality of the images, as in Pillow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [*self.classes, *([self.rare_class] if self.rare_class else [])]
        unknown = sorted(set(names) - set(DRAWN))
        if unknown:
            raise ValueError(f"no drawing for the classes {unknown}; choose from {list(DRAWN)}")
        if len(set(names)) != len(names):
            raise ValueError("a class is named twice in classes and rare_class")
        if not 1 <= self.things[0] <= self.things[1]:
            raise ValueError("things must be (fewest, most) with 1 <= fewest <= most")
        if not 0.05 <= self.spans[0] <= self.spans[1] <= 0.9:
            raise ValueError("spans must be (smallest, largest) within 0.05 and 0.9")
        if min(self.widths) < 48:
            raise ValueError("widths must be at least 48 pixels")
        if self.single_class_images < len(self.classes):
            raise ValueError(
                f"{self.images} images leave {self.single_class_images} for the folders of {len(self.classes)} classes;"
                " raise images, or lower rare_images, mixed_fraction or near_duplicate_fraction"
            )
        return self

    @property
    def near_duplicates(self) -> int:
        """Number of images that repeat another frame."""
        return round(self.images * self.near_duplicate_fraction)

    @property
    def mixed_images(self) -> int:
        """Number of different images of the export with several classes."""
        return round(self.images * self.mixed_fraction)

    @property
    def single_class_images(self) -> int:
        """Number of different images that the folders of ``classes`` share."""
        rare = self.rare_images if self.rare_class else 0
        return self.images - rare - self.mixed_images - self.near_duplicates
