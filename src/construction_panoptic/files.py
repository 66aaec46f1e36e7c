"""Writing files so that a reader never sees half of one."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(target: Path | str, *, sync: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``target`` and rename it to ``target`` when the block ends well.

    Args:
        target: the final path; its parent folders are made.
        sync: flush file and folder to disk around the rename, so that the file survives a power cut.

    Yields:
        The temporary path; it keeps the suffix of ``target``. If the block raises, it is removed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem[:80]}.{uuid.uuid4().hex[:8]}.tmp{target.suffix}")
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(target)
        if sync:
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(target: Path | str, data: bytes) -> None:
    """Write ``data`` to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: Path | str, data: Any, *, indent: int | None = None) -> None:
    """Write ``data`` as JSON to ``target`` atomically; NaN and infinity are refused since JSON has neither."""
    text = json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)
    write_bytes(target, text.encode())
