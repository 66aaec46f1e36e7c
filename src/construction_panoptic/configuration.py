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


def project_folder() -> str:
    """Find the project: the first folder with ``conf/base``, upwards from here, else from the package's folder."""
    for start in (Path.cwd(), Path(__file__).resolve().parents[1]):  # the package has a conf/ of its own, for init
        for folder in (start, *start.parents):
            if (folder / "conf" / "base").is_dir():
                return folder.as_posix()
    return Path.cwd().as_posix()


def mlflow_artifacts() -> str | None:
    """Give the folder of the local artifact store; None with a tracking server, which has its own."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else f"{project_folder()}/mlartifacts"


class ConfigurationHook:
    """Remembers where the configuration is, a folder or an archive of one, and checks the parameters before a run."""

    def __init__(self) -> None:
        self.source = Path("conf")  # of a session without hooks, such as that of kedro-viz

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: Any) -> None:
        """Check conf and ``--params``, so that a typo costs seconds and no result.

        Raises:
            ParameterError: all mistakes, a line each.
        """
        self.source = Path(context.config_loader.conf_source)
        check_parameters(context.config_loader["parameters"])

    def file(self, name: str) -> str:
        """Give the path of a file beside the configuration; ``${conf_file:base/taxonomy.json}`` in the catalog asks."""
        folder = _unpacked(self.source) if self.source.is_file() else self.source
        return (folder / name).as_posix()


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
        "project": project_folder,
        "conf_file": CONFIGURATION.file,
        "mlflow_artifacts": mlflow_artifacts,
        "oc.env": oc.env,
    },
}


def config_loader(source: Path, env: str | None, params: dict[str, Any] | None = None) -> OmegaConfigLoader:
    """Read the configuration as a session does, without the plugins that a session loads."""
    CONFIGURATION.source = source
    return OmegaConfigLoader(conf_source=str(source), env=env, runtime_params=params, **CONFIG_LOADER_ARGS)
