"""The project's ``kedro run``: Kedro's own, with errors that are meant for people shown as one message."""

import copy
import logging
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from construction_panoptic.errors import UserError

logger = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, name="construction_panoptic")
def cli() -> None:
    """Commands of the construction_panoptic project."""


def _run(**options: Any) -> Any:
    assert kedro_run.callback is not None
    try:
        return kedro_run.callback(**options)
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        logger.debug("The error with its traceback", exc_info=error)
        raise click.ClickException(str(cause)) from error


def user_error(error: BaseException | None) -> UserError | None:
    """Find the error that is meant for the user among ``error`` and its causes; None where there is none."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


run = copy.copy(kedro_run)
run.callback = _run
cli.add_command(run)
