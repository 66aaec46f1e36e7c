"""Errors whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something outside the code is wrong, and the message says what and how to put it right.

    The command line shows the message alone, without a traceback. Raise it (or a subclass) for bad input, bad
    parameters and missing files; let everything else be an ordinary exception.
    """


class InputDataError(UserError, ValueError):
    """The input data cannot be used; the message names the file, and the image and annotation where known."""


class ParameterError(UserError, ValueError):
    """A parameter has a value that cannot work; the message names the parameter."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read or does not fit the model; the message names the file and the keys."""


class DamagedFileError(UserError, ValueError):
    """A file that the project itself has made cannot be read; the message names it."""


class StorageError(UserError, OSError):
    """A file cannot be written: the disk is full, or the folder read-only; the message names file and folder."""
