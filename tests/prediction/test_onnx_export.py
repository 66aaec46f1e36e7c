import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from construction_panoptic.evaluation.predicting import ImageFiles
from construction_panoptic.prediction import onnx_export
from construction_panoptic.prediction.models import TrainedModel
from construction_panoptic.prediction.onnx_export import OUTPUTS, OnnxError, onnx_model
from construction_panoptic.training.loading import collate

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# A stranger's script: numpy, Pillow and onnxruntime alone.
STRANGER = """
import sys, numpy, onnxruntime
from PIL import Image
image = Image.open(sys.argv[2]).convert("RGB").resize((96, 64))
pixels = (numpy.asarray(image, numpy.float32) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
batch = pixels.transpose(2, 0, 1)[None].astype(numpy.float32)
session = onnxruntime.InferenceSession(sys.argv[1])
feed = {"images": batch, "padding_mask": numpy.zeros((1, 64, 96), bool)}
logits, boxes, masks = session.run(["pred_logits", "pred_boxes", "pred_masks"], feed)
assert "construction_panoptic" not in sys.modules and "torch" not in sys.modules
numpy.savez(sys.argv[3], pixels=batch, pred_logits=logits, pred_boxes=boxes, pred_masks=masks)
"""


@pytest.mark.slow
def test_onnx_computes_what_the_model_does(trained: TrainedModel, site: Path, tmp_path: Path) -> None:
    content, report = onnx_model(trained)
    assert report["opset"] == 18
    assert max(report["largest_difference"].values()) < 1e-4
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    # Images of different sizes in one batch, with padding.
    samples = ImageFiles([site / "a.jpg", site / "a.png"], trained.augmentation)
    batch = collate([samples[0], samples[1]])
    assert batch.padding_mask is not None
    with torch.no_grad():
        expected = trained.model(batch.images, batch.padding_mask)
    found = onnx_export.run_onnx(path, batch.images.numpy(), batch.padding_mask.numpy())
    for name in OUTPUTS:
        np.testing.assert_allclose(
            found[name], expected[name].numpy(), rtol=1e-3, atol=1e-3 * expected[name].abs().max()
        )

    arguments = [str(path), str(site / "a.jpg"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, cwd=tmp_path)
    with np.load(tmp_path / "out.npz") as strangers, torch.no_grad():
        images = torch.from_numpy(strangers["pixels"])
        expected = trained.model(images, torch.zeros(1, 64, 96, dtype=torch.bool))
        for name in OUTPUTS:
            scale = float(expected[name].abs().max())
            np.testing.assert_allclose(strangers[name], expected[name].numpy(), rtol=1e-3, atol=1e-3 * scale)


def test_another_result_is_refused(trained: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def slightly_off(_: bytes, images: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = trained.model(torch.from_numpy(images), torch.from_numpy(mask))
        return {name: outputs[name].numpy() * (1.01 if name == "pred_boxes" else 1) for name in OUTPUTS}

    monkeypatch.setattr(onnx_export, "run_onnx", slightly_off)
    with pytest.raises(OnnxError, match=r"does not compute what the model does.*pred_boxes"):
        onnx_export._differences(onnx_export._Outputs(trained.model), b"", 64)
