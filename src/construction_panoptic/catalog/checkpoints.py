"""Models: checkpoints, complete only when their training is, and what is exported of them."""

import json
from typing import Any

import torch
from kedro_datasets._typing import JSONPreview

from construction_panoptic.catalog.files import LocalDataset
from construction_panoptic.files import atomic_path
from construction_panoptic.models.files import CONFIG, export_model, load_exported, read_checkpoint
from construction_panoptic.models.protocol import PanopticModel


class CheckpointDataset(LocalDataset):
    """A training checkpoint: a nested dict of tensors, lists, strings and numbers (``torch.save``).

    It is written to a temporary file, synced to disk and renamed. It *exists* for Kedro only when its training is
    finished (``checkpoint["finished"]``), so that a run of what is missing goes on with an interrupted training;
    with ``complete_when_finished: false``, as for the best checkpoint, as soon as there is a file.
    """

    def __init__(
        self, *, filepath: str, complete_when_finished: bool = True, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath=filepath, metadata=metadata)
        self._complete_when_finished = complete_when_finished

    def load(self) -> dict[str, Any]:
        """Read the checkpoint onto the CPU; `CheckpointError`: it is damaged, or none of this project."""
        return read_checkpoint(self._filepath, checked=True)

    def save(self, data: dict[str, Any]) -> None:
        """Write the checkpoint."""
        # To a stream: given a path, torch writes its name, which is a new one each time, into the file.
        with atomic_path(self._filepath, sync=True) as temporary, temporary.open("wb") as stream:
            torch.save(data, stream)

    def preview(self) -> JSONPreview:
        """Say what the checkpoint is: epoch, best value, settings; no weights."""
        return JSONPreview(json.dumps(_described(read_checkpoint(self._filepath))))

    def _exists(self) -> bool:
        if not self._filepath.is_file():
            return False
        return not self._complete_when_finished or bool(read_checkpoint(self._filepath).get("finished"))


class ResumeDataset(LocalDataset):
    """The same file as a ``CheckpointDataset``, read at the start of a training; None when there is none."""

    def load(self) -> dict[str, Any] | None:
        """Read the checkpoint if its training is unfinished; None when there is nothing to go on from."""
        if not self._filepath.is_file():
            return None
        checkpoint = read_checkpoint(self._filepath, checked=True)
        return None if checkpoint.get("finished") else checkpoint

    def preview(self) -> JSONPreview:
        """Say what a training would go on from."""
        checkpoint = self.load()
        return JSONPreview(json.dumps(_described(checkpoint) if checkpoint else {"goes on from": "nothing"}))

    def _exists(self) -> bool:
        return True  # "no checkpoint" is a valid answer


class ExportedModelDataset(LocalDataset):
    """A folder with ``model.safetensors`` and ``config.json``."""

    INDEX = CONFIG

    def load(self) -> PanopticModel:
        """Build the model; see `load_exported`."""
        return load_exported(self._filepath)

    def save(self, data: PanopticModel) -> None:
        """Write both files; see `export_model`. An ONNX file beside them is of another model, and goes."""
        for name in ("model.onnx", "onnx_report.json"):
            (self._filepath / name).unlink(missing_ok=True)
        export_model(data, self._filepath)


def _described(checkpoint: dict[str, Any]) -> dict[str, Any]:
    shown = ("stage", "epoch", "finished", "best", "settings")
    told: dict[str, Any] = {key: checkpoint[key] for key in shown if key in checkpoint}
    return {**told, "numbers_in_model": sum(tensor.numel() for tensor in checkpoint.get("model", {}).values())}
