"""``python -m construction_panoptic``: ``kedro run`` in the project, and with the word ``predict`` prediction alone."""

import sys
from pathlib import Path
from typing import Any


def main(*args: Any, **kwargs: Any) -> Any:
    """Run the project's pipelines with the options of ``kedro run``, or ``predict PATH``."""
    interactive = hasattr(sys, "ps1")
    options = {"standalone_mode": not interactive, **kwargs}
    arguments = list(args[0]) if args else sys.argv[1:]
    if arguments[:1] == ["predict"]:
        from construction_panoptic.predict import predict

        return predict(arguments[1:], prog_name="construction-panoptic predict", **options)
    from kedro.framework.cli.utils import find_run_command
    from kedro.framework.project import configure_project

    package_name = Path(__file__).parent.name
    configure_project(package_name)
    return find_run_command(package_name)(*args, **options)


if __name__ == "__main__":
    main()
