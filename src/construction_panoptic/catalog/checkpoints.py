"""Checkpoints: written whole or not at all, and complete only when their training is."""

import json
from pathlib import Path
from typing import Any

import torch
from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from construction_panoptic.files import atomic_path
from construction_panoptic.models.files import read_checkpoint

UNCHANGED = "unchanged"
"""What a training node yields for a checkpoint that this epoch did not change; saving it does nothing."""


class CheckpointDataset(AbstractDataset[Any, Any]):
    """A training checkpoint: a nested dict of tensors, lists, strings and numbers (``torch.save``).

    It is written to a temporary file, synced to disk and renamed. It *exists* for Kedro only when its training is
    finished (``checkpoint["finished"]``), so that ``kedro run --only-missing-outputs`` goes on with an interrupted
    training instead of skipping it.

    Args:
        filepath: local path of the file.
        complete_when_finished: False makes any readable file count as existing, as for the best checkpoint.
        metadata: arbitrary metadata, for plugins.
    """

    def __init__(
        self, *, filepath: str, complete_when_finished: bool = True, metadata: dict[str, Any] | None = None
    ) -> None:
        self._filepath = Path(filepath)
        self._complete_when_finished = complete_when_finished
        self.metadata = metadata

    def load(self) -> dict[str, Any]:
        """Read the checkpoint onto the CPU; nothing but plain data is unpickled.

        Raises:
            CheckpointError: the file is damaged, or not a checkpoint of this project.
        """
        return read_checkpoint(self._filepath, checked=True)

    def save(self, data: dict[str, Any] | str) -> None:
        """Write the checkpoint; ``UNCHANGED`` leaves the file as it is."""
        if isinstance(data, str):
            return
        # To a stream: given a path, torch writes its name, which is a new one each time, into the file.
        with atomic_path(self._filepath, sync=True) as temporary, temporary.open("wb") as stream:
            torch.save(data, stream)

    def preview(self) -> JSONPreview:
        """Say what the checkpoint is: epoch, best value, settings; no weights."""
        checkpoint = read_checkpoint(self._filepath)
        return JSONPreview(json.dumps(described(checkpoint)))

    def invalidate(self) -> None:
        """Remove a finished checkpoint; an unfinished one stays, since its training can still go on from it."""
        if self._exists():
            self._filepath.unlink(missing_ok=True)

    def _exists(self) -> bool:
        if not self._filepath.is_file():
            return False
        if not self._complete_when_finished:
            return True
        return bool(read_checkpoint(self._filepath).get("finished", False))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class ResumeDataset(AbstractDataset[Any, Any]):
    """The same file as a ``CheckpointDataset``, read at the start of a training; None when there is none."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> dict[str, Any] | None:
        """Read the checkpoint if its training is unfinished; None when there is nothing to go on from."""
        if not self._filepath.is_file():
            return None
        checkpoint = read_checkpoint(self._filepath, checked=True)
        return None if checkpoint.get("finished") else checkpoint

    def preview(self) -> JSONPreview:
        """Say what a training would go on from."""
        checkpoint = self.load()
        return JSONPreview(json.dumps(described(checkpoint) if checkpoint else {"goes on from": "nothing"}))

    def save(self, data: Any) -> None:
        """Refuse: the training's own checkpoint entry writes this file."""
        raise NotImplementedError("this entry only reads; the stage's checkpoint entry writes the file")

    def _exists(self) -> bool:
        return True  # "no checkpoint" is a valid answer

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def described(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Say what a checkpoint is: epoch, best value, settings, size of the model; no weights."""
    shown = ("stage", "epoch", "finished", "best", "settings")
    told: dict[str, Any] = {key: checkpoint[key] for key in shown if key in checkpoint}
    return {**told, "numbers_in_model": sum(tensor.numel() for tensor in checkpoint.get("model", {}).values())}
