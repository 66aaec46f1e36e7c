import ast
import inspect
from itertools import pairwise
from typing import Any, TypeGuard, cast

import pytest

from construction_panoptic.config.base import Settings, parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.parameters import GROUPS
from construction_panoptic.config.training import DetectionSettings, MaskHeadSettings
from construction_panoptic.errors import ParameterError


def test_defaults_are_the_published_recipe() -> None:
    settings = parse(DetectionSettings, None, "detection")
    assert (settings.optimizer.lr, settings.optimizer.lr_backbone) == (1e-4, 1e-5)
    assert (settings.optimizer.weight_decay, settings.optimizer.clip_max_norm) == (1e-4, 0.1)
    assert settings.augmentation.sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert settings.losses.model_dump() == {
        "ce": 1, "bbox": 5, "giou": 2, "mask": 1, "dice": 1, "no_object": 0.1
    }  # fmt: skip
    assert (settings.epochs, parse(MaskHeadSettings, {}, "mask_head").epochs) == (200, 50)
    assert parse(DetrSettings, {}, "model").num_queries == 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"optimizer": {"lr": -1}}, "detection.optimizer.lr: input should be greater than 0, not -1"),
        (
            {"optimizer": {"rate": 1}},
            "detection.optimizer.rate: there is no such parameter; known are lr, lr_backbone",
        ),
        ({"epoch": 3}, "detection.epoch: there is no such parameter; did you mean epochs?"),
        ({"optimizer": {"lr": "fast"}}, "detection.optimizer.lr: input should be a valid number"),
        ({"optimizer": {"lr": float("nan")}}, "detection.optimizer.lr: "),
        (
            {"schedule": {"kind": "poly"}},
            "detection.schedule.kind: input should be 'step', 'cosine' or 'one_cycle'",
        ),
        (
            {"augmentation": {"crop_min": 700}},
            "detection.augmentation: crop_min (700) is above crop_max (600)",
        ),
        ({"augmentation": {"sides": []}}, "detection.augmentation.sides: "),
        ({"matching": {"category": 0, "bbox": 0, "giou": 0}}, "detection.matching: all matching costs are 0"),
        ({"device": "gpu"}, "detection.device: "),
        ([1], "detection: a group of parameters is needed, not [1]"),
    ],
)
def test_wrong_parameters_are_named_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        parse(DetectionSettings, data, "detection")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_every_wrong_parameter_is_named() -> None:
    with pytest.raises(ParameterError, match=r"stage\.epochs: .*\nstage\.losses\.ce: "):
        parse(DetectionSettings, {"epochs": 0, "losses": {"ce": -1}}, "stage")


def test_settings_pass_through_and_do_not_change() -> None:
    settings = parse(DetectionSettings, {"seed": 3}, "stage")
    assert parse(DetectionSettings, settings, "stage") is settings
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 4


def test_dump_reads_back() -> None:
    settings = parse(DetectionSettings, {"weights": "detr-r50", "schedule": {"kind": "cosine"}}, "stage")
    assert parse(DetectionSettings, settings.model_dump(mode="json"), "stage") == settings


def test_fingerprint_holds_what_the_weights_depend_on() -> None:
    def fingerprint(**changes: Any) -> dict[str, Any]:
        return parse(DetectionSettings, changes, "stage").fingerprint()

    plain = fingerprint()
    assert fingerprint(workers=7, cache_mb=5, device="cpu", validation_batch_size=9, epochs=300) == plain
    for change in ({"seed": 1}, {"batch_size": 9}, {"optimizer": {"lr": 1}}, {"precision": "float32"}):
        assert fingerprint(**change) != plain
    cosine = {"kind": "cosine"}
    assert fingerprint(schedule=cosine, epochs=300) != fingerprint(schedule=cosine, epochs=200)


def test_what_a_parameter_of_an_earlier_version_did_is_said(caplog: pytest.LogCaptureFixture) -> None:
    settings = parse(DetectionSettings, {"failed_batch": "a.pt", "accumulate": 2}, "stage")
    assert settings.micro_batches == 2
    assert "failed_batch does nothing any more" in caplog.text
    assert "accumulate is now called micro_batches" in caplog.text


@pytest.mark.parametrize("group", GROUPS.values())
def test_every_parameter_is_described(group: type[Settings]) -> None:
    """Groups of parameters by their docstring, parameters by a description or a docstring below them."""
    described = {name for name, field in group.model_fields.items() if field.description}
    for base in group.__mro__[: group.__mro__.index(Settings)]:
        body = cast("ast.ClassDef", ast.parse(inspect.getsource(base)).body[0]).body
        described |= {ast.unparse(one.target) for one, other in pairwise(body) if _is_text_of(one, other)}
    for name, field in group.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            test_every_parameter_is_described(field.annotation)
        else:
            assert name in described


def _is_text_of(field: ast.stmt, text: ast.stmt) -> TypeGuard[ast.AnnAssign]:
    return isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
