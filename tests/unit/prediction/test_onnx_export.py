import ast
import base64
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from construction_panoptic.config.training import Preprocessing
from construction_panoptic.evaluation.inference import ImageFiles
from construction_panoptic.models.detr import DetrModel
from construction_panoptic.models.files import export_model
from construction_panoptic.models.panoptic_deeplab import PanopticDeeplabModel
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.prediction import onnx_export
from construction_panoptic.prediction.answering import answer
from construction_panoptic.prediction.onnx_export import OnnxError, onnx_model
from construction_panoptic.training.loading import collate
from tests.unit.prediction.conftest import pixels
from tests.unit.small_model import ARCHITECTURE, small_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "onnx_segments.py"


@pytest.mark.slow
def test_onnx_computes_what_the_model_does(trained: PanopticModel, site: Path, tmp_path: Path) -> None:
    content, report = onnx_model(trained)
    assert report["opset"] == 18
    assert max(report["largest_difference"].values()) < 1e-4
    (tmp_path / "model.onnx").write_bytes(content)

    # Images of different sizes in one batch, with padding.
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.png"}]
    samples = ImageFiles({"images": images}, site, trained.prepare)
    batch = collate([samples[0], samples[1]])
    assert batch.padding_mask is not None
    with torch.no_grad():
        expected = trained.network(batch.images, batch.padding_mask)
    found = onnx_export.run_onnx(content, batch.images.numpy(), batch.padding_mask.numpy())
    for name in expected:
        np.testing.assert_allclose(
            found[name], expected[name].numpy(), rtol=1e-3, atol=1e-3 * expected[name].abs().max()
        )

    for merging in ("pixels", "masks"):
        model = DetrModel(trained.network, trained.spec.overridden({"merging": merging}))
        the_example_sees_what_the_model_does(model, site, tmp_path)


@pytest.mark.slow
def test_a_backbone_of_timms_is_exported_too(trained: PanopticModel) -> None:
    spec = ModelSpec(
        kind="panoptic_deeplab",
        architecture={"backbone": "timm/tf_efficientnet_lite0"},
        categories=trained.spec.categories,
        preprocessing=Preprocessing(evaluation_side=64, max_side=128),
    )
    _, report = onnx_model(PanopticDeeplabModel.from_spec(spec))
    assert max(report["largest_difference"].values()) < 1e-4


@pytest.mark.slow
def test_anchors_are_exported_too() -> None:
    _, report = onnx_model(small_model(architecture=ARCHITECTURE | {"anchors": True}))
    assert max(report["largest_difference"].values()) < 1e-4


def the_example_sees_what_the_model_does(trained: PanopticModel, site: Path, folder: Path) -> None:
    """Run the script of the documentation beside ``model.onnx``, as somebody without this project would."""
    export_model(trained, folder)
    Image.fromarray(pixels(4, 64, 96)).save(site / "as_seen.png")
    # Pillow and torch resize 8-bit pixels with other roundings, which these random masks make much of.
    for name, agreement in (("as_seen.png", 0.9999), ("a.jpg", 0.97), ("a.png", 0.97)):
        out = folder / "segments.png"
        command = [sys.executable, "-I", str(EXAMPLE), str(folder), str(site / name), str(out)]
        done = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True, timeout=120)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        (expected,) = answer(trained, [str(site / name)], folder=site)
        assert len(found) >= 1
        assert [segment["class"] for segment in found] == [segment["class"] for segment in expected["segments"]]
        for one, other in zip(found, expected["segments"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=0.01)
        with Image.open(out) as ids, Image.open(io.BytesIO(base64.b64decode(expected["png"]))) as png:
            assert (np.asarray(ids) == np.asarray(png)[..., 0]).mean() >= agreement


def test_the_example_imports_nothing_of_the_project() -> None:
    nodes = list(ast.walk(ast.parse(EXAMPLE.read_text(encoding="utf-8"))))
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "pathlib", "numpy", "onnxruntime", "PIL"}


def test_the_example_knows_the_threshold_of_stuff() -> None:
    module_spec = importlib.util.spec_from_file_location("onnx_segments", EXAMPLE)
    assert module_spec is not None
    assert module_spec.loader is not None
    example = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(example)
    categories = [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "crane", "isthing": 1}]
    config = {"categories": categories, "merging": "pixels", "threshold": 0.5, "threshold_stuff": None, "tiny_area": 4}
    logits = np.log(np.array([[0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1]], dtype=np.float32))
    masks = np.zeros((2, 4, 4), dtype=np.float32)
    masks[0, :2] = masks[1, 2:] = 1
    for of_stuff, classes in ((None, ["sky", "crane"]), (0.7, ["crane"])):
        _, found = example.segment(logits, masks, config | {"threshold_stuff": of_stuff}, (16, 16), (16, 16))
        assert [segment["class"] for segment in found] == classes


def test_another_result_is_refused(trained: PanopticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_off(_: bytes, images: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = trained.network(torch.from_numpy(images), torch.from_numpy(mask))
        return {name: value.numpy() * (1.01 if name == "pred_boxes" else 1) for name, value in outputs.items()}

    monkeypatch.setattr(onnx_export, "run_onnx", slightly_off)
    with pytest.raises(OnnxError, match=r"does not compute what the model does.*pred_boxes"):
        onnx_export._differences(onnx_export._Outputs(trained), b"", 64)
