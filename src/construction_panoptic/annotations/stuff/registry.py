"""All stuff labellers: a new one is a module, a line here, and its name in `config.conversion.StuffSettings.source`."""

from collections.abc import Callable, Mapping
from pathlib import Path

from construction_panoptic.annotations.stuff.detr_labeller import DetrLabeller
from construction_panoptic.annotations.stuff.labeller import StuffLabeller
from construction_panoptic.annotations.stuff.ready import ReadyStuff
from construction_panoptic.annotations.stuff.universal_labeller import UniversalLabeller
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.config.conversion import StuffSettings
from construction_panoptic.models.universal.hub import terms_of

LABELLERS: Mapping[str, Callable[[StuffSettings, Taxonomy, Path], StuffLabeller]] = {
    "detr": lambda settings, taxonomy, _: DetrLabeller(settings, taxonomy),
    "universal": lambda settings, taxonomy, _: UniversalLabeller(settings, taxonomy),
    "ready": lambda settings, taxonomy, folder: ReadyStuff(folder, taxonomy, settings.explained_fraction),
}
"""``stuff.source`` → what makes the labeller of the settings, the classes, and the folder of ready predictions."""


def origin_of(settings: StuffSettings) -> dict[str, str]:
    """Say for the records of a run where its stuff comes from, with weights and, where it is known, their licence."""
    origin: dict[str, str] = {"source": settings.source}
    if settings.source in ("detr", "universal"):
        origin["weights"] = settings.weights
    if settings.source == "universal":
        origin |= terms_of(settings.weights, settings.revision, "stuff")
    return origin
