"""``kedro package``: the wheel and the configuration's archive work in a folder that is not the project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

ARCHIVE = "conf-construction_panoptic.tar.gz"
TINY = "sample_data.images=30,sample_data.rare_images=3"


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what ``kedro package`` made of a copy of the project, the wheel unpacked, as pip would."""
    copy = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("local", "__pycache__", "*.egg-info")
    for name in ("src", "conf"):
        shutil.copytree(repository / name, copy / name, ignore=without)
    (copy / "conf" / "local").mkdir()
    for name in ("pyproject.toml", ".telemetry", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy / name)
    done = subprocess.run(
        [sys.executable, "-m", "kedro", "package"], cwd=copy, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,) = (copy / "dist").glob("*.whl")
    built = tmp_path_factory.mktemp("built")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "installed")
    shutil.copy(copy / "dist" / ARCHIVE, built)
    return built


def run(built: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m construction_panoptic`` from the wheel, in a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "KEDRO"))}
    return subprocess.run(
        [sys.executable, "-m", "construction_panoptic", *arguments],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(built / "installed"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_wheel_says_what_it_can(built: Path, tmp_path: Path) -> None:
    done = run(built, tmp_path, "--help")
    assert done.returncode == 0
    assert "--conf-source" in done.stdout
    assert "PATH" in run(built, tmp_path, "predict", "--help").stdout


def test_the_templates_of_the_reports_are_in_the_wheel(built: Path, repository: Path) -> None:
    folder = "construction_panoptic/visualisation/templates"
    templates = {path.name for path in (repository / "src" / folder).iterdir()}
    assert {path.name for path in (built / "installed" / folder).iterdir()} == templates
    assert (built / "installed/construction_panoptic/commands/app.html").is_file()


def test_it_runs_with_the_archive_of_the_configuration(built: Path, tmp_path: Path) -> None:
    options = ("--conf-source", str(built / ARCHIVE), "--env", "sample", "--params", TINY)
    for pipeline in ("sample_data", "annotation_conversion"):
        done = run(built, tmp_path, *options, "--pipelines", pipeline)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(pd.read_csv(tmp_path / "data" / "03_primary" / "split.csv")) == 30
    assert (tmp_path / "mlflow.db").is_file()
    assert not (built / "installed" / "data").exists()


def test_it_runs_where_init_has_written_the_configuration(built: Path, tmp_path: Path) -> None:
    done = run(built, tmp_path.parent, "init", tmp_path.name)
    assert done.returncode == 0, done.stderr
    environments = {"base", "laptop", "large", "local", "sample", "small"}
    assert {path.name for path in (tmp_path / "conf").iterdir()} == environments | {"logging.yml"}
    assert (tmp_path / "data/01_raw/construction").is_dir(), "where the configuration looks for exports"
    done = run(built, tmp_path, "--env", "sample", "--params", TINY, "--pipelines", "sample_data")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # A class that the taxonomy of this folder does not have is rejected: it is this taxonomy that counts.
    taxonomy = tmp_path / "conf" / "base" / "taxonomy.json"
    taxonomy.write_text(taxonomy.read_text().replace('"wheel_loader"', '"digger"'))
    done = run(built, tmp_path, "--env", "sample", "--pipelines", "annotation_conversion")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rejected = pd.read_csv(tmp_path / "data" / "02_intermediate" / "rejected_records.csv")
    assert rejected["reason"].eq("unknown_class").any()


def test_an_error_is_one_message(built: Path, tmp_path: Path) -> None:
    done = run(built, tmp_path, "--conf-source", str(built / ARCHIVE), "--pipelines", "annotation_conversion")
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
