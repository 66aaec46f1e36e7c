"""Exports as sources of files: folders and archives, whatever their format, found and opened safely."""

import os
import re
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from construction_panoptic.annotations.images import ImageError, open_location
from construction_panoptic.errors import InputDataError

_SKIPPED = "__MACOSX"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_STRAY = (".json", ".xml", *_ARCHIVES)
_LEADS_OUT = re.compile(r"^(?:[A-Za-z]:)?[/\\]|(?:^|[/\\])\.\.(?:[/\\]|$)")  # of an archive, in the name of a member


class NoExportError(InputDataError):
    """There is no export where exports are looked for."""


class _FolderSource:
    """The files of an unpacked export, by names relative to ``folder`` (None for an archive), with slashes.

    All methods but `describe` raise `ImageError` where it cannot be read, or a file is a link out of it. ``name`` is
    the folder's name or the archive's stem.
    """

    leading_out = ()

    def __init__(self, name: str, path: Path, folder: Path | None = None) -> None:
        self.name, self.path, self._resolved = name, path, _resolve(path)
        self.folder = folder or path

    def inner(self) -> "_FolderSource | None":
        """Return it without the one folder around everything, as unpacking often leaves it; None: there is none."""
        try:
            folders = [path for path in self.path.iterdir() if path.is_dir() and _counts(path)]
        except OSError as error:
            raise ImageError("unreadable_archive", f"{self.path}: not readable ({error.strerror})") from None
        return _FolderSource(self.name, self.path, folders[0]) if len(folders) == 1 else None

    def glob(self, pattern: str) -> list[str]:
        """Return the names that match a pattern (``*`` within a part of a name)."""
        return [path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern)]

    def open(self, name: str) -> BinaryIO:
        """Open a file, to be read once from beginning to end."""
        self._inside(name)
        return open_location(self.folder / name, streamed=True)

    def locate(self, name: str) -> str | None:
        """Return the location of an image file, see `images`; None where there is none."""
        try:
            found = (self.folder / name).is_file()
        except OSError:  # such as a name that is too long
            return None
        return str(self._inside(name)) if found else None

    def describe(self, folder: str) -> str:
        """Return where a folder is, for messages."""
        return str(self.folder / folder)

    def _inside(self, name: str) -> Path:
        path = _resolve(self.folder / name)
        if not path.is_relative_to(self._resolved):
            raise ImageError("unsafe_path", f"{name!r} is a link that leads out of the export's folder")
        return path


class _ZipSource:
    """The same of an archive, which is read in place, never unpacked."""

    folder = None

    def __init__(self, name: str, path: Path, root: str = "") -> None:
        self.name, self.path, self._root = name, _resolve(path), root

    def inner(self) -> "_ZipSource | None":
        tops = {name.split("/", 1)[0] for name in self._members if "/" in name} - {_SKIPPED}
        return _ZipSource(self.name, self.path, f"{tops.pop()}/") if len(tops) == 1 else None

    def glob(self, pattern: str) -> list[str]:
        names = (name.removeprefix(self._root) for name in self._members if name.startswith(self._root))
        depth = pattern.count("/")
        return [name for name in names if name.count("/") == depth and fnmatchcase(name, pattern)]

    def open(self, name: str) -> BinaryIO:
        return open_location(f"{self.path}::{self._member(name)}", streamed=True)

    def locate(self, name: str) -> str | None:
        member = self._member(name)
        return None if member is None else f"{self.path}::{member}"

    def describe(self, folder: str) -> str:
        return f"{self.path} under {self._root}{folder}/"

    @property
    def leading_out(self) -> list[str]:
        """Names that would lead out of a folder; they are not read."""
        return [name for name in self._all_members if _LEADS_OUT.search(name)]

    def _member(self, name: str) -> str | None:
        members = self._members.get(self._root + name, [])
        if len(members) > 1:
            raise ImageError("unreadable_archive", f"{self.path} holds {members[0]!r} twice; pack it again")
        return members[0] if members else None

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        return {name: members for name, members in self._all_members.items() if not _LEADS_OUT.search(name)}

    @cached_property
    def _all_members(self) -> dict[str, list[str]]:
        """The members of each name, of which there should be one."""
        members: dict[str, list[str]] = {}
        try:
            if not self.path.is_file():
                raise OSError("there is no such file, or it is a pipe or device")
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    members.setdefault(_name(member), []).append(member.filename)
        except Exception as error:
            # zipfile raises whatever the damage leads it to (BadZipFile, struct.error, UnicodeDecodeError, …).
            raise ImageError("unreadable_archive", f"{self.path}: not readable ({error})") from None
        return members


