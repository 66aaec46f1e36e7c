import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from construction_panoptic.annotations.panoptic_png import decode_id_map, encode_id_map
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.predictions import (
    ImagePrediction,
    evaluating,
    predict_images,
    read_boxes,
    read_predictions,
    write_predictions,
)
from construction_panoptic.evaluation.quality import panoptic_quality
from construction_panoptic.models.detr import DetrModel, DetrPanoptic
from construction_panoptic.models.detr.postprocess import QueryMasks, keep_queries, panoptic_result
from construction_panoptic.models.spec import ModelSpec
from tests.unit.small_model import CATEGORIES, small_model

THRESHOLD = 0.3


def wrapped(network: DetrPanoptic, categories: Any = CATEGORIES) -> DetrModel:
    return DetrModel(network, ModelSpec(categories=categories, threshold=THRESHOLD))


def predict(
    network: DetrPanoptic, data: Any, batch_size: int = 2, categories: Any = CATEGORIES, **options: Any
) -> list[ImagePrediction]:
    return list(predict_images(wrapped(network, categories), data.panoptic_loader(batch_size), **options))


def test_one_prediction_an_image_at_the_size_of_its_file(model: DetrPanoptic, small_data: Any) -> None:
    predictions = predict(model, small_data)
    images = small_data.panoptic["images"]
    assert [p.image_id for p in predictions] == [image["id"] for image in images]
    assert [p.file_name for p in predictions] == [image["file_name"] for image in images]
    for prediction, image in zip(predictions, images, strict=True):
        assert (prediction.height, prediction.width) == (image["height"], image["width"])
        assert decode_id_map(prediction.png).shape == (image["height"], image["width"])


def test_segments_describe_the_png(model: DetrPanoptic, small_data: Any) -> None:
    count = 0
    for prediction in predict(model, small_data):
        ids = decode_id_map(prediction.png)
        assert {s["id"] for s in prediction.segments_info} == set(np.unique(ids)) - {0}
        for segment in prediction.segments_info:
            rows, columns = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(rows)
            x, y, width, height = segment["bbox"]
            assert (x, y, x + width - 1, y + height - 1) == (
                columns.min(),
                rows.min(),
                columns.max(),
                rows.max(),
            )
            assert segment["isthing"] == (segment["category_id"] > 2)
            assert THRESHOLD < segment["score"] <= 1
            count += 1
        json.dumps([prediction.segments_info, prediction.boxes])
    assert count > 5


