"""The configuration that is shipped is one that works, and says what the code says."""

from pathlib import Path
from typing import Any

import pytest

from construction_panoptic.config.base import parse
from construction_panoptic.config.parameters import GROUPS, check_parameters
from construction_panoptic.configuration import config_loader


def parameters(repository: Path, env: str, **runtime: Any) -> dict[str, Any]:
    return dict(config_loader(repository / "conf", env, runtime)["parameters"])


@pytest.mark.parametrize("env", ["base", "laptop", "large", "sample", "small"])
def test_every_parameter_is_valid(repository: Path, env: str) -> None:
    check_parameters(parameters(repository, env))


@pytest.mark.parametrize("name", GROUPS)
def test_the_base_configuration_is_the_recipe_of_the_code(repository: Path, name: str) -> None:
    published = {"weights": "detr-r50"} if name in ("detection", "panoptic_deeplab") else {}
    recipe = GROUPS[name](**published)
    assert parse(GROUPS[name], parameters(repository, "base")[name], name) == recipe


def test_one_parameter_chooses_the_device_of_everything(repository: Path) -> None:
    found = parameters(repository, "sample", device="cuda")
    names = ("detection", "mask_head", "panoptic_evaluation", "prediction")
    assert {found[name]["device"] for name in names} == {"cuda"}
    assert found["annotation_conversion"]["stuff"]["device"] == "cuda"


def test_an_environment_keeps_what_it_does_not_name(repository: Path) -> None:
    assert parameters(repository, "sample")["detection"]["losses"]["bbox"] == 5.0
