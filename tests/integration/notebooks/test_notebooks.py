"""The notebooks run from beginning to end on the tiny sample, and are committed without output."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.pipelines.conftest import make_project  # noqa: F401
from tests.integration.pipelines.project import Project

NOTEBOOKS = ["explore_dataset", "train_and_evaluate", "predict"]


def read(repository: Path, name: str) -> Any:
    return nbformat.read(repository / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_these_are_all(repository: Path) -> None:
    assert {path.stem for path in (repository / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_output(repository: Path, name: str) -> None:
    for cell in code_cells(read(repository, name)):
        assert not cell.outputs
        assert cell.execution_count is None


@pytest.mark.slow
def test_the_notebooks_run_one_after_the_other(
    repository: Path,
    make_project: Callable[[], Project],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = make_project()
    project.run("--pipelines", "sample_data")
    project.run("--pipelines", "annotation_conversion")
    (project.folder / "notebooks").mkdir()
    # The tiny trainings of the other tests, in the copy's own configuration.
    (project.folder / "conf" / "local" / "parameters.yml").unlink(missing_ok=True)
    sample = project.folder / "conf" / "sample" / "parameters.yml"
    text, trainings = re.subn(r"^  epochs: \d+$", "  epochs: 2", sample.read_text(), flags=re.MULTILINE)
    assert trainings == 3  # detector, mask head, Panoptic-DeepLab
    sample.write_text(text)
    monkeypatch.chdir(project.folder / "notebooks")
    monkeypatch.setenv("KEDRO_ENV", "sample")
    monkeypatch.setenv("THRESHOLD", "0.02")
    for name in NOTEBOOKS:
        notebook = read(repository, name)
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(project.folder / "notebooks")}},
        ).execute()
        pictures = [
            output
            for cell in code_cells(notebook)
            for output in cell.outputs
            if {"image/png", "application/vnd.plotly.v1+json"} & set(output.get("data", {}))
        ]
        assert len(pictures) >= 3, name
