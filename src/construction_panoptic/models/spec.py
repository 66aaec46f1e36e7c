"""What a checkpoint, or an exported model, says of its model: all that it takes to build and run it, as plain data."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from construction_panoptic.config.base import Fraction, Settings, Threshold
from construction_panoptic.config.model import Merging
from construction_panoptic.config.training import Preprocessing


class ModelSpec(Settings):
    """A model without its weights; ``model_dump(mode="json")`` is what files hold."""

    kind: str = Field(default="detr", description="A key of `models.build.MODELS`.")
    architecture: dict[str, Any] = Field(default_factory=dict, description="The settings of the kind's network.")
    categories: tuple[dict[str, Any], ...] = Field(description="COCO categories: id, name, isthing, color.")
    preprocessing: Preprocessing = Preprocessing()
    threshold: Threshold = Field(default=0.85, description="Merging by pixels: least class probability of a query.")
    threshold_stuff: Threshold | None = Field(default=None, description="The same of stuff; null: as of things.")
    merging: Merging = "pixels"
    quality_things: Fraction = Field(default=0.4, description="Merging by masks: least quality of a thing.")
    quality_stuff: Fraction = Field(default=0.3, description="Merging by masks: least quality of a stuff mask.")

    @property
    def is_thing(self) -> dict[int, bool]:
        """Category id → is a thing; categories that do not say are things."""
        return {int(category["id"]): bool(category.get("isthing", 1)) for category in self.categories}

    @property
    def num_classes(self) -> int:
        """Highest category id + 1."""
        return max(self.is_thing) + 1

    @property
    def least_scores(self) -> dict[bool, float]:
        """The scores above which segments are shown, of things (True) and of stuff (False)."""
        if self.merging == "masks":
            return {True: self.quality_things, False: self.quality_stuff}
        return {True: self.threshold, False: self.threshold if self.threshold_stuff is None else self.threshold_stuff}

    @property
    def least_score(self) -> float:
        """The score above which segments and boxes of things are shown."""
        return self.least_scores[True]

    @property
    def merges_queries(self) -> bool:
        """Whether queries compete for pixels: with a lower threshold, weak ones change what strong ones give.

        Merging by masks, a weak query of stuff makes the segment of its class larger.
        """
        return self.kind != "panoptic_deeplab"

    def overridden(self, overrides: Mapping[str, Any] | None) -> Self:
        """Replace values; those that are None stay.

        A ``threshold`` is that of the merging that is used, and of stuff too, unless there is a ``threshold_stuff``.
        """
        changed = {name: value for name, value in (overrides or {}).items() if value is not None}
        if self.kind != "detr":
            changed.pop("merging", None)  # is a matter of queries
        if "threshold" in changed:
            changed.setdefault("threshold_stuff", changed["threshold"])
        if changed.get("merging", self.merging) == "masks":
            names = {"threshold": "quality_things", "threshold_stuff": "quality_stuff"}
            changed = {names.get(name, name): value for name, value in changed.items()}
        return self.model_copy(update=changed)
