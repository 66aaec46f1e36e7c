"""Cache of what a frozen detector gives for each training image without augmentation, so that later epochs skip it.

With a cache the detector sees one image at a time, padded as its batch is: what is kept does not depend on the others,
and a training is the same number for number whatever is kept. Without one, it is the same up to rounding.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from construction_panoptic.config.training import MaskHeadSettings
from construction_panoptic.files import atomic_path, write_json
from construction_panoptic.models.detr.matcher import Matches
from construction_panoptic.models.detr.model import PanopticFeatures
from construction_panoptic.parallel.device import resolve_device

logger = logging.getLogger(__name__)

_FOLDER_NOTE = "frozen_features.json"  # tells a folder that may be emptied from one that may not
_PYRAMID, _MATCH = ("pyramid_0", "pyramid_1", "pyramid_2"), ("query_index", "target_index")

Entry = dict[str, Tensor]


class FeatureCache:
    """Keeps features and matches of images, in memory, until they take ``limit`` bytes; the first come stay."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._closed = False
        self._sizes: dict[str, int] = {}  # bytes of each entry that is kept
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def used(self) -> int:
        """Bytes of all that is kept."""
        return sum(self._sizes.values())

    def get(self, name: str, device: torch.device) -> Entry | None:
        """The entry of a name on ``device``; None where it is not kept."""
        entry = self._read(name)
        return None if entry is None else {key: value.to(device, non_blocking=True) for key, value in entry.items()}

    def put(self, name: str, entry: Entry) -> None:
        """Keep an entry if there is room for it; what cannot be written costs a warning."""
        if self._closed:
            return
        if self.used + _entry_bytes(entry) > self._limit:
            self._close(f"is full with {len(self)} entries ({self.used / 2**20:.0f} MiB, see cache_limit_mb)")
            return
        try:
            self._write(name, {key: value.detach().to("cpu", copy=True) for key, value in entry.items()})
        except (OSError, RuntimeError) as error:
            self._close(f"takes no more than {len(self)} entries ({str(error).splitlines()[0]})")

    def _close(self, what: str) -> None:
        self._closed = True
        logger.warning("The cache of frozen features %s; the detector runs anew for all other images.", what)

    def _read(self, name: str) -> Entry | None:
        return self._entries.get(name)

    def _write(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry
        self._sizes[name] = _entry_bytes(entry)


class DiskCache(FeatureCache):
    """The same in files, which a resumed or repeated training finds again.

    ``content`` is plain data of all that the entries depend on; a folder made for other content is emptied.
    """

    def __init__(self, limit: int, folder: Path | str, content: Mapping[str, Any]) -> None:
        super().__init__(limit)
        self._folder = Path(folder)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        note = self._folder / _FOLDER_NOTE
        if not note.is_file() or json.loads(note.read_text()) != {"digest": digest}:
            for path in self._folder.glob("features_*.pt"):
                path.unlink(missing_ok=True)
            write_json(note, {"digest": digest})
        self._sizes = {path.name: path.stat().st_size for path in self._folder.glob("features_*.pt")}

    def _read(self, name: str) -> Entry | None:
        path = self._path(name)
        if path.name not in self._sizes:
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError):
            del self._sizes[path.name]
            return None

    def _write(self, name: str, entry: Entry) -> None:
        path = self._path(name)
        with atomic_path(path) as temporary:
            torch.save(entry, temporary)
        self._sizes[path.name] = path.stat().st_size

    def _path(self, name: str) -> Path:
        return self._folder / f"features_{hashlib.sha256(name.encode()).hexdigest()[:32]}.pt"


def open_cache(settings: MaskHeadSettings, fingerprint: Mapping[str, Any]) -> FeatureCache | None:
    """The cache that a training's settings want; ``fingerprint`` is of data set, model and detector weights."""
    if settings.cache == "none":
        return None
    limit = settings.cache_limit_mb * 2**20
    if settings.cache == "memory":
        return FeatureCache(limit)
    content = {
        **{name: value for name, value in fingerprint.items() if name != "settings"},
        **settings.model_dump(mode="json", include={"augmentation", "matching", "precision", "device"}),
        "torch": torch.__version__,
        "device_type": resolve_device(settings.device).type,
    }
    cache = DiskCache(limit, settings.cache_folder, content)
    if len(cache):
        logger.info("%d entries of frozen features found in %s.", len(cache), settings.cache_folder)
    return cache


def _entry_bytes(entry: Entry) -> int:
    return sum(value.nbytes for value in entry.values())


def pack(features: PanopticFeatures, matched: tuple[Tensor, Tensor]) -> Entry:
    """One image's features (B = 1) and its match (query and target indices, int64 [N]) as named tensors."""
    kept = {name: value for name, value in vars(features).items() if isinstance(value, Tensor)}
    pyramid, indices = zip(_PYRAMID, features.pyramid, strict=True), zip(_MATCH, matched, strict=True)
    return {**kept, **dict(pyramid), **dict(indices)}


def unpack(entries: Sequence[Entry]) -> tuple[PanopticFeatures, Matches]:
    """Features and matches of a batch from its images' entries, which are of one size."""
    kept: dict[str, Any] = {"padding_mask": None}
    for name in entries[0].keys() - _MATCH:
        parts = [entry[name] for entry in entries]
        kept[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    kept["pyramid"] = tuple(kept.pop(name) for name in _PYRAMID)
    query, target = _MATCH
    return PanopticFeatures(**kept), [(entry[query], entry[target]) for entry in entries]
