"""``python -m construction_panoptic``: ``kedro run`` in the project; `commands` need none."""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from construction_panoptic import commands


def main(*args: Any, **kwargs: Any) -> Any:
    """Run the project's pipelines with the options of ``kedro run``, or one of the package's `commands`."""
    interactive = hasattr(sys, "ps1")
    options = {"standalone_mode": not interactive, **kwargs}
    arguments = list(args[0]) if args else sys.argv[1:]
    word = next(iter(arguments), "")
    if word in {module.name for module in pkgutil.iter_modules(commands.__path__)}:
        command = getattr(import_module(f"{commands.__name__}.{word}"), word)
        return command(arguments[1:], prog_name=f"construction-panoptic {word}", **options)
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_project

    package_name = Path(__file__).parent.name
    configure_project(package_name)
    return find_run_command(package_name)(*args, **options)


if __name__ == "__main__":
    main()
