import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from construction_panoptic.errors import ParameterError
from construction_panoptic.models.backbones import build_resnet

pytestmark = pytest.mark.medium


def torchvision_stages(name: str, dilation: bool) -> nn.Module:
    """torchvision's own network with unfolded frozen normalisation, in training as fine-tuning trains it."""
    net = getattr(torchvision.models, name)(
        norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, dilation]
    )
    return IntermediateLayerGetter(net, {f"layer{i}": str(i) for i in (1, 2, 3, 4)})


def with_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {key: value.clone() for key, value in state.items()}
    for key, value in state.items():
        if value.dim() == 1:
            low = 0.0 if key.endswith(("bias", "mean")) else 0.3
            value.copy_(low + 0.5 * torch.rand(value.shape, generator=generator))
    return state


@pytest.mark.parametrize(("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True)])
def test_maps_and_gradients_equal_torchvisions(name: str, dilation: bool) -> None:
    theirs = torchvision_stages(name, dilation).double()
    ours = build_resnet(name, dilation=dilation).double()
    state = with_statistics(theirs.state_dict())
    theirs.load_state_dict(state)
    ours.body.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 70, 101, dtype=torch.float64)

    our_maps, their_maps = ours(images), list(theirs(images).values())

    for ours_map, theirs_map in zip(our_maps, their_maps, strict=True):
        torch.testing.assert_close(ours_map, theirs_map, rtol=1e-9, atol=1e-9)
    (our_maps[3].square().mean() + our_maps[1].mean()).backward()
    (their_maps[3].square().mean() + their_maps[1].mean()).backward()
    trained = {key: p.grad for key, p in ours.body.named_parameters() if p.grad is not None}
    assert {key.split(".")[0] for key in trained} == {"layer2", "layer3", "layer4"}
    for key, parameter in theirs.named_parameters():
        if key in trained:
            torch.testing.assert_close(trained[key], parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "dilation", "strides", "channels"),
    [
        ("resnet18", False, (4, 8, 16, 32), (64, 128, 256, 512)),
        ("resnet34", False, (4, 8, 16, 32), (64, 128, 256, 512)),
        ("resnet50", True, (4, 8, 16, 16), (256, 512, 1024, 2048)),
        ("resnet101", False, (4, 8, 16, 32), (256, 512, 1024, 2048)),
        ("tiny", False, (4, 8, 16, 16), (32, 64, 96, 128)),
    ],
)
def test_strides_and_widths(name: str, dilation: bool, strides: tuple[int, ...], channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        backbone = build_resnet(name, dilation=dilation)
        maps = backbone(torch.zeros(1, 3, 64, 96))

    assert backbone.channels == channels
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


def test_frozen_norm_trains_the_last_three_stages_and_has_no_statistics_to_learn() -> None:
    backbone = build_resnet("resnet18", norm="frozen")
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any("num_batches_tracked" in key for key in backbone.state_dict())
    assert not any("bn" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_batch_norm_trains_everything(name: str) -> None:
    backbone = build_resnet(name, norm="batch").train()
    before = backbone.state_dict()["body.bn1.running_mean"].clone()

    sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64))).backward()

    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())
    assert not torch.equal(backbone.state_dict()["body.bn1.running_mean"], before)


def test_tiny_is_small() -> None:
    assert 300_000 < sum(p.numel() for p in build_resnet("tiny").parameters()) < 600_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "tiny", "dilation": True}, "tiny has no dilated form"),
        ({"name": "resnet34", "dilation": True}, "resnet34 has no dilated form"),
    ],
)
def test_impossible_settings_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build_resnet(**arguments)  # type: ignore[arg-type]
