"""Finding CVAT exports, unpacked or as archives, and the files inside them."""

import os
import re
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from construction_panoptic.annotations.images import ImageError, open_location, zip_location
from construction_panoptic.errors import InputDataError

_ANNOTATIONS = re.compile(r"(?:coco|annotations/instances_[^/]+)\.json")
_SKIPPED = ("__MACOSX",)
_STRAY = (".json", ".xml", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_HELP = (
    "Put one folder (or .zip) per CVAT export there, each with `coco.json` or "
    "`annotations/instances_default.json`, and `images/`. "
    "To try the project without data of your own, make the sample: `make demo`, or "
    "`kedro run --env sample --pipelines sample_data`"
)


class Export(Protocol):
    """One CVAT export. ``source`` is its folder's name or its archive's stem."""

    @property
    def source(self) -> str:
        """The name that its images and annotations go by."""
        ...

    @property
    def path(self) -> Path:
        """The folder or archive."""
        ...

    def annotation_files(self) -> list[str]:
        """Return the COCO files in it, sorted, ``coco.json`` first.

        Raises:
            ImageError: an archive cannot be read.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """Open one of `annotation_files`, to be read once from beginning to end.

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def find_image(self, file_name: str, subset: str) -> tuple[str, str]:
        """Return path relative to ``images/`` and location of the image that an annotation file names.

        Args:
            file_name: as in the annotation file; newer exports leave out a folder per subset.
            subset: the ``<subset>`` of ``instances_<subset>.json``, or "".

        Raises:
            ImageError: ``missing_file`` or ``unsafe_path``.
        """
        ...


def find_exports(raw_data: Path) -> list[Export]:
    """Return the exports in ``raw_data``, sorted by name; a folder comes before an archive of the same name.

    Raises:
        InputDataError: the folder is missing or holds no export.
    """
    if not raw_data.is_dir():
        raise InputDataError(f"{raw_data}: there is no such folder. {_HELP}.")
    exports: list[Export] = []
    strays: list[Export] = []
    try:
        paths = sorted(raw_data.iterdir(), key=lambda p: (p.stem if p.suffix else p.name, p.name))
    except OSError as error:
        raise InputDataError(f"{raw_data}: cannot be read ({error.strerror}).") from None
    for path in paths:
        if path.name.startswith(".") or path.name in _SKIPPED:
            continue
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputDataError(f"{raw_data}: the name {path.name!r} is not valid text; rename it.") from None
        if "\r" in path.name:
            raise InputDataError(f"{raw_data}: the name {path.name!r} holds a carriage return; rename it.")
        if path.is_dir():
            exports.append(FolderExport(path.name, path))
        elif path.suffix.lower() == ".zip":
            exports.append(ZipExport(path.stem, path))
        elif path.suffix.lower() in _STRAY:
            strays.append(StrayFile(path.name, path))
    if any(has_annotation_files(export) for export in exports):
        return exports + strays
    if _files(raw_data):
        raise InputDataError(f"{raw_data} is itself an export; move it into a folder of its own. {_HELP}.")
    raise InputDataError(f"{raw_data}: there is no CVAT export in this folder. {_HELP}.")


def has_annotation_files(export: Export) -> bool:
    """Tell whether an export has annotation files, or is an archive whose damage must be reported."""
    try:
        return bool(export.annotation_files())
    except ImageError:
        return True


def _select(names: Iterable[str]) -> list[str]:
    found = [name for name in names if _ANNOTATIONS.fullmatch(name)]
    return sorted(found, key=lambda name: ("/" in name, name))


def _candidates(file_name: str, subset: str) -> list[PurePosixPath]:
    """Return where an image may lie, relative to the export.

    Some systems write accented letters as one character, others as two: the name as it is comes first.
    """
    if not file_name.isascii() and _is_text(file_name):
        spellings = dict.fromkeys([file_name, *(unicodedata.normalize(form, file_name) for form in ("NFC", "NFD"))])
        return [path for spelling in spellings for path in _places(spelling, subset)]
    return _places(file_name, subset)


def _places(file_name: str, subset: str) -> list[PurePosixPath]:
    if "\r" in file_name:
        raise ImageError("unsafe_path", f"the file name {file_name!r} holds a carriage return; rename the file")
    path = PurePosixPath(file_name)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in file_name or "\0" in file_name
    if unsafe or re.match(r"[A-Za-z]:", file_name) or not path.parts or not _is_text(file_name):
        raise ImageError("unsafe_path", f"the file name {file_name!r} does not stay inside the images folder")
    inside = [PurePosixPath("images") / path]
    inside += [PurePosixPath("images") / subset / path] if subset else []
    inside += [path] if path.parts[0] == "images" and len(path.parts) > 1 else []
    return inside


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _missing(where: str, file_name: str) -> ImageError:
    return ImageError("missing_file", f"the image {file_name!r} is not in {where}")


@dataclass(frozen=True)
class FolderExport:
    """An unpacked export; one more folder around it, as unpacking often leaves, is looked through."""

    source: str
    path: Path

    @cached_property
    def _resolved(self) -> Path:
        return _resolve(self.path)

    @cached_property
    def _root(self) -> Path:
        if _files(self.path):
            return self.path
        try:
            inner = [path for path in self.path.iterdir() if path.is_dir() and path.name not in _SKIPPED]
        except OSError as error:
            raise ImageError("unreadable_archive", f"{self.path}: not readable ({error.strerror})") from None
        return inner[0] if len(inner) == 1 else self.path

    def annotation_files(self) -> list[str]:
        """See `Export`."""
        return _files(self._root)

    def open(self, name: str) -> BinaryIO:
        """See `Export`."""
        if not _resolve(self._root / name).is_relative_to(self._resolved):
            raise ImageError("unsafe_path", f"{name} is a link that leads out of the export's folder")
        return open_location(self._root / name, streamed=True)

    def find_image(self, file_name: str, subset: str) -> tuple[str, str]:
        """See `Export`."""
        root = self._root
        for candidate in _candidates(file_name, subset):
            try:
                if not (root / candidate).is_file():
                    continue
                resolved = _resolve(root / candidate)
            except OSError:
                continue
            if not resolved.is_relative_to(self._resolved):
                raise ImageError("unsafe_path", f"{file_name!r} is a link that leads out of the export's folder")
            return candidate.relative_to("images").as_posix(), str(resolved)
        raise _missing(f"{root / 'images'}", file_name)


def _resolve(path: Path) -> Path:
    """Follow links as ``Path.resolve`` does; of links that go round in a circle that one raises."""
    return Path(os.path.realpath(path))


def _files(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    names = [path.name for path in root.glob("*.json")]
    return _select([*names, *(f"annotations/{path.name}" for path in root.glob("annotations/*.json"))])


class ZipExport:
    """An export as the archive that CVAT gives; read in place, never unpacked."""

    def __init__(self, source: str, path: Path) -> None:
        self.source = source
        self.path = _resolve(path)
        self._members: dict[str, str] | None = None
        self._prefix = ""

    def _names(self) -> dict[str, str]:
        """Return the member of each name."""
        if self._members is None:
            members = self._read_directory()
            names = [_name(member) for member in members]
            tops = {name.split("/", 1)[0] for name in names} - {*_SKIPPED}
            if not _select(names) and len(tops) == 1:
                self._prefix = f"{tops.pop()}/"
            documents = _select(name.removeprefix(self._prefix) for name in names)
            if len(documents) > len(set(documents)):
                detail = f"{self.path}: it holds a file of annotations twice ({', '.join(documents)}); pack it again"
                raise ImageError("unreadable_archive", detail)
            self._members = {name: member.filename for name, member in zip(names, members, strict=True)}
        return self._members

    def _read_directory(self) -> list[zipfile.ZipInfo]:
        try:
            if not self.path.is_file():
                raise OSError("there is no such file, or it is a pipe or device")
            with zipfile.ZipFile(self.path) as archive:
                return archive.infolist()
        except Exception as error:
            # zipfile raises whatever the damage leads it to (BadZipFile, struct.error, UnicodeDecodeError, …).
            raise ImageError("unreadable_archive", f"{self.path}: not readable ({error})") from None

    def annotation_files(self) -> list[str]:
        """See `Export`."""
        names = self._names()
        return _select(name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix))

    def open(self, name: str) -> BinaryIO:
        """See `Export`."""
        return open_location(zip_location(self.path, self._names()[self._prefix + name]), streamed=True)

    def find_image(self, file_name: str, subset: str) -> tuple[str, str]:
        """See `Export`."""
        for candidate in _candidates(file_name, subset):
            member = self._names().get(self._prefix + candidate.as_posix())
            if member is not None:
                return candidate.relative_to("images").as_posix(), zip_location(self.path, member)
        raise _missing(f"{self.path} under {self._prefix}images/", file_name)


def _name(member: zipfile.ZipInfo) -> str:
    """Return a member's name, which many programs write in UTF-8 without saying so."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename


@dataclass(frozen=True)
class StrayFile:
    """A file beside the exports that may hold annotations and is not read, which must be said."""

    source: str
    path: Path

    def annotation_files(self) -> list[str]:
        """See `Export`."""
        detail = f"{self.path}: not read; put it and its images into a folder or .zip of their own, or remove it"
        raise ImageError("stray_file", detail)

    def open(self, name: str) -> BinaryIO:
        """See `Export`."""
        raise ImageError("stray_file", name)

    def find_image(self, file_name: str, subset: str) -> tuple[str, str]:  # noqa: ARG002
        """See `Export`."""
        raise ImageError("stray_file", file_name)
