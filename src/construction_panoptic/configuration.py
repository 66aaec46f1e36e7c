"""The project's configuration: where it lies, how it is read, and its check before anything is touched."""

import atexit
import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.hooks import hook_impl
from omegaconf.resolvers import oc

from construction_panoptic.config.parameters import check_parameters


class ConfigurationHook:
    """Remembers where project and configuration are, a folder or an archive, and checks the parameters before a run."""

    def __init__(self) -> None:
        # Of a session without hooks, such as that of kedro-viz.
        self.source, self.project = Path("conf"), Path.cwd().as_posix()

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: Any) -> None:
        """Check conf and ``--params``, so that a typo costs seconds and no result.

        Raises:
            ParameterError: all mistakes, a line each.
        """
        self.source, self.project = Path(context.config_loader.conf_source), context.project_path.as_posix()
        check_parameters(context.config_loader["parameters"])

    def file(self, name: str) -> str:
        """Give the path of a file beside the configuration; ``${conf_file:base/taxonomy.json}`` in the catalog asks."""
        folder = _unpacked(self.source) if self.source.is_file() else self.source
        return (folder / name).as_posix()

    def artifacts(self) -> str | None:
        """Give the folder of the local artifact store; None with a tracking server, which has its own."""
        return None if os.environ.get("MLFLOW_TRACKING_URI") else f"{self.project}/mlartifacts"


@cache
def _unpacked(archive: Path) -> Path:
    """Unpack what ``kedro package`` makes, one folder, into a temporary one."""
    folder = mkdtemp(prefix="conf_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.unpack_archive(archive, folder, filter="data")
    return next(path for path in Path(folder).iterdir() if path.is_dir())


CONFIGURATION = ConfigurationHook()

CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes single parameters; what it does not name stays as in conf/base.
    "merge_strategy": {"parameters": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "custom_resolvers": {
        "project": lambda: CONFIGURATION.project,
        "conf_file": CONFIGURATION.file,
        "mlflow_artifacts": CONFIGURATION.artifacts,
        "oc.env": oc.env,
    },
}


def config_loader(source: Path, env: str | None, params: dict[str, Any] | None = None) -> OmegaConfigLoader:
    """Read the configuration as a session does, without the plugins that a session loads."""
    CONFIGURATION.source = source
    return OmegaConfigLoader(conf_source=str(source), env=env, runtime_params=params, **CONFIG_LOADER_ARGS)
