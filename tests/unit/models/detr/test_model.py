import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from construction_panoptic.errors import ParameterError
from construction_panoptic.models.detr import Detr, DetrModel, DetrPanoptic, build_detr, build_detr_panoptic
from construction_panoptic.models.detr import model as model_module
from construction_panoptic.models.detr.model import compile_detector
from construction_panoptic.models.protocol import Images
from construction_panoptic.models.spec import ModelSpec

pytestmark = pytest.mark.medium

TOLERANCE = 1e-4
SIZES = [(96, 130), (64, 160), (128, 97)]
TINY: dict[str, Any] = {
    "backbone": "tiny",
    "norm": "batch",
    "num_queries": 6,
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feedforward_dim": 48,
}
MakeBatch = Callable[[list[tuple[int, int]]], tuple[Tensor, Tensor]]

# --- the published layout ---


def published_norm(prefix: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield f"{prefix}.{name}", (width,)


def published_linear(prefix: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.weight", shape
    yield f"{prefix}.bias", shape[:1]


def published_resnet(depths: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    body = "backbone.0.body"
    yield f"{body}.conv1.weight", (64, 3, 7, 7)
    yield from published_norm(f"{body}.bn1", 64)
    inputs = 64
    for stage, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), start=1):
        for block in range(depth):
            prefix = f"{body}.layer{stage}.{block}"
            shapes = ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1))
            for index, shape in enumerate(shapes, start=1):
                yield f"{prefix}.conv{index}.weight", shape
                yield from published_norm(f"{prefix}.bn{index}", shape[0])
            if block == 0:
                yield f"{prefix}.downsample.0.weight", (4 * width, inputs, 1, 1)
                yield from published_norm(f"{prefix}.downsample.1", 4 * width)
            inputs = 4 * width


def published_detector(depths: list[int], classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    d = 256
    for part, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "multihead_attn"])):
        for layer in range(6):
            prefix = f"transformer.{part}.layers.{layer}"
            for attention in attentions:
                yield f"{prefix}.{attention}.in_proj_weight", (3 * d, d)
                yield f"{prefix}.{attention}.in_proj_bias", (3 * d,)
                yield from published_linear(f"{prefix}.{attention}.out_proj", d, d)
            yield from published_linear(f"{prefix}.linear1", 2048, d)
            yield from published_linear(f"{prefix}.linear2", d, 2048)
            for norm in range(1, len(attentions) + 2):
                yield from published_linear(f"{prefix}.norm{norm}", d)
    yield from published_linear("transformer.decoder.norm", d)
    yield from published_linear("class_embed", classes + 1, d)
    for layer, outputs in enumerate((d, d, 4)):
        yield from published_linear(f"bbox_embed.layers.{layer}", outputs, d)
    yield "query_embed.weight", (100, d)
    yield from published_linear("input_proj", d, 2048, 1, 1)
    yield from published_resnet(depths)


def published_panoptic(depths: list[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"detr.{key}", shape) for key, shape in published_detector(depths, 250))
    for name in "qk":
        yield from published_linear(f"bbox_attention.{name}_linear", 256, 256)
    widths = [264, 264, 128, 64, 32, 16]
    for layer in range(1, 6):
        yield from published_linear(f"mask_head.lay{layer}", widths[layer], widths[layer - 1], 3, 3)
        yield from published_linear(f"mask_head.gn{layer}", widths[layer])
    yield from published_linear("mask_head.out_lay", 1, 16, 3, 3)
    for level, shape in enumerate(((128, 1024), (64, 512), (32, 256)), start=1):
        yield from published_linear(f"mask_head.adapter{level}", *shape, 1, 1)


@pytest.mark.parametrize(
    ("backbone", "dilation", "depths", "parameters"),
    [
        ("resnet50", False, [3, 4, 6, 3], 41_524_768),
        ("resnet50", True, [3, 4, 6, 3], 41_524_768),
        ("resnet101", False, [3, 4, 23, 3], 60_464_672),
    ],
)
def test_detr_has_the_published_keys_and_shapes(
    backbone: str, dilation: bool, depths: list[int], parameters: int
) -> None:
    with torch.device("meta"):
        model = build_detr(91, backbone=backbone, dilation=dilation)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == dict(published_detector(depths, 91))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("backbone", "depths", "parameters"),
    [("resnet50", [3, 4, 6, 3], 42_899_288), ("resnet101", [3, 4, 23, 3], 61_839_192)],
)
def test_panoptic_has_the_published_keys_and_shapes(backbone: str, depths: list[int], parameters: int) -> None:
    with torch.device("meta"):
        model = build_detr_panoptic(250, backbone=backbone)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == dict(published_panoptic(depths))
    assert sum(p.numel() for p in model.parameters()) == parameters