Source = _FolderSource | _ZipSource


def find_sources(folder: Path) -> tuple[list[Source], list[Path]]:
    """Find the exports in a folder, and files that may hold annotations and lie beside them.

    Exports are its subfolders and archives, sorted by name, a folder before an archive of the same name. A subfolder
    that holds nothing but one archive is that archive under the folder's name; one that holds several stands for them.
    An archive in the place of the folder is the only export. Raises `InputDataError`: there is neither
    (`NoExportError`), the folder cannot be read, or a name cannot be used.
    """
    if folder.is_file() and folder.suffix.lower() == ".zip":
        _check_name(folder)
        return [_ZipSource(folder.stem, folder)], []
    if not folder.is_dir():
        raise NoExportError(f"{folder}: there is no such folder or .zip.")
    try:
        paths = sorted(folder.iterdir(), key=lambda p: (p.stem if p.suffix else p.name, p.name))
    except OSError as error:
        raise InputDataError(f"{folder}: cannot be read ({error.strerror}).") from None
    sources: list[Source] = []
    strays = []
    for path in filter(_counts, paths):
        _check_name(path)
        if path.is_dir() and (archives := _archives_alone(path)):
            one = len(archives) == 1
            sources += [_ZipSource(path.name if one else archive.stem, archive) for archive in archives]
        elif path.is_dir():
            sources.append(_FolderSource(path.name, path))
        elif path.suffix.lower() == ".zip":
            sources.append(_ZipSource(path.stem, path))
        elif path.suffix.lower() in _STRAY:
            strays.append(path)
    return sources, strays


def not_read(source: Source) -> Iterator[tuple[str, str]]:
    """Say which files of an export nobody reads, though they may hold annotations: reason code and sentence."""
    for name in sorted(source.leading_out):
        yield "unsafe_path", f"{source.path}: the member {name!r} leads out of the archive; it is not read"
    names = (name for pattern in ("*", "*/*") for name in source.glob(pattern))
    for name in sorted({name for name in names if name.lower().endswith(_ARCHIVES) and "/." not in f"/{name}"}):
        yield "stray_file", f"{name}: an archive in an export is not read; put it beside the export, or remove it"


def whole_folder(folder: Path) -> Source:
    """Return a folder as one source, named after it; raises `InputDataError` where the name cannot be used."""
    path = Path(os.path.abspath(folder))  # noqa: PTH100  # keeps the name of a link, unlike `Path.resolve`
    _check_name(path)
    return _FolderSource(path.name, path)


def _archives_alone(folder: Path) -> list[Path]:
    """Return the archives of a folder that holds nothing else, sorted; none if it does or cannot be read."""
    try:
        paths = sorted(filter(_counts, folder.iterdir()))
        if not all(path.suffix.lower() == ".zip" and not path.is_dir() for path in paths):
            return []
    except OSError:  # which reading the folder as an export reports
        return []
    for path in paths:
        _check_name(path)
    return paths


def _counts(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != _SKIPPED


def _check_name(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise InputDataError(f"{path.parent}: the name {path.name!r} is not valid text; rename it.") from None
    if "\r" in path.name:
        raise InputDataError(f"{path.parent}: the name {path.name!r} holds a carriage return; rename it.")


def _resolve(path: Path) -> Path:
    return Path(os.path.realpath(path))  # which, unlike `Path.resolve`, bears links that go round in a circle


def _name(member: zipfile.ZipInfo) -> str:
    """Return a member's name, which many programs write in UTF-8 without saying so."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()
    except UnicodeError:
        return member.filename
