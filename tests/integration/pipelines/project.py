"""A project folder of its own, and the command line in it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# A few seconds of training: everything is exercised, nothing is learned.
TINY = {
    "sample_data.images": "30",
    "sample_data.rare_images": "3",
    "detection.epochs": "2",
    "detection.validate_every": "1",
    "mask_head.epochs": "2",
    "mask_head.validate_every": "1",
    "panoptic_evaluation.threshold": "0.05",
    "panoptic_evaluation.threshold_stuff": "0.04",
    "panoptic_evaluation.examples": "2",
}


@dataclass(frozen=True)
class Project:
    """A project folder and the ``kedro`` command in it."""

    folder: Path

    @classmethod
    def create(cls, folder: Path, repository: Path) -> "Project":
        """Make a project of its own: the configuration copied, no data."""
        shutil.copytree(repository / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
        (folder / "conf" / "local").mkdir()
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(repository / name, folder / name)
        (folder / "src").mkdir()  # the installed package is run
        return cls(folder)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "kedro", *arguments]

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "KEDRO"))}
        return {**kept, "COLUMNS": "200", "OMP_WAIT_POLICY": "passive"}

    def kedro(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *arguments: str, params: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """``kedro run --env sample`` with a tiny sample; fails the test if the command fails."""
        text = ",".join(f"{name}={value}" for name, value in (TINY | (params or {})).items())
        done = self.kedro("run", "--env", "sample", "--params", text, *arguments)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done
