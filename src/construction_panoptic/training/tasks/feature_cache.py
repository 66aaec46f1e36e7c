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

MEBIBYTE = 2**20
_FOLDER_NOTE = "frozen_features.json"  # tells a folder that may be emptied from one that may not

_KEPT = ("pred_logits", "pred_boxes", "queries", "memory", "projected")

Entry = dict[str, Tensor]


class MemoryStore:
    """Entries in this process's memory; ``used`` is the bytes that they take."""

    def __init__(self) -> None:
        self.used = 0
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, name: str) -> Entry | None:
        """The entry of a name; None where there is none."""
        return self._entries.get(name)

    def write(self, name: str, entry: Entry) -> None:
        """Keep an entry."""
        self._entries[name] = entry
        self.used += entry_bytes(entry)


class DiskStore:
    """Entries as files, which a resumed or repeated training finds again.

    ``content`` is plain data of all that the entries depend on; a folder made for other content is emptied.
    """

    def __init__(self, folder: Path | str, content: Mapping[str, Any]) -> None:
        self._folder = Path(folder)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        note = self._folder / _FOLDER_NOTE
        if not note.is_file() or json.loads(note.read_text()) != {"digest": digest}:
            for path in self._folder.glob("features_*.pt"):
                path.unlink(missing_ok=True)
            write_json(note, {"digest": digest})
        self._sizes = {path.name: path.stat().st_size for path in self._folder.glob("features_*.pt")}
        self.used = sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._sizes)

    def read(self, name: str) -> Entry | None:
        """The entry of a name; None where there is none, or its file cannot be read."""
        path = self._path(name)
        if path.name not in self._sizes:
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError):
            self.used -= self._sizes.pop(path.name)
            return None

    def write(self, name: str, entry: Entry) -> None:
        """Write the file of an entry, whole or not at all."""
        path = self._path(name)
        with atomic_path(path) as temporary:
            torch.save(entry, temporary)
        self._sizes[path.name] = path.stat().st_size
        self.used += self._sizes[path.name]

    def _path(self, name: str) -> Path:
        return self._folder / f"features_{hashlib.sha256(name.encode()).hexdigest()[:32]}.pt"


class FeatureCache:
    """Keeps features and matches of images in a store until they reach ``limit`` bytes; the first come stay."""

    def __init__(self, store: MemoryStore | DiskStore, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._closed = False

    def __len__(self) -> int:
        return len(self._store)

    @property
    def used_mb(self) -> float:
        """What is kept, MiB."""
        return self._store.used / MEBIBYTE

    def get(self, name: str, device: torch.device) -> Entry | None:
        """The entry of a name on ``device``; None where it is not kept."""
        entry = self._store.read(name)
        if entry is None:
            return None
        return {key: value.to(device, non_blocking=True) for key, value in entry.items()}

    def put(self, name: str, entry: Entry) -> None:
        """Keep an entry if there is room for it; what cannot be written costs a warning."""
        if self._closed:
            return
        if self._store.used + entry_bytes(entry) > self._limit:
            self._close(f"is full with {len(self)} entries ({self.used_mb:.0f} MiB, see cache_limit_mb)")
            return
        try:
            self._store.write(name, {key: value.detach().to("cpu", copy=True) for key, value in entry.items()})
        except (OSError, RuntimeError) as error:
            self._close(f"takes no more than {len(self)} entries ({str(error).splitlines()[0]})")

    def _close(self, what: str) -> None:
        self._closed = True
        logger.warning("The cache of frozen features %s; the detector runs anew for all other images.", what)


def open_cache(settings: MaskHeadSettings, fingerprint: Mapping[str, Any]) -> FeatureCache | None:
    """The cache that a training's settings want; ``fingerprint`` is of data set, model and detector weights."""
    if settings.cache == "none":
        return None
    if settings.cache == "memory":
        return FeatureCache(MemoryStore(), settings.cache_limit_mb * MEBIBYTE)
    content = {
        **{name: value for name, value in fingerprint.items() if name != "settings"},
        **settings.model_dump(mode="json", include={"augmentation", "matching", "precision", "device"}),
        "torch": torch.__version__,
        "device_type": resolve_device(settings.device).type,
    }
    cache = FeatureCache(DiskStore(settings.cache_folder, content), settings.cache_limit_mb * MEBIBYTE)
    if len(cache):
        logger.info("%d entries of frozen features found in %s.", len(cache), settings.cache_folder)
    return cache


def entry_bytes(entry: Entry) -> int:
    """Bytes of an entry's tensors."""
    return sum(value.nbytes for value in entry.values())


def pack(features: PanopticFeatures, matched: tuple[Tensor, Tensor]) -> Entry:
    """One image's features (B = 1) and its match (query and target indices, int64 [N]) as named tensors."""
    entry = {name: getattr(features, name) for name in _KEPT}
    entry |= {f"pyramid_{level}": stage for level, stage in enumerate(features.pyramid)}
    entry |= {"query_index": matched[0], "target_index": matched[1]}
    return entry if features.padding_mask is None else {**entry, "padding_mask": features.padding_mask}


def unpack(entries: Sequence[Entry]) -> tuple[PanopticFeatures, Matches]:
    """Features and matches of a batch from its images' entries, which are of one size."""

    def joined(name: str) -> Tensor:
        parts = [entry[name] for entry in entries]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    kept: dict[str, Any] = {name: joined(name) for name in _KEPT}
    features = PanopticFeatures(
        **kept,
        padding_mask=joined("padding_mask") if "padding_mask" in entries[0] else None,
        pyramid=(joined("pyramid_0"), joined("pyramid_1"), joined("pyramid_2")),
    )
    return features, [(entry["query_index"], entry["target_index"]) for entry in entries]