# --- the same numbers as Hugging Face's DETR ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"backbone": "resnet18", "panoptic": True},
        {"backbone": "resnet50", "panoptic": True, "dilation": True},
        pytest.param(
            {
                "backbone": "resnet50",
                "panoptic": False,
                "num_classes": 91,
                "hidden_dim": 256,
                "layers": 6,
                "queries": 100,
                "feedforward_dim": 2048,
            },
            id="detr-r50",
        ),
        pytest.param({"backbone": "resnet101", "panoptic": True}, marks=pytest.mark.slow),
        pytest.param({"backbone": "resnet34", "panoptic": True}, marks=pytest.mark.slow),
    ],
)
def test_outputs_equal_hugging_faces(
    arguments: dict[str, Any], make_pair: Callable[..., Any], make_batch: MakeBatch
) -> None:
    pair = make_pair(**arguments)

    ours, theirs = pair.both(*make_batch(SIZES))

    names = ["pred_logits", "pred_boxes"] + ["pred_masks"] * arguments["panoptic"]
    assert sorted(ours) == sorted(names)
    for name in names:
        # The comparison means something only where images and queries differ by more than the tolerance.
        assert theirs[name].std(dim=0).mean() > 5 * TOLERANCE, name
        assert theirs[name].std(dim=1).mean() > 5 * TOLERANCE, name
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=TOLERANCE)


def test_auxiliary_outputs_are_the_heads_on_each_layer(make_pair: Callable[..., Any], make_batch: MakeBatch) -> None:
    pair = make_pair("resnet18", panoptic=False, layers=3)
    images, mask = make_batch(SIZES)

    _, theirs = pair.both(images, mask)
    with torch.no_grad():
        outputs = pair.ours.features(images, mask, all_layers=True).outputs

        assert len(outputs["aux_outputs"]) == 2
        for ours, hidden in zip(outputs["aux_outputs"], theirs["hidden"][-3:-1], strict=True):
            normed = pair.theirs.model.decoder.layernorm(hidden)
            logits = pair.theirs.class_labels_classifier(normed)
            boxes = pair.theirs.bbox_predictor(normed).sigmoid()
            torch.testing.assert_close(ours["pred_logits"], logits, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(ours["pred_boxes"], boxes, rtol=0, atol=TOLERANCE)
        assert (outputs["aux_outputs"][0]["pred_logits"] - outputs["pred_logits"]).abs().max() > 0.01


# --- detection ---


@pytest.fixture(params=[False, True], ids=["detr", "anchors"])
def anchors(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def panoptic(anchors: bool) -> DetrPanoptic:
    torch.manual_seed(0)
    return build_detr_panoptic(5, **TINY, anchors=anchors)


def test_auxiliary_outputs_come_in_training_alone(make_batch: MakeBatch) -> None:
    images, mask = make_batch([(64, 64), (32, 64)])
    model = build_detr(5, **TINY)

    assert len(model.train()(images, mask)["aux_outputs"]) == TINY["decoder_layers"] - 1
    assert "aux_outputs" not in model.eval()(images, mask)
    assert "aux_outputs" not in build_detr(5, **TINY, auxiliary_outputs=False).train()(images, mask)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_no_mask_means_no_padding(backbone: str, anchors: bool, make_batch: MakeBatch) -> None:
    model = build_detr_panoptic(5, **{**TINY, "backbone": backbone, "anchors": anchors}).eval()
    images, mask = make_batch([(64, 96), (64, 96)])
    assert not mask.any()

    with torch.no_grad():
        with_mask, without = model(images, mask), model(images)

    assert with_mask["pred_logits"].shape == (2, 6, 6)
    assert with_mask["pred_masks"].shape == (2, 6, 16, 24)
    for name, value in with_mask.items():
        torch.testing.assert_close(value, without[name], rtol=1e-5, atol=1e-5)


def test_wrong_shapes_are_named() -> None:
    model = build_detr(5, **TINY)
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], not \(2, 64, 64\)"):
        model(torch.zeros(2, 64, 64))
    with pytest.raises(ValueError, match=r"padding_mask must be \(2, 64, 64\), not \(2, 32, 64\)"):
        model(torch.zeros(2, 3, 64, 64), torch.zeros(2, 32, 64, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 36, "num_heads": 8}, r"hidden_dim \(36\)"),
        ({"hidden_dim": 24}, r"hidden_dim \(24\) must be a multiple of 16"),
        ({"num_queries": 0}, r"model\.num_queries: .*, not 0"),
        ({"decoder_layers": 0}, r"model\.decoder_layers: .*, not 0"),
        ({"encoder_layers": -1}, r"model\.encoder_layers: .*, not -1"),
        ({"dropout": 1.5}, r"model\.dropout: .*, not 1\.5"),
        ({"backbone": "vgg"}, "vgg"),
        ({"querys": 5}, r"model\.querys: there is no such parameter"),
    ],
)
def test_impossible_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build_detr_panoptic(**{"num_classes": 5, **TINY, **arguments})


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.skipif(shutil.which("c++") is None, reason="generated code needs a C++ compiler")
def test_a_compiled_detector_gives_the_same_for_images_of_any_size(anchors: bool) -> None:
    detector = build_detr(4, **TINY, anchors=anchors).eval()
    batches = [torch.randn(count, 3, *size) for count, size in ((1, (64, 96)), (3, (96, 64)))]
    expected = [detector(images) for images in batches]
    names = list(detector.state_dict())

    torch._dynamo.reset()
    counters.clear()
    compile_detector(detector)

    assert list(detector.state_dict()) == names
    for images, outputs in zip(batches, expected, strict=True):
        torch.testing.assert_close(detector(images), outputs, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] >= 2  # backbone and transformer


