"""Errors whose message is meant for the person at the keyboard, and how libraries say that memory or room ran out."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 160  # characters of a library's message


class UserError(Exception):
    """Something outside the code is wrong; the message, shown without a traceback, says how to put it right."""


class InputDataError(UserError, ValueError):
    """The input data cannot be used; the message names the file, and the image and annotation where known."""


class ParameterError(UserError, ValueError):
    """A parameter has a value that cannot work; the message names the parameter."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read or does not fit the model; the message names the file and the keys."""


class DamagedFileError(UserError, ValueError):
    """A file that the project itself has made cannot be read; the message names it."""


def damaged(path: Path, error: BaseException, place: str = "") -> DamagedFileError:
    """Give the error of a file whose content cannot be read, at a place in it."""
    return DamagedFileError(
        f"{path}{place} is damaged ({first_line(error)[:_LONGEST]}). If a run has made it, remove it: going on makes "
        "it anew, and what follows from it."
    )


def first_line(error: BaseException) -> str:
    """The first line of an error, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class StorageError(UserError, OSError):
    """A file cannot be written: the disk is full, or the folder read-only; the message names file and folder."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an error and what has caused it, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def user_error(error: BaseException | None) -> UserError | None:
    """Find the error that is meant for the user among ``error`` and its causes; None where there is none."""
    return next((cause for cause in causes(error) if isinstance(cause, UserError)), None)


class ShortageError(UserError):
    """Memory or room has run out, or a helping process was killed, for which this is the usual reason."""


def shortage(error: BaseException | None) -> ShortageError | None:
    """Say what to do about an error that, or whose cause, means too little memory, room or permission; else None."""
    for cause in causes(error):
        if (advice := _advice(cause)) is not None:
            text = " ".join(str(cause).split()) or type(cause).__name__
            shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
            return ShortageError(f"{advice} (The error was: {shown})")
    return None


@contextmanager
def explained_shortage() -> Iterator[None]:
    """Raise `ShortageError` in the place of an error of the block that means that there is too little memory."""
    try:
        yield
    except Exception as error:
        told = None if isinstance(error, UserError) else shortage(error)
        if told is None:
            raise
        raise told from error


def _advice(error: BaseException) -> str | None:
    name, text = type(error).__name__, str(error)  # by name, so that torch need not be loaded
    number = error.errno if isinstance(error, OSError) else None
    if name == "OutOfMemoryError" or "CUDA out of memory" in text:
        return (
            "The device's memory has run out. End what else uses the device; or give the stage under way a larger "
            "micro_batches, up to its batch_size: batches are then computed in that many parts, and training goes on. "
            "With a smaller batch_size, or smaller augmentation.sides and max_side, it would start over."
        )
    if number == errno.ENOMEM or isinstance(error, MemoryError) or "can't allocate memory" in text:
        return (
            "Memory has run out. End other programs; or give the stage under way fewer workers, a smaller cache_mb or, "
            "in a training, a larger micro_batches (the parts that a batch is computed in)."
        )
    if name == "BrokenProcessPool" or "DataLoader worker" in text:
        return (
            "A process that loads or converts images was killed; the system does so when memory, or shared memory "
            "(/dev/shm), runs out. Give the stage under way fewer workers (annotation_conversion.execution.workers, "
            "detection.workers, …) or more memory."
        )
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return "Too many files are open. Allow more (ulimit -n 4096), or give the stage under way fewer workers."
    if "DataLoader timed out" in text:
        return "A process that loads images has given none for a long time. See whether their disk answers."
    return _storage_advice(error) if isinstance(error, OSError) else None


def _storage_advice(error: OSError) -> str | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no room for a file. Make some on the project's disk and in {tempfile.gettempdir()}."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and error.filename:
        return f"{error.filename}: {error.strerror}. Make it and its folder writable."
    return None
