"""``python -m construction_panoptic init FOLDER``: a project of one's own, where only the package is installed."""

import shutil
from pathlib import Path

import click

from construction_panoptic.commands import Command
from construction_panoptic.files import atomic_path

_CONF = Path(__file__).parents[1] / "conf"


@click.command(cls=Command)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Write conf/ and data/ into FOLDER, to run the pipelines there. Nothing that is there is touched."""
    conf = folder / "conf"
    if conf.exists():
        raise click.ClickException(f"{conf} is there already; name another folder")
    with atomic_path(conf) as temporary:
        shutil.copytree(_CONF, temporary, ignore=shutil.ignore_patterns("local"))
        (temporary / "local").mkdir()
    exports = folder / "data/01_raw/construction"
    exports.mkdir(parents=True, exist_ok=True)
    click.echo(
        f"{folder} is ready: put your CVAT exports into {exports}, say in {conf / 'base'} what differs, "
        f"and run `construction-panoptic` in {folder}. `construction-panoptic --env sample --pipelines sample_data` "
        "makes data to try it with."
    )
