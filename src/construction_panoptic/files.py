"""Files: written so that a reader never sees half of one; and the commit that they are of."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from construction_panoptic.errors import StorageError, UserError, causes

UNCHANGED = "unchanged"
"""What a node yields in the place of content that stays as it is; the catalog saves nothing."""

# A temporary name tells whose it is: <machine>-<process>-<random>.
_MACHINE = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TEMPORARY = re.compile(rf"\..*\.{_MACHINE}-(\d+)-[0-9a-f]{{8}}\.tmp")

_FULL = 4096  # bytes left on a disk: none
_NO_ROOM, _READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES)


@contextmanager
def atomic_path(target: Path | str, *, sync: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``target`` and rename it to ``target`` when the block ends well.

    Args:
        target: the final path; its parent folders are made.
        sync: flush file and folder to disk around the rename, so that the file survives a power cut.

    Yields:
        The temporary path; it keeps the suffix of ``target``. If the block raises, it is removed.

    Raises:
        StorageError: there is no room, or no permission; ``target`` is as it was.
    """
    target = Path(target)
    folder = target.parent
    owner = f"{_MACHINE}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = target.with_name(f".{target.stem[:80]}.{owner}.tmp{target.suffix}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(target)
        if sync:
            _sync(folder)
    except Exception as error:
        number = None if isinstance(error, UserError) else _storage_failure(error, folder)
        if number is None:
            raise
        advice = f"Make room on the disk of {folder}" if number in _NO_ROOM else f"Make {folder} writable"
        raise StorageError(
            f"{target} cannot be written: {os.strerror(number)}. {advice}, or choose another place. What was there "
            "before is kept."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _storage_failure(failure: BaseException, folder: Path) -> int | None:
    """The error number of a write to ``folder`` that failed, also where a library says it in words of its own."""
    for error in causes(failure):
        if isinstance(error, OSError) and error.errno in (*_NO_ROOM, *_READ_ONLY):
            elsewhere = isinstance(error.filename, str) and Path(error.filename).parent not in (folder, *folder.parents)
            return None if elsewhere else error.errno
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    return errno.ENOSPC if free < _FULL else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path | str) -> None:
    """Remove temporary files in ``folder`` and below that processes of this machine left when they were killed."""
    for place, _, names in os.walk(folder):
        for name in names:
            owner = _TEMPORARY.match(name)
            if owner and not psutil.pid_exists(int(owner[1])):
                Path(place, name).unlink(missing_ok=True)


def write_bytes(target: Path | str, data: bytes) -> None:
    """Write ``data`` to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path | str, data: Any, *, indent: int | None = None) -> None:
    """Write ``data`` as JSON to ``target`` atomically; NaN and infinity are refused since JSON has neither."""
    text = json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)
    write_bytes(target, text.encode())


def shown_path(path: Path | None, project: Path) -> str:
    """Give a path as people read it: relative to the project if it is in there; "" for None."""
    return "" if path is None else str(path.relative_to(project) if path.is_relative_to(project) else path)


def git_state(folder: Path) -> tuple[str, bool] | None:
    """Give the commit that a folder is of, and whether files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None