def test_attention_gain_scales_the_weights_that_read_the_maps_alone() -> None:
    states = []
    for gain in (1.0, 7.0):
        torch.manual_seed(0)
        states.append(build_detr_panoptic(4, attention_gain=gain, **TINY).state_dict())
    expected, amplified = states
    expected["mask_head.lay1.weight"][:, 32:] *= 7.0
    torch.testing.assert_close(amplified, expected, rtol=0, atol=0)


def test_half_precision_gives_float32_predictions(panoptic: DetrPanoptic, make_batch: MakeBatch) -> None:
    images, mask = make_batch([(64, 64), (48, 64)])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        half = panoptic.eval()(images, mask)
    with torch.no_grad():
        full = panoptic(images, mask)

    for name in ("pred_logits", "pred_boxes"):
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], full[name], rtol=0.1, atol=0.1)


def test_on_a_cpu_the_transformer_stays_in_float32(panoptic: DetrPanoptic, make_batch: MakeBatch) -> None:
    seen: list[tuple[type[nn.Module], torch.dtype]] = []

    def note(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append((type(module), output.dtype))

    for module in panoptic.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features = panoptic.eval().features(*make_batch([(64, 64), (48, 64)]))

    assert (nn.Conv2d, torch.bfloat16) in seen
    assert (nn.Linear, torch.bfloat16) not in seen
    assert {each.dtype for each in (features.memory, features.projected, *features.pyramid)} == {torch.float32}


def test_an_exported_model_serves_images_of_any_size(panoptic: DetrPanoptic, make_batch: MakeBatch) -> None:
    panoptic.eval()
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto}, {0: auto, 1: auto, 2: auto})
    program = torch.export.export(panoptic, make_batch([(64, 96), (64, 50)]), dynamic_shapes=shapes)
    images, mask = make_batch([(67, 50), (33, 101), (60, 64)])

    with torch.no_grad():
        exported, expected = program.module()(images, mask), panoptic(images, mask)

    assert sorted(exported) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(exported[name], value, rtol=1e-4, atol=1e-5)


def test_boxes_are_pixels_of_the_best_category(panoptic: DetrPanoptic, make_batch: MakeBatch) -> None:
    sizes, originals = [(64, 64), (48, 64)], [(480, 640), (1000, 30)]
    images, mask = make_batch(sizes)
    categories = tuple({"id": number, "name": str(number)} for number in (1, 2, 4))
    model = DetrModel(panoptic.eval(), ModelSpec(categories=categories))
    with torch.no_grad():
        panoptic.detr.class_embed.weight.mul_(20)
        features = panoptic.features(images, mask)
        found = model.boxes_of(features, Images(images, mask, sizes, originals))
    for image, (height, width) in enumerate(originals):
        expected = []
        for logits, box in zip(features.pred_logits[image], features.pred_boxes[image], strict=True):
            probability = torch.softmax(logits, dim=0)[:-1]
            x, y, w, h = box.tolist()
            if int(probability.argmax()) in (1, 2, 4):
                bbox = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
                expected.append((int(probability.argmax()), bbox, float(probability.max())))
        assert [box["category_id"] for box in found[image]] == [category for category, _, _ in expected]
        for box, (_, bbox, score) in zip(found[image], expected, strict=True):
            assert box["bbox"] == pytest.approx(bbox, abs=1e-3)
            assert box["score"] == pytest.approx(score, rel=1e-5)
    assert 0 < sum(map(len, found)) < 12


