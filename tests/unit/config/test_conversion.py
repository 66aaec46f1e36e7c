from typing import Any

import pytest

from construction_panoptic.config.base import parse
from construction_panoptic.config.conversion import ConversionSettings
from construction_panoptic.errors import ParameterError


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"folds": 3, "fold": 4}, "fold is 4 of 3 folds; give one of 1…3"),
        ({"video_pattern": "(frame"}, "video_pattern '(frame' is no regular expression"),
    ],
)
def test_a_wrong_split_is_said_before_the_conversion(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse(ConversionSettings, {"split": split}, "annotation_conversion")
    assert str(caught.value).startswith("annotation_conversion.split: ")
    assert message in str(caught.value)
