"""The project's commands: Kedro's own, with errors for people shown as one message, and ``kedro catalog list``."""

import copy
import logging
from typing import Any

import click
from kedro.framework.cli.catalog import catalog as kedro_catalog
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import env_option
from kedro.framework.session import KedroSession

from construction_panoptic.catalog.files import local_path, shown_path
from construction_panoptic.errors import UserError
from construction_panoptic.shortage import shortage
from construction_panoptic.signals import Interrupted, interruptible
from construction_panoptic.tracking import database_error, mark_run_killed

logger = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, name="construction_panoptic")
def cli() -> None:
    """Commands of the construction_panoptic project."""


def _run(**options: Any) -> Any:
    assert kedro_run.callback is not None
    try:
        with interruptible():
            return kedro_run.callback(**options)
    except Interrupted as interruption:
        mark_run_killed()
        click.echo(str(interruption), err=True)
        raise SystemExit(interruption.exit_code) from interruption
    except Exception as error:
        cause = user_error(error) or shortage(error) or database_error(error)
        if cause is None:
            raise
        logger.debug("The error with its traceback", exc_info=error)
        raise click.ClickException(message(cause)) from error


def message(error: UserError) -> str:
    """Give an error's text, without the traceback that torch adds where a process that loads images has raised it."""
    text, mark, traceback = str(error).partition("Original Traceback (most recent call last):")
    return traceback.rpartition(f"{type(error).__name__}: ")[2].strip() if mark else text


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

catalog = copy.copy(kedro_catalog)
catalog.commands = dict(kedro_catalog.commands)
cli.add_command(catalog)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@env_option
def compare(runs: tuple[str, ...], env: str | None) -> None:
    """Compare RUNS, given by MLflow ids or names, with the first of them: PQ by class, parameters, pictures."""
    from construction_panoptic.tracking.comparison import compare_runs

    context = KedroSession.create(env=env).load_context()
    entries = context.catalog
    try:
        page = compare_runs(
            runs,
            context.config_loader["mlflow"]["tracking"]["experiment"]["name"],
            context.project_path / "data/08_reporting/comparison",
            validation_file=local_path(entries, "panoptic_val"),
            converted=entries.load("converted_images") if entries.exists("converted_images") else None,
        )
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"The comparison is in {shown_path(page, context.project_path)}")


@catalog.command("list")
@env_option
def list_entries(env: str | None) -> None:
    """List the entries of the catalog: name, layer, whether it is there, and where."""
    context = KedroSession.create(env=env).load_context()
    entries = context.catalog
    for name in sorted(entries.keys()):
        if name.startswith(("params:", "parameters")):
            continue
        metadata = getattr(entries.get(name), "metadata", None) or {}
        layer = metadata.get("kedro-viz", {}).get("layer", "")
        there = "there" if entries.exists(name) else "-"
        click.echo(f"{name:28s} {layer:18s} {there:6s} {shown_path(local_path(entries, name), context.project_path)}")