# --- masks of chosen queries ---


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 0), (0, 5), (2, 3)],
        [(2, 1), (0, 4), (2, 1), (1, 0), (0, 0)],  # any order, repeated, varying numbers an image
        [(1, 2)],
        [],
    ],
)
def test_masks_of_chosen_queries_are_rows_of_all_masks(
    pairs: list[tuple[int, int]], panoptic: DetrPanoptic, make_batch: MakeBatch
) -> None:
    images, mask = make_batch([(64, 50), (33, 96), (64, 96)])
    batch_index, query_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    panoptic.eval()

    with torch.no_grad():
        everything = panoptic(images, mask)
        features = panoptic.features(images, mask)
        masks = panoptic.masks(features, batch_index, query_index)

    assert masks.shape == (len(pairs), 16, 24)
    torch.testing.assert_close(masks, everything["pred_masks"][batch_index, query_index], rtol=1e-5, atol=1e-5)
    assert torch.equal(features.pred_logits, everything["pred_logits"])
    assert torch.equal(features.pred_boxes, everything["pred_boxes"])


def test_masks_in_chunks_are_the_same(
    panoptic: DetrPanoptic, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, mask = make_batch([(64, 50), (33, 96)])
    panoptic.eval()
    calls = []
    panoptic.mask_head.register_forward_hook(lambda _m, _i, output: calls.append(len(output)))
    with torch.no_grad():
        whole = panoptic(images, mask)["pred_masks"]
        monkeypatch.setattr(model_module, "CHUNK_PIXELS", 5 * 16 * 24)
        chunked = panoptic(images, mask)["pred_masks"]

    assert calls == [12, 5, 5, 2]
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)


# --- freezing ---


def trained_parts(model: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_frozen_detector_stays_in_eval_mode_and_takes_no_gradient(
    panoptic: DetrPanoptic, make_batch: MakeBatch
) -> None:
    images, mask = make_batch([(64, 64), (48, 64)])
    before = {key: value.clone() for key, value in panoptic.state_dict().items()}

    panoptic.train()
    images.requires_grad_()
    first, second = panoptic(images, mask), panoptic(images, mask)
    first["pred_masks"].square().mean().backward()

    assert panoptic.training
    assert panoptic.mask_head.training
    assert not any(module.training for module in panoptic.detr.modules())
    assert "aux_outputs" not in first
    assert torch.equal(first["pred_logits"], second["pred_logits"])  # no dropout
    assert torch.equal(first["pred_masks"], second["pred_masks"])
    assert not first["pred_logits"].requires_grad
    assert not any(p.requires_grad for p in panoptic.detr.parameters())
    assert images.grad is None
    assert trained_parts(panoptic) == {"bbox_attention", "mask_head"}
    assert all(p.grad is not None for m in (panoptic.bbox_attention, panoptic.mask_head) for p in m.parameters())
    for key, value in panoptic.state_dict().items():  # no statistics moved
        assert torch.equal(value, before[key]), key


def test_no_wanted_mask_still_reaches_every_parameter(panoptic: DetrPanoptic, make_batch: MakeBatch) -> None:
    images, mask = make_batch([(64, 64)])
    nothing = torch.zeros(0, dtype=torch.int64)

    panoptic.masks(panoptic.features(images, mask), nothing, nothing).sum().backward()

    for module in (panoptic.bbox_attention, panoptic.mask_head):
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


def test_unfrozen_detector_trains_with_the_masks(make_batch: MakeBatch) -> None:
    images, mask = make_batch([(64, 64), (48, 64)])
    model = build_detr_panoptic(5, **TINY, freeze_detector=False).train()

    outputs = model(images, mask)
    outputs["pred_masks"].square().mean().backward()

    assert model.detr.training
    assert len(outputs["aux_outputs"]) == TINY["decoder_layers"] - 1
    assert trained_parts(model) == {"detr", "bbox_attention", "mask_head"}


def test_class_and_box_losses_reach_every_part_of_the_detector(anchors: bool, make_batch: MakeBatch) -> None:
    images, mask = make_batch([(64, 64), (48, 64)])
    model: Detr = build_detr(5, **TINY, anchors=anchors).train()

    outputs = model(images, mask)
    layers = [outputs, *outputs["aux_outputs"]]
    loss = torch.stack([o["pred_logits"].square().mean() + o["pred_boxes"].square().mean() for o in layers])
    loss.sum().backward()

    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
