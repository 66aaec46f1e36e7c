"""``python -m construction_panoptic``: ``kedro run`` in the project; ``predict``, ``serve`` and ``app`` need none."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(*args: Any, **kwargs: Any) -> Any:
    """Run the project's pipelines with the options of ``kedro run``, or ``predict``, ``serve`` or ``app``."""
    interactive = hasattr(sys, "ps1")
    options = {"standalone_mode": not interactive, **kwargs}
    arguments = list(args[0]) if args else sys.argv[1:]
    if arguments[:1] in (["predict"], ["serve"], ["app"]):
        # The module of a word has the command of that name.
        command = getattr(import_module(f"construction_panoptic.commands.{arguments[0]}"), arguments[0])
        return command(arguments[1:], prog_name=f"construction-panoptic {arguments[0]}", **options)
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_project

    package_name = Path(__file__).parent.name
    configure_project(package_name)
    return find_run_command(package_name)(*args, **options)


if __name__ == "__main__":
    main()