def test_masks_of_the_kept_queries_give_what_masks_of_all_queries_give(
    model: DetrPanoptic, small_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    masks = model.masks

    def counted(features: Any, batch_index: Any, query_index: Any) -> Any:
        computed.append(len(query_index))
        return masks(features, batch_index, query_index)

    monkeypatch.setattr(model, "masks", counted)
    predictions = iter(predict(model, small_data, batch_size=3))
    monkeypatch.undo()
    is_thing = {c["id"]: bool(c["isthing"]) for c in small_data.panoptic["categories"]}
    model.eval()
    kept = 0
    for batch in small_data.panoptic_loader(3):
        with torch.no_grad():
            outputs = model(batch.images, batch.padding_mask)
        for logits, all_masks, target in zip(outputs["pred_logits"], outputs["pred_masks"], batch.targets, strict=True):
            queries, scores, labels = keep_queries(logits, THRESHOLD)
            kept += sum(label in is_thing for label in labels.tolist())
            height, width = target["size"].tolist()
            expected = panoptic_result(
                QueryMasks(all_masks[queries][:, : height // 4, : width // 4], scores, labels),
                processed_size=(height, width),
                target_size=target["orig_size"].tolist(),
                is_thing=is_thing,
            )
            found = next(predictions)
            np.testing.assert_array_equal(decode_id_map(found.png), expected.id_map)
            assert [s["category_id"] for s in found.segments_info] == [s["category_id"] for s in expected.segments]
    assert 0 < sum(computed) == kept < 9 * 5


def test_boxes_are_those_of_every_query(model: DetrPanoptic, small_data: Any) -> None:
    """DETR's post-processing, written out: best class that is not no-object, box in pixels of the file."""
    boxes = [box for found in predict_images(wrapped(model), small_data.detection_loader(1)) for box in found.boxes]
    model.eval()
    expected = []
    for batch in small_data.detection_loader(1):
        with torch.no_grad():
            outputs = model.detr(batch.images, batch.padding_mask)
        probabilities = outputs["pred_logits"][0].softmax(-1)[:, :-1]
        height, width = batch.targets[0]["orig_size"].tolist()
        for probability, (cx, cy, w, h) in zip(probabilities, outputs["pred_boxes"][0].tolist(), strict=True):
            label = int(probability.argmax())
            if label > 0:
                box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
                expected.append((int(batch.targets[0]["image_id"]), label, *box, float(probability.max())))
    found = [(b["image_id"], b["category_id"], *b["bbox"], b["score"]) for b in boxes]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert len({row[1] for row in found}) > 1


def test_classes_that_are_not_categories_are_no_object(model: DetrPanoptic, small_data: Any) -> None:
    with torch.no_grad():
        model.detr.class_embed.bias[0] = 100.0  # id 0 exists as an output alone
    for prediction in predict(model, small_data):
        assert prediction.segments_info == []
        assert prediction.boxes == []
        assert not decode_id_map(prediction.png).any()


def test_only_some_categories(model: DetrPanoptic, small_data: Any) -> None:
    seen = {s["category_id"] for p in predict(model, small_data) for s in p.segments_info}
    assert len(seen) > 1
    chosen = min(seen)
    categories = [c for c in small_data.panoptic["categories"] if c["id"] == chosen]
    predictions = predict(model, small_data, categories=categories)
    assert {s["category_id"] for p in predictions for s in p.segments_info} == {chosen}
    assert {b["category_id"] for p in predictions for b in p.boxes} <= {chosen}


@pytest.mark.parametrize("merging", ["pixels", "masks"])
def test_things_and_stuff_have_thresholds_of_their_own(small_data: Any, merging: str) -> None:
    model = small_model(merging=merging)

    def kinds(**overrides: float) -> set[int]:
        found = predict_images(model, small_data.panoptic_loader(), overrides=overrides)
        return {segment["isthing"] for prediction in found for segment in prediction.segments_info}

    assert kinds(threshold=0.2) == {0, 1}
    assert kinds(threshold=0.999, threshold_stuff=0.2) == {0}
    assert kinds(threshold=0.2, threshold_stuff=0.999) == {1}


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index] # noqa: NPY002


def test_leaves_modes_gradients_and_random_numbers_alone(model: DetrPanoptic, small_data: Any) -> None:
    model.mask_head.gn1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = random_states()
    loader = small_data.panoptic_loader()
    for prediction in predict_images(wrapped(model), loader):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert prediction.png
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert random_states() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluating_restores_modes_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with evaluating(model):
            assert not model[0].training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [module.training for module in model] == [True, False]


@pytest.mark.gpu
def test_cuda_and_cpu_agree(model: DetrPanoptic, small_data: Any) -> None:
    on_cpu = predict(model, small_data)
    on_cuda = predict(model.cuda(), small_data, precision="float32")
    for cpu, cuda in zip(on_cpu, on_cuda, strict=True):
        assert np.mean(decode_id_map(cpu.png) == decode_id_map(cuda.png)) > 0.99
    assert len(predict(model, small_data, precision="bfloat16")) == len(on_cpu)


def prediction(image_id: int = 1, file_name: str = "a.jpg", value: int = 1) -> ImagePrediction:
    ids = np.full((3, 4), value)
    return ImagePrediction(
        image_id=image_id,
        file_name=file_name,
        width=4,
        height=3,
        segments_info=[
            {"id": value, "category_id": 2, "isthing": False, "area": 12, "bbox": [0, 0, 4, 3], "score": 0.9}
        ],
        boxes=[{"image_id": image_id, "category_id": 2, "bbox": [0.5, 0.0, 3.5, 3.0], "score": 0.9}],
        categories=({"id": 2, "name": "b", "isthing": 0},),
        segmentation=encode_id_map(ids),
    )


def test_written_predictions_are_read_back(tmp_path: Path) -> None:
    predictions = [prediction(), prediction(5, "sub/b.png", 70_000)]
    write_predictions(iter(predictions), tmp_path / "out")
    assert list(read_predictions(tmp_path / "out")) == predictions
    assert read_boxes(tmp_path / "out") == [box for p in predictions for box in p.boxes]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.png", "boxes.jsonl", "predictions.json", "sub__b.png"]


def test_no_picture_takes_the_name_of_another(tmp_path: Path) -> None:
    names = enumerate(["b/3.jpg", "b.jpg", "b.png"], 1)
    predictions = [prediction(number, name, number) for number, name in names]
    write_predictions(iter(predictions), tmp_path)
    assert list(read_predictions(tmp_path)) == predictions


def test_written_predictions_are_coco_panoptic_results(model: DetrPanoptic, small_data: Any, tmp_path: Path) -> None:
    write_predictions(predict(model, small_data), tmp_path)
    data = json.loads((tmp_path / "predictions.json").read_text())
    assert data["images"] == [
        {key: image[key] for key in ("id", "file_name", "width", "height")} for image in small_data.panoptic["images"]
    ]
    assert data["categories"] == small_data.panoptic["categories"]
    against_itself = {**data, "annotations": [dict(a) for a in data["annotations"]]}
    quality = panoptic_quality(against_itself, tmp_path, tmp_path / "predictions.json", tmp_path)
    assert quality["All"]["pq"] == 1
    quality = panoptic_quality(small_data.panoptic, small_data.pngs, tmp_path / "predictions.json", tmp_path)
    assert 0 <= quality["All"]["pq"] < 1


def test_images_with_the_same_stem_get_their_own_png(tmp_path: Path) -> None:
    write_predictions([prediction(1, "a.jpg", 1), prediction(2, "a.png", 2), prediction(3, "/a.bmp", 3)], tmp_path)
    assert [int(decode_id_map(p.png).max()) for p in read_predictions(tmp_path)] == [1, 2, 3]


def test_no_prediction_at_all(tmp_path: Path) -> None:
    write_predictions([], tmp_path)
    assert list(read_predictions(tmp_path)) == read_boxes(tmp_path) == []


def test_stale_pngs_go_and_other_files_stay(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "photo.png")
    write_predictions([prediction(1, "a.jpg"), prediction(2, "b.jpg")], tmp_path)
    (tmp_path / "predictions.json").unlink()
    write_predictions([prediction(2, "b.jpg")], tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["b.png", "photo.png"]


def test_predictions_that_were_cut_short_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    def broken() -> Iterator[ImagePrediction]:
        yield prediction()
        raise RuntimeError("out of memory")

    write_predictions([prediction(9, "old.jpg")], tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_predictions(broken(), tmp_path)
    assert not (tmp_path / "predictions.json").exists()
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(InputDataError, match=r"predictions\.json does not exist"):
        list(read_predictions(tmp_path))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write_predictions([prediction()], tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputDataError, match=r"a\.png does not exist"):
        list(read_predictions(tmp_path))
    (tmp_path / "boxes.jsonl").write_text("{")
    with pytest.raises(InputDataError, match=r"boxes\.jsonl cannot be read"):
        read_boxes(tmp_path)
    (tmp_path / "boxes.jsonl").unlink()
    with pytest.raises(InputDataError, match="predict first"):
        read_boxes(tmp_path)
    (tmp_path / "boxes.jsonl").write_text("")
    with pytest.raises(InputDataError, match="not of one run"):
        list(read_predictions(tmp_path))
