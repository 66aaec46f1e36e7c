"""What goes wrong outside the code is said in one message, without a traceback."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from construction_panoptic.models.detr import build_detr
from tests.integration.pipelines.project import Project

IMAGE = np.full((40, 60, 3), 128, dtype=np.uint8)


def write_export(folder: Path, *, category: str = "wheel_loader", width: int = 60, picture: bool = True) -> None:
    """Write a CVAT export of one image and one box-shaped annotation."""
    (folder / "images").mkdir(parents=True)
    if picture:
        Image.fromarray(IMAGE).save(folder / "images" / "a.png")
    data = {
        "categories": [{"id": 1, "name": category, "supercategory": ""}],
        "images": [{"id": 1, "width": width, "height": 40, "file_name": "a.png"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]],
                "area": 400,
                "bbox": [5, 5, 20, 20],
                "iscrowd": 0,
            }
        ],
    }
    (folder / "coco.json").write_text(json.dumps(data))


def message(project: Project, *arguments: str, params: dict[str, str]) -> str:
    """Run, expect it to fail, and give what it printed: short, and without a traceback."""
    text = ",".join(f"{name}={value}" for name, value in params.items())
    done = project.kedro("run", "--env", "sample", *arguments, "--params", text)
    assert done.returncode != 0, done.stdout
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, printed
    assert len(printed.splitlines()) < 20, printed
    return done.stderr[done.stderr.index("Error: ") :]


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    return tmp_path / "exports"


def test_no_raw_data_says_where_to_put_it_and_how_to_make_the_sample(project: Project, tmp_path: Path) -> None:
    said = message(project, params={"raw_data": str(tmp_path / "nowhere")})
    assert "nowhere" in said
    assert "sample_data" in said


def test_an_unknown_class_is_named(project: Project, exports: Path) -> None:
    write_export(exports / "flying_saucer", category="flying_saucer")
    said = message(project, params={"raw_data": str(exports), "annotation_conversion.on_error": "fail"})
    assert "flying_saucer" in said


def test_a_mismatched_image_size_is_named(project: Project, exports: Path) -> None:
    write_export(exports / "wheel_loader", width=61)
    said = message(project, params={"raw_data": str(exports), "annotation_conversion.on_error": "fail"})
    assert "a.png" in said
    assert "61" in said


def test_an_export_without_images_is_named(project: Project, exports: Path) -> None:
    write_export(exports / "wheel_loader", picture=False)
    shutil.rmtree(exports / "wheel_loader" / "images")
    said = message(project, params={"raw_data": str(exports)})
    assert "wheel_loader" in said


def test_no_gpu_where_one_is_asked_for(project: Project) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = message(project, "--pipelines", "detection_training", params=_ready(project) | {"detection.device": "cuda"})
    assert "CUDA" in said


def test_a_checkpoint_of_the_wrong_shape_is_named(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"model": build_detr(65, backbone="tiny", norm="batch", hidden_dim=64).state_dict()}, path)
    said = message(
        project, "--pipelines", "detection_training", params=_ready(project) | {"detection.weights": str(path)}
    )
    assert "other.pth" in said


def test_a_parameter_that_does_not_exist_is_named(project: Project) -> None:
    said = message(
        project,
        "--pipelines",
        "detection_training",
        params=_ready(project) | {"detection.optimizer.learning_rate": "1"},
    )
    assert "detection.optimizer.learning_rate" in said


def _ready(project: Project) -> dict[str, str]:
    """Make sure that there is converted data to train on."""
    if not (project.folder / "data/05_model_input/detection_val.json").is_file():
        project.run("--pipelines", "sample_data")
        project.run("--pipelines", "annotation_conversion")
    return {}
