"""Ready stuff predictions: a file in the COCO panoptic format, and PNGs."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from construction_panoptic.annotations.digests import digest_of
from construction_panoptic.annotations.json_stream import json_members
from construction_panoptic.annotations.merging.segment_shapes import run_starts
from construction_panoptic.annotations.panoptic_png import MAX_SEGMENT_ID, decode_id_map
from construction_panoptic.annotations.stuff.fringe import Mask, leftover_classes, without_explained_parts
from construction_panoptic.annotations.stuff.label_maps import LabelMap
from construction_panoptic.annotations.stuff.labeller import ImageToLabel, StuffLabeller, StuffMaps
from construction_panoptic.annotations.taxonomy import Taxonomy
from construction_panoptic.errors import InputDataError


class _ImageEntry(BaseModel):
    id: int
    file_name: str


class _SegmentEntry(BaseModel):
    id: Annotated[int, Field(ge=1, le=MAX_SEGMENT_ID)]
    category_id: int


class _AnnotationEntry(BaseModel):
    image_id: int
    file_name: str
    segments_info: list[_SegmentEntry]


class _CategoryEntry(BaseModel):
    id: int
    name: str


_ENTRIES: dict[str, type[BaseModel]] = {
    "images": _ImageEntry,
    "annotations": _AnnotationEntry,
    "categories": _CategoryEntry,
}


class _Prediction(NamedTuple):
    """One image's PNG, its segment ids and their stuff ids, in equal order."""

    png: str
    ids: tuple[int, ...]
    stuff_ids: tuple[int, ...]


