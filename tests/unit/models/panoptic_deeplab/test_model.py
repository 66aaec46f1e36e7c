"""The network, and its door."""

from typing import Any

import numpy as np
import pytest
import torch

from construction_panoptic.config.model import PanopticDeeplabSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.panoptic_deeplab import PanopticDeeplabModel, build_panoptic_deeplab
from construction_panoptic.models.protocol import Images
from construction_panoptic.models.spec import ModelSpec

ARCHITECTURE: dict[str, Any] = {
    "backbone": "tiny",
    "norm": "batch",
    "channels": 16,
    "semantic_channels": 8,
    "instance_channels": 8,
    "grouping": {"center_threshold": 0.01, "min_thing_area": 0.0, "min_stuff_area": 0.0},
}
SPEC = ModelSpec(
    kind="panoptic_deeplab",
    architecture=ARCHITECTURE,
    categories=tuple({"id": k, "name": str(k), "isthing": k > 2} for k in range(1, 6)),
    threshold=0.0,
)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = PanopticDeeplabModel.from_spec(SPEC)
    model.network.eval()
    return model


def images(sizes: Any, originals: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    pixels, mask = torch.zeros(len(sizes), 3, height, width), torch.ones(len(sizes), height, width, dtype=torch.bool)
    for k, (rows, columns) in enumerate(sizes):
        pixels[k, :, :rows, :columns] = torch.randn(3, rows, columns, generator=generator)
        mask[k, :rows, :columns] = False
    return Images(pixels, mask if mask.any() else None, sizes, originals)


@pytest.mark.parametrize("size", [(64, 96), (61, 75), (33, 130)])
def test_maps_have_the_stated_sizes(model: Any, size: Any) -> None:
    height, width = size
    outputs = model.network(torch.randn(2, 3, *size))
    h, w = -(-height // 4), -(-width // 4)
    assert outputs["semantic"].shape == (2, 6, -(-height // 2), -(-width // 2))
    assert outputs["center"].shape == (2, h, w)
    assert outputs["offset"].shape == (2, 2, h, w)


def test_the_mean_over_the_image_leaves_out_padding() -> None:
    torch.manual_seed(0)
    decoder = build_panoptic_deeplab(3, PanopticDeeplabSettings(**ARCHITECTURE)).decoder
    seen = []
    decoder.context.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 32:] = True
    maps = [torch.randn(1, width, side, side) for width, side in zip((32, 64, 96, 128), (16, 8, 4, 4), strict=True)]
    decoder(maps, mask)
    torch.testing.assert_close(seen[0], maps[-1][:, :, :2].mean((2, 3), keepdim=True))


def test_segments_cover_the_original_images(model: Any) -> None:
    batch = images([(64, 96), (60, 70)], [(64, 96), (130, 151)])
    found = model.segment(batch)
    assert [each.id_map.shape for each in found] == [(64, 96), (130, 151)]
    assert all(each.segments for each in found)
    for each in found:
        assert each.id_map.dtype == np.int32
        assert all(segment["category_id"] in SPEC.is_thing for segment in each.segments)
        assert all(0 < segment["score"] <= 1 for segment in each.segments)


def test_segmenting_at_thresholds_is_segmenting_with_each(model: Any) -> None:
    batch = images([(64, 96)], [(64, 96)])
    scores = sorted(segment["score"] for segment in model.segment(batch)[0].segments)
    thresholds = [0.0, scores[len(scores) // 2]]
    (several,) = model.segment_at(batch, thresholds)
    for threshold, found in zip(thresholds, several, strict=True):
        (alone,) = model.segment(batch, {"threshold": threshold})
        np.testing.assert_array_equal(found.id_map, alone.id_map)
        assert found.segments == alone.segments
    assert len(alone.segments) < len(scores)


def test_classes_are_made_of_the_features(model: Any) -> None:
    batch = images([(64, 96), (40, 80)], [(64, 96), (40, 80)])
    features = model.features(batch)
    assert features.shape == (2, 16, 16, 24)
    assert model.network.semantic(features, batch.pixels).equal(model.outputs(batch)["semantic"])


def test_the_architecture_is_checked() -> None:
    with pytest.raises(ParameterError, match=r"model\.chanels: there is no such parameter; did you mean channels\?"):
        PanopticDeeplabModel.from_spec(SPEC.model_copy(update={"architecture": {"chanels": 3}}))


def test_the_description_names_the_outputs(model: Any) -> None:
    assert model.describe()["outputs"].keys() == model.network(torch.zeros(1, 3, 32, 32)).keys()


@pytest.mark.medium
def test_the_network_can_be_exported_with_free_sizes(model: Any) -> None:
    free, mask = torch.export.Dim.AUTO, torch.zeros(2, 64, 96, dtype=torch.bool)
    program = torch.export.export(
        model.network,
        (torch.randn(2, 3, 64, 96), mask),
        dynamic_shapes=({0: free, 2: free, 3: free}, {0: free, 1: free, 2: free}),
    )
    batch = images([(60, 75)], [(60, 75)]).pixels
    mask = torch.zeros(1, 60, 75, dtype=torch.bool)
    for name, value in program.module()(batch, mask).items():
        torch.testing.assert_close(value, model.network(batch, mask)[name])


def test_things_and_stuff_have_thresholds_of_their_own(model: Any) -> None:
    batch = images([(64, 96)], [(64, 96)])

    def kinds(**overrides: float) -> set[int]:
        (found,) = model.segment(batch, overrides)
        return {segment["isthing"] for segment in found.segments}

    assert kinds() == {True, False}
    assert kinds(threshold=0.9) == set()
    assert kinds(threshold=0.9, threshold_stuff=0.0) == {False}
    assert kinds(threshold_stuff=0.9) == {True}


def test_merging_of_queries_has_no_meaning_here() -> None:
    changed = SPEC.overridden({"threshold": 0.4, "merging": "masks"})
    assert (changed.threshold, changed.merging, changed.least_score) == (0.4, "pixels", 0.4)
