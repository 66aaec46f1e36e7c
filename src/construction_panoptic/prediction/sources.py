"""What people name to be predicted: an image, a video, a folder or a glob pattern."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from construction_panoptic.errors import InputDataError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts", ".3gp"})
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo", ".jp2", ".ppm", ".pgm"}
)


@dataclass(frozen=True)
class SourceFile:
    """A file to predict; ``name``, unique in a source, is its path within the folder, or its file name."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the file is read as a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_files(source: str | Path) -> list[SourceFile]:
    """List the files of a source, sorted by name.

    A folder gives its images and videos, told by their suffixes, and those of its subfolders; hidden ones are left
    out. A file that is named, or matches a pattern, is taken whatever its suffix, so that it is either predicted or
    listed as rejected. Raises an `InputDataError` if there is nothing to predict.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [SourceFile(path, readable(path.name))]
    if path.is_dir():
        files = _named([file for file in path.rglob("*") if _is_wanted(file, path)], path)
        problem = f"{path} has no image or video in it ({', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})."
    else:
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - of any folder
        common = Path(os.path.commonpath([match.parent for match in matches])) if matches else path
        files = _named([match for match in matches if match.is_file()], common)
        problem = f"{source}: there is no such file or folder, and as a pattern it matches no file."
    if not files:
        raise InputDataError(f"{problem} Name an image, a video, a folder or a pattern such as 'site/*.jpg'.")
    return files


def readable(text: str) -> str:
    """Put � in place of the bytes of a file's name that are not UTF-8, as results are."""
    return os.fsencode(text).decode(errors="replace")


def frame_name(video: str, number: int) -> str:
    """How results call a frame of a video; `video_of` takes it apart."""
    return f"{video}/frame_{number:06d}"


def video_of(name: str) -> str | None:
    """The video that a frame is from; None for the name of an image."""
    match = re.fullmatch(r"(.+)/frame_\d{6,}", name)
    return match[1] if match else None


def shard(files: Sequence[SourceFile], number: int, of: int) -> Sequence[SourceFile]:
    """Give one of ``of`` parts of a source, ``number`` counting from 1; in order, they are the whole."""
    return files[len(files) * (number - 1) // of : len(files) * number // of]


def _is_wanted(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and file.is_file()


def _named(files: list[Path], folder: Path) -> list[SourceFile]:
    return [SourceFile(file, readable(file.relative_to(folder).as_posix())) for file in sorted(files)]