class ReadyStuff(StuffLabeller):
    """Ready stuff predictions in a folder: ``panoptic.json`` in the COCO panoptic format, ``panoptic/*.png``.

    ``images[].file_name`` is the image key. Categories go by their names, the project's own of stuff or COCO's. Of the
    JSON only ids and names are held. What annotated things explain of a leftover class becomes void, see
    `without_explained_parts`. Raises `InputDataError`: the JSON is missing, damaged, names an unknown category, or
    contradicts itself.
    """

    def __init__(self, folder: Path | str, taxonomy: Taxonomy, explained_fraction: float = 0.5) -> None:
        self._leftover = leftover_classes(taxonomy)
        self._fraction = explained_fraction
        self._file = Path(folder) / "panoptic.json"
        self._predictions = self._index(self._read_json(), taxonomy)
        self.identity = digest_of("ready", self._leftover, explained_fraction)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the predictions of all images out of what goes to other processes, which get those of their images."""
        return self.__dict__ | {"_predictions": {}}

    def find(self, key: str) -> tuple[_Prediction, list[int]] | None:
        """Give the prediction of an image, and size and time of its PNG; None if there is none."""
        if (prediction := self._predictions.get(key)) is None:
            return None
        path = Path(prediction.png)
        state = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
        return prediction, state

    def read(self, image: ImageToLabel) -> LabelMap | None:
        """Read the label map of an image; `InputDataError`: its PNG cannot be read, or is not what the JSON says."""
        if image.found is None:
            return None
        prediction, size = image.found[0], image.size
        id_map = decode_id_map(Path(prediction.png))
        if id_map.shape != size:
            raise InputDataError(
                f"{prediction.png}: {id_map.shape[1]} x {id_map.shape[0]} pixels, but its image {image.key!r} is "
                f"{size[1]} x {size[0]} upright; predict stuff for the image as it is."
            )
        # Ids come in long runs, so that few lookups are enough.
        flat = id_map.ravel()
        starts = run_starts(flat)
        found, of_run = np.unique(flat[starts], return_inverse=True)
        stuff_of = dict(zip(prediction.ids, prediction.stuff_ids, strict=True)) | {0: 0}
        present = found.tolist()
        if unknown := [segment_id for segment_id in present if segment_id not in stuff_of]:
            raise InputDataError(f"{prediction.png}: id {unknown[0]} is not in segments_info of {self._file}.")
        if missing := stuff_of.keys() - {0, *present}:
            raise InputDataError(f"{prediction.png}: segment {min(missing)} of {self._file} has no pixel in the PNG.")
        stuff_ids = np.array([stuff_of[segment_id] for segment_id in present], dtype=np.uint8)
        return np.repeat(stuff_ids[of_run], np.diff(starts, append=flat.size)).reshape(id_map.shape)

    def label(self, images: Sequence[LabelMap | None], things: Sequence[Mask]) -> list[StuffMaps | None]:
        """Leave out what things explain."""
        clean = partial(without_explained_parts, leftover=self._leftover, fraction=self._fraction)
        pairs = zip(images, things, strict=True)
        return [None if labels is None else StuffMaps(clean(labels, mask), labels) for labels, mask in pairs]

    def _read_json(self) -> dict[str, list[Any]]:
        lists: dict[str, list[Any]] = {}
        try:
            with self._file.open("rb") as file:
                for name, items in json_members(file):
                    if name in _ENTRIES and isinstance(items, Iterator):
                        lists[name] = [self._entry(name, place, item) for place, item in enumerate(items)]
        except FileNotFoundError:
            advice = "put ready stuff predictions there, or choose another source of stuff."
            raise InputDataError(f"{self._file}: there is no such file; {advice}") from None
        except InputDataError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise InputDataError(f"{self._file}: cannot be read as JSON ({error}).") from None
        if missing := [name for name in _ENTRIES if name not in lists]:
            raise InputDataError(f"{self._file}: not COCO panoptic: it has no list `{missing[0]}`.")
        return lists

    def _entry(self, name: str, place: int, item: Any) -> tuple[Any, ...]:
        """Check an entry; of an annotation the ids of its segments and their categories are kept, in equal order."""
        try:
            entry: Any = _ENTRIES[name].model_validate(item)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, (name, place, *problem["loc"])))
            raise InputDataError(f"{self._file}: not COCO panoptic: {where} {problem['msg']}.") from None
        if not isinstance(entry, _AnnotationEntry):
            return tuple(entry.model_dump().values())
        ids, categories = (tuple(getattr(s, of) for s in entry.segments_info) for of in ("id", "category_id"))
        return entry.image_id, entry.file_name, ids, categories

    def _index(self, lists: dict[str, list[Any]], taxonomy: Taxonomy) -> dict[str, _Prediction]:
        stuff_of: dict[int, int] = {}
        for number, name in self._unique("category id", lists["categories"]).items():
            stuff_id = taxonomy.stuff_id_of_name(name)
            if stuff_id is None:
                detail = "is neither a stuff class of the taxonomy nor one of COCO's 133 classes that it maps"
                raise InputDataError(f"{self._file}: category {name!r} {detail}; rename it or extend the taxonomy.")
            stuff_of[number] = stuff_id
        key_of = self._unique("image id", lists["images"])
        self._unique("image", ((key, image_id) for image_id, key in lists["images"]))
        predictions: dict[str, _Prediction] = {}
        for image_id, name, ids, category_ids in lists["annotations"]:
            if image_id not in key_of:
                raise InputDataError(f"{self._file}: {name} is for image {image_id}, which is not listed.")
            key = key_of[image_id]
            if key in predictions:
                raise InputDataError(f"{self._file}: image {key!r} has two annotations; keep one.")
            segments = self._unique(f"{name}: segment", zip(ids, category_ids, strict=True))
            for number, category in segments.items():
                if category not in stuff_of:
                    raise InputDataError(f"{self._file}: {name}, segment {number}: category {category} is not listed.")
            predictions[key] = _Prediction(self._png(name), ids, tuple(map(stuff_of.__getitem__, category_ids)))
        return predictions

    def _png(self, name: str) -> str:
        folder = self._file.parent / "panoptic"
        if "\0" in name or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InputDataError(f"{self._file}: the file name {name!r} does not stay inside {folder}.")
        return str(folder / name)

    def _unique(self, what: str, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputDataError(f"{self._file}: {what} {key!r} is listed twice.")
            found[key] = value
        return found
