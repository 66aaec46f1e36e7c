"""The prediction pipeline through the command line, with a model that has random weights."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copyfile
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.framework.project import configure_project
from PIL import Image

from construction_panoptic.annotations.images import perceptual_hash
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import AugmentationSettings
from construction_panoptic.files import write_json
from construction_panoptic.models.detr import build_detr_panoptic
from construction_panoptic.pipeline_registry import register_pipelines
from tests.integration.pipelines.project import Project

ARCHITECTURE = DetrSettings(
    backbone="tiny",
    norm="batch",
    num_queries=6,
    hidden_dim=32,
    num_heads=4,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_dim=32,
)


@pytest.fixture(scope="module")
def trained_project(project: Project) -> Project:
    torch.manual_seed(0)
    colors = {"color": [90, 160, 20], "supercategory": "x"}
    checkpoint = {
        "stage": "mask_head",
        "model": build_detr_panoptic(3, **ARCHITECTURE.model_dump()).state_dict(),
        "extra": {
            "categories": [{"id": i, "name": f"class {i}", "isthing": i - 1, **colors} for i in (1, 2)],
            "model": ARCHITECTURE.model_dump(mode="json"),
            "augmentation": AugmentationSettings(evaluation_side=64, max_side=96).model_dump(mode="json"),
            "threshold": 0.01,
        },
    }
    path = project.folder / "data" / "06_models" / "mask_head" / "best.pt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    return project


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    (folder / "c.png").write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize("env", [["--env", "sample"], []])
def test_a_folder_is_predicted_and_bad_files_are_listed(trained_project: Project, images: Path, env: list[str]) -> None:
    done = trained_project.kedro("run", *env, "--pipelines", "prediction", "--params", f"prediction.source={images}")
    assert done.returncode == 0, done.stdout + done.stderr
    out = trained_project.folder / "data" / "07_model_output" / "prediction"
    data = json.loads((out / "panoptic" / "predictions.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["a.png", "b.png"]
    for view in ("masks", "boxes"):
        assert {path.name for path in (out / view).iterdir()} == {"a.jpg", "b.jpg"}
    assert set(pd.read_csv(out / "seen.csv")["image"]) == {"a.png", "b.png"}
    assert pd.read_csv(out / "rejected.csv")["file"].tolist() == ["c.png"]
    # Using a model is no experiment.
    assert not (trained_project.folder / "mlruns").exists()


def test_no_source_says_how_to_give_one(trained_project: Project) -> None:
    done = trained_project.kedro("run", "--pipelines", "prediction")
    assert done.returncode != 0
    assert "Error: prediction.source: say what to predict" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_images_to_annotate_next_are_ranked_drawn_and_written_for_cvat(
    trained_project: Project, images: Path
) -> None:
    data = trained_project.folder / "data"
    categories = [{"id": 1, "name": "class 1"}, {"id": 2, "name": "class 2"}]
    Image.open(images / "b.png").transpose(Image.Transpose.ROTATE_180).save(images / "new.png")
    Image.open(images / "b.png").save(images / "b_again.bmp")
    annotated = {"key": "export/a.png", "stem": "a", "image_file": "a.png", "width": 64, "height": 48, "void_pixels": 0}
    annotated |= {"segments": [], "rejected": [], "phash": perceptual_hash(images / "a.png")}
    (data / "03_primary" / "images").mkdir(parents=True)
    copyfile(images / "a.png", data / "03_primary" / "images" / "a.png")
    training = [{"id": 1, "file_name": "a.png"}]
    truth = {"images": training, "annotations": [{"segments_info": [{"category_id": 1}]}], "categories": categories}
    write_json(data / "03_primary" / "converted_images.jsonl", annotated)
    write_json(data / "05_model_input" / "panoptic_train.json", truth)
    params = f"annotate_next.images={images},annotate_next.count=2,prediction.execution.workers=1"
    done = trained_project.kedro("run", "--env", "sample", "--pipelines", "annotate_next", "--params", params)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "c.png is left out" in done.stdout + done.stderr

    out = data / "07_model_output" / "annotate_next"
    ranking = pd.read_csv(out / "ranking.csv")
    assert ranking["rank"].tolist() == [1, 2, 3, 4]
    originals = dict(zip(ranking["image"], ranking["near_duplicate_of"].fillna(""), strict=True))
    assert originals == {"a.png": "export/a.png", "b.png": "", "b_again.bmp": "b.png", "new.png": ""}
    assert set(ranking["image"][:2]) == {"b.png", "new.png"}
    with ZipFile(out / "chosen" / "cvat.zip") as archive:
        found = json.loads(archive.read("annotations/instances_default.json"))
        assert archive.read("images/new.png") == (images / "new.png").read_bytes()
    assert [image["file_name"] for image in found["images"]] == ranking["image"][:2].tolist()
    assert len(found["annotations"]) == ranking["segments"][:2].sum() > 0
    assert Image.open(out / "sheet.png").width == 2400
    assert not (trained_project.folder / "mlruns").exists()


@pytest.mark.slow
def test_the_model_is_exported(trained_project: Project, images: Path, tmp_path: Path) -> None:
    done = trained_project.kedro("run", "--pipelines", "model_export")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = trained_project.folder / "data" / "06_models" / "exported"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "model.onnx",
        "onnx_report.json",
    }
    registration = json.loads((folder.parent / "served" / "registration.json").read_text())
    assert registration["uri"] == "models:/construction_panoptic/1"
    assert registration["run_id"]
    command = [sys.executable, "-m", "construction_panoptic", "predict", str(images), "--model", str(folder)]
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True, cwd=tmp_path)
    assert set(pd.read_csv(tmp_path / "out" / "seen.csv")["image"]) == {"a.png", "b.png"}


def test_it_is_not_part_of_the_main_job() -> None:
    configure_project("construction_panoptic")
    pipelines = register_pipelines()
    assert "prediction_results" in pipelines["prediction"].all_outputs()
    assert "prediction_results" not in pipelines["__default__"].all_outputs()
