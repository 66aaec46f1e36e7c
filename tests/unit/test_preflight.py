"""Mistakes in a command are said before anything is imported that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.startup import bootstrap_project
from kedro.io import CatalogConfigResolver

from construction_panoptic import preflight
from construction_panoptic.configuration import config_loader
from construction_panoptic.errors import InputDataError, ParameterError

pytestmark = pytest.mark.medium

HEAVY = {"torch", "torchvision", "pandas", "mlflow", "matplotlib", "plotly"}
OPTIONS = (
    "from_inputs",
    "to_outputs",
    "from_nodes",
    "to_nodes",
    "node_names",
    "tags",
    "namespaces",
    "pipelines",
    "runner",
    "load_versions",
    "is_async",
)


@pytest.fixture(autouse=True)
def _project(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap_project(repository)
    monkeypatch.setattr(preflight, "project_path", lambda: tmp_path)
    (tmp_path / "conf").symlink_to(repository / "conf")


def check(**chosen: Any) -> None:
    options: dict[str, Any] = {"env": None, "conf_source": None, "params": {}, "pipeline": None}
    preflight.check_run(options | {"only_missing_outputs": False} | dict.fromkeys(OPTIONS) | chosen)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"env": "smaple"}, "--env smaple: .* did you mean sample"),
        ({"params": {"detecton": {"epochs": 3}}}, "detecton: .* did you mean detection"),
        ({"params": {"panoptic_evaluation": {"threshold": "abc"}}}, "panoptic_evaluation.threshold: .*not 'abc'"),
        ({"params": {"prediction": {"classes": "crane"}}}, r"prediction.classes: a list is needed, such as \[crane\]"),
        ({"pipelines": ["detection"]}, "--pipelines detection: .* did you mean detection_training"),
        ({"pipelines": ["prediction", "panoptic_deeplab_prediction"]}, "--pipelines prediction,pan.* the same files"),
        ({"pipelines": ["detection_training", "__default__"]}, "--pipelines detection_t.* the same files"),
        ({"node_names": ["train_detector"]}, "--nodes train_detector: .* did you mean detr.detection.train_detector"),
        ({"to_outputs": ["example_sheets"]}, "--to-outputs example_sheets: .* did you mean example_sheet"),
        ({"namespaces": ["foo"]}, "foo"),
        ({"runner": "ParallelRunner"}, "--runner ParallelRunner: .* did you mean SequentialRunner|ThreadRunner"),
        ({"is_async": True}, "--async: trainings"),
        ({"load_versions": {"panoptic_vall": "2026"}}, "--load-versions panoptic_vall: .* did you mean panoptic_val"),
        ({"params": {"taxonomy": "my.json"}}, "taxonomy: there is no my.json"),
        ({"params": {"stuff_predictions": "ready"}}, "stuff_predictions: there is no ready"),
        ({"params": {"detection": {"weights": "/no/such.pth"}}}, "detection.weights: there is no /no/such.pth"),
    ],
)
def test_a_mistake_is_named(chosen: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        check(**chosen)


def test_what_another_pipeline_has_not_made_is_named_with_that_pipeline(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"mask_head\.best is missing \(data/06.*\): the pipeline mask_head_"):
        check(pipelines=["prediction"])
    own = r"panoptic_deeplab\.example_sheet is missing .*: the pipeline panoptic_deeplab_panoptic_evaluation makes it"
    with pytest.raises(InputDataError, match=own):
        check(pipelines=["panoptic_deeplab_error_analysis"])
    best = tmp_path / "data/06_models/mask_head/best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"model")
    check(pipelines=["prediction"])


@pytest.mark.parametrize(("job", "recipe"), [("__default__", "detr"), ("panoptic_deeplab", "panoptic_deeplab")])
def test_each_recipe_keeps_results_of_its_own(job: str, recipe: str) -> None:
    names = ("panoptic_predictions", "box_predictions", "panoptic_quality", "average_precision")
    assert {f"{recipe}.{name}" for name in names} <= preflight.outlines()[job].all_outputs()


@pytest.mark.parametrize(("job", "recipe"), [("__default__", "detr"), ("universal", "universal")])
def test_a_whole_job_has_a_namespace_for_its_data_and_one_for_its_recipe(job: str, recipe: str) -> None:
    spaces = {str(node.namespace).partition(".")[0] for node in preflight.outlines()[job].nodes}
    assert spaces == {"annotation_conversion", recipe}


@pytest.mark.parametrize(
    ("pipeline", "recipe"), [("error_analysis", "detr"), ("panoptic_deeplab_error_analysis", "panoptic_deeplab")]
)
def test_errors_are_those_of_the_recipe_and_not_of_what_was_evaluated_last(pipeline: str, recipe: str) -> None:
    names = {"panoptic_predictions", "box_predictions", "panoptic_quality", "average_precision"}
    inputs = preflight.outlines()[pipeline].inputs()
    assert {f"{recipe}.{name}" for name in names} <= inputs
    assert names.isdisjoint(inputs)


def test_outlines_are_the_pipelines() -> None:
    from construction_panoptic.pipeline_registry import register_pipelines

    real, outlined = register_pipelines(), preflight.outlines()
    assert outlined.keys() == real.keys()
    for name, pipeline in real.items():
        assert {node.name: (node.inputs, node.outputs) for node in pipeline.nodes} == {
            node.name: (node.inputs, node.outputs) for node in outlined[name].nodes
        }


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("import construction_panoptic.cli; construction_panoptic.preflight.outlines()", HEAVY),
        ("import construction_panoptic.tracking.runs", HEAVY - {"mlflow", "pandas"}),
    ],
)
def test_the_check_and_the_commands_import_nothing_heavy(imports: str, heavy: set[str], repository: Path) -> None:
    code = f"""if True:
        import json, sys
        from kedro.framework.startup import bootstrap_project
        bootstrap_project(".")
        import construction_panoptic.preflight
        {imports}
        print(json.dumps(sorted(sys.modules)))
    """
    command = [sys.executable, "-c", code]
    modules = json.loads(
        subprocess.run(command, cwd=repository, capture_output=True, check=True).stdout.splitlines()[-1]
    )
    assert heavy.isdisjoint(modules)


def test_a_recipe_for_a_gpu_goes_on_without_one_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name in ("__default__", "panoptic_deeplab", "detection_training"):
        with pytest.raises(ParameterError, match=r"--env laptop .*--params device=cpu"):
            check(pipelines=[name], only_missing_outputs=True)
    for told in ({"params": {"device": "cpu"}}, {"env": "sample"}, {"pipelines": ["annotation_conversion"]}):
        check(**{"only_missing_outputs": True, **told})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check(only_missing_outputs=True)


@pytest.mark.parametrize("name", ["__default__", "panoptic_evaluation", "prediction"])
def test_a_device_that_is_not_there_is_named_before_results_are_outdated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ParameterError, match="there is no CUDA device for 'cuda'"):
        check(env="sample", pipelines=[name], params={"device": "cuda"}, only_missing_outputs=True)
    on_a_cluster = {"engine": "ray"}
    check(
        pipelines=["detection_training"],
        params={"detection": {"device": "cuda", "execution": on_a_cluster}},
        only_missing_outputs=True,
    )


def test_no_node_leads_back_to_an_earlier_layer(repository: Path) -> None:
    """Kedro-Viz leaves all layers out if one does."""
    entries = CatalogConfigResolver(config_loader(repository / "conf", None)["catalog"], default_runtime_patterns={})

    def layer(name: str) -> str | None:
        metadata = entries.resolve_pattern(name).get("metadata") or {}
        found: str | None = metadata.get("kedro-viz", {}).get("layer")
        return found

    known = 0
    for pipeline in preflight.outlines().values():
        for node in pipeline.nodes:
            before, after = (sorted(filter(None, map(layer, names))) for names in (node.inputs, node.outputs))
            known += len(after)
            assert not before or not after or before[-1] <= after[0], node.name
    assert known > 100
