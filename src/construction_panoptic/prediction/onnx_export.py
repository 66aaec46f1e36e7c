"""A model as ONNX, for any runtime that knows nothing of this project."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from construction_panoptic.errors import UserError
from construction_panoptic.models.protocol import PanopticModel

OPSET = 18
INPUTS = ("images", "padding_mask")
TOLERANCE = 1e-3  # of the largest value of an output


class OnnxError(UserError):
    """The ONNX file cannot be made here, or does not compute what the model does."""


class _Outputs(nn.Module):
    """A model's network with its outputs in a fixed order."""

    def __init__(self, model: PanopticModel) -> None:
        super().__init__()
        self.network = model.network
        self.names = tuple(model.describe()["outputs"])

    def forward(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(images, padding_mask)
        return tuple(outputs[name] for name in self.names)


def onnx_model(model: PanopticModel) -> tuple[bytes, dict[str, Any]]:
    """Convert a model to ONNX, for any batch and image size, and check that it computes the same in other sizes.

    Gives the content of the file, and a report: ``opset``, ``inputs``, ``outputs``, ``largest_difference`` of each
    output relative to its largest value. The network is moved to the CPU. `OnnxError`: onnx, onnxscript or onnxruntime
    is not installed, or the outputs differ.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OnnxError("ONNX needs onnx, onnxscript and onnxruntime: pip install '.[export]'.") from error
    network = _Outputs(model).cpu().eval()
    side = model.spec.preprocessing.evaluation_side
    dynamic = torch.export.Dim.DYNAMIC
    with _quiet():
        program = torch.onnx.export(
            network,
            _noise([(side, side + side // 2), (side - side // 4, side)]),
            input_names=INPUTS,
            output_names=network.names,
            dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic, 1: dynamic, 2: dynamic}),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    content = program.model_proto.SerializeToString()
    differences = _differences(network, content, side)
    return content, {"opset": OPSET, "inputs": INPUTS, "outputs": network.names, "largest_difference": differences}


def run_onnx(model: bytes, images: np.ndarray, padding_mask: np.ndarray) -> dict[str, np.ndarray]:
    """Run the content of an ONNX file on the CPU; gives the outputs by their names.

    ``images`` are float32 [B, 3, H, W], normalised, 0 on padding; ``padding_mask`` is bool [B, H, W], True on padding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    values = session.run(None, dict(zip(INPUTS, (images, padding_mask), strict=True)))
    return dict(zip((output.name for output in session.get_outputs()), values, strict=True))


def _differences(network: _Outputs, content: bytes, side: int) -> dict[str, float]:
    differences = dict.fromkeys(network.names, 0.0)
    for sizes in ([(side + 3, side)], [(side // 2, side), (side, side - 5), (side - 1, side // 2)]):
        images, mask = _noise(sizes)
        with torch.no_grad():
            expected = network(images, mask)
        found = run_onnx(content, images.numpy(), mask.numpy())
        for name, value in zip(network.names, expected, strict=True):
            difference = np.abs(found[name] - value.numpy()).max() / max(1.0, float(value.abs().max()))
            differences[name] = max(differences[name], float(difference))
    if wrong := {name: value for name, value in differences.items() if not value <= TOLERANCE}:
        raise OnnxError(f"The ONNX file does not compute what the model does; relative differences: {wrong}.")
    return differences


def _noise(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """A padded batch of noise images of the heights and widths given."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    images = torch.zeros(len(sizes), 3, height, width)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for number, (h, w) in enumerate(sizes):
        images[number, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[number, :h, :w] = False
    return images, mask


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's remarks on its own workings from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
