import pytest
from pydantic import ValidationError

from construction_panoptic.config.sample import DRAWN, SampleSettings
from construction_panoptic.sample.shapes import DRAWINGS


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"classes": ("bulldozer",)}, "no drawing for the classes"),
        ({"rare_class": "water_tank"}, "named twice"),
        ({"things": (3, 2)}, "things must be"),
        ({"spans": (0.5, 0.2)}, "spans must be"),
        ({"widths": (96, 20)}, "widths must be"),
        ({"images": 20}, "raise images"),
        ({"colour": "red"}, "Extra inputs"),
        ({"mixed_fraction": 1.2}, "less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_with_a_reason(values: dict[str, object], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        SampleSettings.model_validate(values)


def test_image_counts_add_up() -> None:
    settings = SampleSettings(images=200, rare_images=8, mixed_fraction=0.25, near_duplicate_fraction=0.05)
    assert (settings.mixed_images, settings.near_duplicates, settings.single_class_images) == (50, 10, 132)
    assert SampleSettings(rare_class=None).single_class_images == 1000 - 200 - 30


def test_the_classes_to_choose_from_are_those_that_are_drawn() -> None:
    assert set(DRAWN) == set(DRAWINGS)
