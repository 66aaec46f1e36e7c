"""The project's commands: Kedro's own, with errors for people shown as one message, and ``kedro catalog list``."""

import contextlib
import copy
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.catalog import catalog as kedro_catalog
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import _split_params, env_option
from omegaconf import OmegaConf

from construction_panoptic.commands import Command
from construction_panoptic.errors import UserError, shortage, user_error
from construction_panoptic.files import shown_path
from construction_panoptic.signals import Interrupted, interruptible

logger = logging.getLogger(__name__)

CONTINUE = "--only-missing-outputs"


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, name="construction_panoptic")
def cli() -> None:
    """Commands of the construction_panoptic project."""


def _run(**options: Any) -> Any:
    from construction_panoptic.preflight import check_run

    assert kedro_run.callback is not None
    try:
        with interruptible():
            check_run(options)
            return kedro_run.callback(**options)
    except Interrupted as interruption:
        if tracking := sys.modules.get("construction_panoptic.tracking"):
            tracking.TRACKING.end("KILLED", tracking.LAST_SECONDS)  # MLflow would say FINISHED
        click.echo(f"{interruption}{how_to_go_on()}", err=True)
        raise SystemExit(interruption.exit_code) from interruption
    except Exception as error:
        cause = user_error(error) or shortage(error)
        if cause is None and (tracking := sys.modules.get("construction_panoptic.tracking")):
            cause = tracking.tracking_error(error)
        if cause is None:
            raise
        logger.debug("The error with its traceback", exc_info=error)
        raise click.ClickException(f"{message(cause)}{how_to_go_on()}") from error


def message(error: UserError) -> str:
    """Give an error's text, without the traceback that torch adds where a process that loads images has raised it."""
    text, mark, traceback = str(error).partition("Original Traceback (most recent call last):")
    return traceback.rpartition(f"{type(error).__name__}: ")[2].strip() if mark else text


def how_to_go_on() -> str:
    """Give the command that goes on with the run; nothing where no node has begun."""
    reporting = sys.modules.get("construction_panoptic.reporting")
    if reporting is None or not reporting.REPORT.has_begun:
        return ""
    program = Path(sys.argv[0])
    # Kedro itself says "python -m kedro", in one word.
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else program.name.split()
    more = [] if CONTINUE in sys.argv else [CONTINUE]
    return f"\nThen go on with: {shlex.join([*words, *sys.argv[1:], *more])}"


def split_params(context: click.Context, option: click.Parameter, value: Any) -> Any:
    """Split ``--params`` as Kedro does, but not at the commas of a list: ``prediction.classes=[crane, pump]``."""
    items = re.findall(r"(?:[^,\[]|\[[^\]]*\])+", value) if isinstance(value, str) else []
    pairs = [item.partition("=") for item in items]
    if not pairs or not all(key.strip() and equals for key, equals, _ in pairs):
        return _split_params(context, option, value)
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"{key.strip()}={text.strip()}" for key, _, text in pairs]))


run = copy.copy(kedro_run)
run.callback = _run
run.params = [copy.copy(option) for option in kedro_run.params]
next(option for option in run.params if option.name == "params").callback = split_params
cli.add_command(run)

catalog = copy.copy(kedro_catalog)
catalog.commands = dict(kedro_catalog.commands)
cli.add_command(catalog)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def mlflow(project: Any, arguments: tuple[str, ...]) -> None:
    """Use mlflow-specific commands inside kedro project."""
    from kedro_mlflow.framework.cli.cli import mlflow_commands  # see settings.py

    mlflow_commands.main(list(arguments), prog_name="kedro mlflow", obj=project)


@cli.command(cls=Command)
@click.argument("runs", nargs=-1, required=True)
@click.option("--unfinished", is_flag=True, help="Take names of runs that failed or were stopped, too.")
@env_option
def compare(runs: tuple[str, ...], env: str | None, unfinished: bool) -> None:
    """Compare RUNS, given by MLflow ids or names, with the first of them: PQ by class, parameters, pictures."""
    from construction_panoptic.catalog.files import local_path
    from construction_panoptic.tracking.runs import find_runs

    context = _context(env)
    experiment = context.config_loader["mlflow"]["tracking"]["experiment"]["name"]
    output = context.project_path / "data/08_reporting/comparison"
    with contextlib.chdir(context.project_path):  # where the paths of artifacts begin
        found = find_runs(runs, experiment, unfinished=unfinished)  # a mistyped name is said before torch is imported
        from construction_panoptic.tracking.comparison import compare_runs
        from construction_panoptic.visualisation.comparison_report import Validation

        entries = context.catalog
        file, validation = local_path(entries, "panoptic_val"), None
        if file is not None and entries.exists("converted_images"):
            converted = entries.load("converted_images")
            validation = Validation(file, converted.png_folder, converted.image_folder)
        text = compare_runs(found, output, validation)
    click.echo(f"{text}\n\nThe comparison is in {shown_path(output / 'comparison.html', context.project_path)}")


@catalog.command("list", cls=Command)
@env_option
def list_entries(env: str | None) -> None:
    """List the entries of the catalog: name, layer, whether it is there, and where."""
    from construction_panoptic.catalog.files import local_path
    from construction_panoptic.preflight import outlines

    context = _context(env)
    entries = context.catalog
    names = {name for pipeline in outlines().values() for name in pipeline.datasets()} | set(entries.keys())
    for name in sorted(names):
        if name not in entries or name.startswith(("params:", "parameters")):
            continue
        metadata = getattr(entries.get(name), "metadata", None) or {}
        layer = metadata.get("kedro-viz", {}).get("layer", "")
        there = "there" if entries.exists(name) else "-"
        click.echo(f"{name:28s} {layer:18s} {there:6s} {shown_path(local_path(entries, name), context.project_path)}")


def _context(env: str | None) -> Any:
    from kedro.framework.session import KedroSession

    from construction_panoptic.preflight import check_environment, project_path

    check_environment(project_path() / "conf", env)
    return KedroSession.create(env=env).load_context()
