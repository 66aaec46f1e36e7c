"""Batches whose loss was not finite: saved with all that it takes to compute them again, and replayed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from construction_panoptic.config.base import parse
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings, MaskHeadSettings
from construction_panoptic.errors import CheckpointError
from construction_panoptic.files import atomic_path
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.parallel.device import autocast
from construction_panoptic.training.loading import Batch
from construction_panoptic.training.state import snapshot
from construction_panoptic.training.tasks.stages import DetectionStage, MaskHeadStage, Stage


def save_batch(path: Path | str, batch: Batch, **known: Any) -> None:
    """Write a batch and what is known about it, whole or not at all.

    Args:
        path: the file, which ``torch.load`` reads with ``weights_only=True``.
        batch: the batch.
        **known: plain data and tensors; `replay` reads ``stage``, ``model`` (weights before the step, or
            None), ``torch_rng``, ``settings``, ``fingerprint`` and ``extra``.
    """
    content = {
        "images": batch.images,
        "padding_mask": batch.padding_mask,
        "targets": batch.targets,
        "file_names": batch.file_names,
        **known,
    }
    with atomic_path(path) as temporary:
        torch.save(snapshot(content), temporary)


def replay(saved: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> dict[str, float | str]:
    """Compute the loss of a saved batch again, on the CPU, with the random numbers that it had.

    Args:
        saved: content of a file of `save_batch`.
        weights: the model's weights; by default those in the file.

    Returns:
        ``loss``, its terms and ``gradient_norm``; or ``error`` where the outputs are not finite. And
        ``first_module``, the first module with an output that is not finite, if there is one.

    Raises:
        CheckpointError: the file holds no such batch, or no weights and none are given.
    """
    weights = weights or saved.get("model")
    if "images" not in saved or "fingerprint" not in saved:
        raise CheckpointError("this is not a saved batch")
    if weights is None:
        raise CheckpointError("the file holds no weights: add --checkpoint and the stage's last checkpoint")
    stage, precision = _build(saved)
    stage.model.load_state_dict(weights)
    stage.model.train()
    batch = Batch(saved["images"], saved["padding_mask"], saved["targets"], saved["file_names"])
    found: dict[str, float | str] = {}
    with torch.random.fork_rng(devices=[]), _first_non_finite(stage.model, found):
        torch.set_rng_state(saved["torch_rng"])
        try:
            with autocast(torch.device("cpu"), precision):
                loss, terms = stage.step(batch)
        except FloatingPointError as error:
            return {"error": str(error), **found}
    loss.backward()
    gradients = [parameter.grad for parameter in stage.model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    values = {"loss": loss.detach(), **terms, "gradient_norm": norm}
    return {**{name: float(value) for name, value in values.items()}, **found}


def _build(saved: Mapping[str, Any]) -> tuple[Stage, str]:
    architecture = parse(DetrSettings, saved["fingerprint"]["model"], "model").model_dump()
    num_classes = max(category["id"] for category in saved["extra"]["categories"]) + 1
    if saved["stage"] == MaskHeadStage.name:
        mask_head = parse(MaskHeadSettings, saved["settings"], "mask_head")
        return MaskHeadStage(build_detr_panoptic(num_classes, **architecture), mask_head), mask_head.precision
    detection = parse(DetectionSettings, saved["settings"], "detection")
    return DetectionStage(build_detr(num_classes, **architecture), detection), detection.precision


@contextmanager
def _first_non_finite(model: nn.Module, found: dict[str, float | str]) -> Iterator[None]:
    """Note the name of the first module of ``model`` whose output is not finite."""

    def look(name: str, output: Any) -> None:
        if "first_module" not in found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
            found["first_module"] = name

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
