import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset

from construction_panoptic.catalog.checkpoints import CheckpointDataset, ResumeDataset
from construction_panoptic.catalog.files import ProjectCatalog
from construction_panoptic.catalog.hooks import FreshnessHook
from construction_panoptic.files import UNCHANGED


class Chain:
    """raw → a → b → c, where each node adds its name and can be told to fail."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.fail_in = ""
        self.project = folder
        files = {"raw": "01_raw/raw", "a": "05_model_input/a", "a2": "05_model_input/a2", "b": "06_models/x/b"}
        files["c"] = "08_reporting/c"
        self.catalog = ProjectCatalog(
            {name: JSONDataset(filepath=f"{folder}/data/{file}.json") for name, file in files.items()}
        )
        self.catalog.save("raw", ["raw"])
        self.pipeline = Pipeline(
            [
                Node(self.step("a", 2), "raw", ["a", "a2"], name="make_a"),
                Node(self.step("b", 1), "a", "b", name="make_b"),
                Node(self.step("c", 1), "b", "c", name="make_c"),
            ]
        )

    def step(self, name: str, outputs: int) -> Any:
        def run(data: list[str]) -> Any:
            self.calls.append(name)
            if self.fail_in == name:
                raise RuntimeError("interrupted")
            result = [*data, name]
            return result if outputs == 1 else (result, result)

        return run

    def run(self, only_missing_outputs: bool = False, pipeline: Pipeline | None = None) -> list[str]:
        self.calls.clear()
        manager = _create_hook_manager()
        whole = Pipeline(self.pipeline, namespace="recipe", prefix_datasets_with_namespace=False)
        registered = {node.name: Pipeline([node]) for node in self.pipeline.nodes} | {"__default__": whole}
        hook = FreshnessHook(lambda: registered)
        manager.register(hook)
        pipeline = pipeline or self.pipeline
        manager.hook.before_pipeline_run(
            run_params={"only_missing_outputs": only_missing_outputs, "project_path": str(self.project)},
            pipeline=pipeline,
            catalog=self.catalog,
        )
        SequentialRunner().run(pipeline, self.catalog, manager, only_missing_outputs=only_missing_outputs)
        return list(self.calls)


def test_an_interrupted_run_goes_on_with_nothing_outdated(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    assert chain.run() == ["a", "b", "c"]
    chain.catalog.save("raw", ["other"])
    chain.fail_in = "b"
    with pytest.raises(RuntimeError):
        chain.run()
    chain.fail_in = ""
    assert chain.run(only_missing_outputs=True) == ["b", "c"]
    assert chain.catalog.load("c") == ["other", "a", "b", "c"]


def test_a_run_that_fails_before_it_replaces_anything_removes_nothing(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.run()
    chain.fail_in = "a"
    with pytest.raises(RuntimeError):
        chain.run()
    assert chain.catalog.load("c") == ["raw", "a", "b", "c"]
    chain.fail_in = ""
    assert chain.run(only_missing_outputs=True) == []


def test_what_stands_on_a_missing_output_is_made_again(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.run()
    (tmp_path / "data/05_model_input/a2.json").unlink()
    assert chain.run(only_missing_outputs=True) == ["a", "b", "c"]


def test_what_other_pipelines_have_made_is_outdated_too(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.run()
    chain.catalog.save("raw", ["other"])
    assert chain.run(pipeline=chain.pipeline.only_nodes("make_a")) == ["a"]
    assert not chain.catalog.exists("b")
    assert not chain.catalog.exists("c")
    assert chain.run(only_missing_outputs=True) == ["b", "c"]
    assert chain.catalog.load("c") == ["other", "a", "b", "c"]


def kept(folder: Path) -> list[Any]:
    return [json.loads(path.read_text())[0] for path in sorted(folder.glob("data/*/previous/*/**/*.json"))]


def test_results_stay_until_their_successors_come_and_then_move(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    chain.run()
    chain.catalog.save("raw", ["other"])
    chain.fail_in = "b"
    with pytest.raises(RuntimeError):
        chain.run()
    assert chain.catalog.load("b") == ["raw", "a", "b"]
    assert not chain.catalog.exists("b")
    assert kept(tmp_path) == []
    chain.fail_in = ""
    assert chain.run(only_missing_outputs=True) == ["b", "c"]
    assert kept(tmp_path) == ["raw", "raw"]
    assert chain.run(only_missing_outputs=True) == []
    assert not list(tmp_path.rglob(".*.outdated"))


def test_three_previous_versions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(tmp_path)
    for number in range(6):
        monkeypatch.setattr(time, "strftime", lambda _, number=number: f"run {number}")
        chain.catalog.save("raw", [number])
        chain.run()
    assert kept(tmp_path) == 2 * [2, 3, 4]
    assert [path.name for path in sorted((tmp_path / "data/06_models/previous").iterdir())] == [
        f"run {number}" for number in (3, 4, 5)
    ]


def test_results_of_another_model_are_made_again(tmp_path: Path) -> None:
    catalog = ProjectCatalog(
        {
            name: JSONDataset(filepath=f"{tmp_path}/data/{file}.json")
            for name, file in {"x.best": "06_models/x", "y.best": "06_models/y", "p": "07/p", "q": "08/q"}.items()
        }
    )
    catalog.save("x.best", "x")
    catalog.save("y.best", "y")

    def run(model: str) -> Any:
        pipeline = Pipeline(
            [
                Node(lambda model: model, f"{model}.best", "p", name="predict"),
                Node(lambda predictions: f"quality of {predictions}", "p", "q", name="measure"),
            ]
        )
        manager = _create_hook_manager()
        manager.register(FreshnessHook())
        run_params = {"only_missing_outputs": True, "project_path": str(tmp_path)}
        manager.hook.before_pipeline_run(run_params=run_params, pipeline=pipeline, catalog=catalog)
        SequentialRunner().run(pipeline, catalog, manager, only_missing_outputs=True)
        return catalog.load("q")

    assert [run("x"), run("y"), run("x")] == ["quality of x", "quality of y", "quality of x"]
    before = (tmp_path / "data/08/q.json").stat().st_mtime_ns
    assert run("x") == "quality of x"
    assert (tmp_path / "data/08/q.json").stat().st_mtime_ns == before, "nothing is missing"


def test_results_of_another_recipe_are_not_outdated(tmp_path: Path) -> None:
    names = ["x.best", "y.best", "predictions", "quality", "x.quality", "y.quality"]
    catalog = ProjectCatalog({name: JSONDataset(filepath=f"{tmp_path}/data/07/{name}.json") for name in names})
    recipes = {
        recipe: Pipeline(
            [
                Node(lambda: "model", None, f"{recipe}.best", name=f"train_{recipe}"),
                Node(lambda made: made, f"{recipe}.best", "predictions", name="predict"),
                Node(lambda made: made, "predictions", "quality", name="measure"),  # the same of both
                Node(lambda made: made, "quality", f"{recipe}.quality", name="keep"),
            ]
        )
        for recipe in "xy"
    }

    def run(pipeline: Pipeline) -> None:
        manager = _create_hook_manager()
        manager.register(FreshnessHook(lambda: recipes))
        run_params = {"project_path": str(tmp_path)}
        manager.hook.before_pipeline_run(run_params=run_params, pipeline=pipeline, catalog=catalog)
        SequentialRunner().run(pipeline, catalog, manager)

    run(recipes["x"])
    run(recipes["y"])
    assert catalog.exists("x.quality")
    run(recipes["x"].only_nodes("train_x"))
    assert not catalog.exists("x.quality")
    assert catalog.exists("y.quality")


@pytest.mark.parametrize(("settings", "kept"), [("former", []), ("other", ["best.pt", "last.pt"])])
def test_checkpoints_of_an_unfinished_training_that_starts_over_are_kept(
    settings: str, kept: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "data/06_models/x"
    best = CheckpointDataset(filepath=f"{folder}/best.pt", complete_when_finished=False)
    last = CheckpointDataset(filepath=f"{folder}/last.pt")
    resume = ResumeDataset(filepath=f"{folder}/last.pt")
    catalog = ProjectCatalog({"x.best": best, "x.checkpoint": last, "x.resume_from": resume})

    def checkpoint(epoch: int, settings: str) -> dict[str, Any]:
        return {"fingerprint": {"settings": settings}, "epoch": epoch, "finished": False, "model": {}}

    best.save(checkpoint(150, "former"))
    last.save(checkpoint(199, "former"))

    def train(_: Any) -> Iterator[tuple[Any, Any]]:
        yield UNCHANGED, checkpoint(1, settings)  # interrupted before the first validation
        yield checkpoint(2, settings), checkpoint(2, settings)

    pipeline = Pipeline([Node(train, "x.resume_from", ["x.best", "x.checkpoint"])])
    manager = _create_hook_manager()
    manager.register(FreshnessHook())
    manager.hook.before_pipeline_run(run_params={"project_path": str(tmp_path)}, pipeline=pipeline, catalog=catalog)
    SequentialRunner().run(pipeline, catalog, manager)
    previous = {path.name: path for path in tmp_path.glob("data/06_models/previous/*/unfinished/x/*")}
    assert sorted(previous) == kept
    assert last.load()["epoch"] == best.load()["epoch"] == 2
    for name, epoch in {"best.pt": 150, "last.pt": 199}.items():
        assert not kept or CheckpointDataset(filepath=str(previous[name])).load()["epoch"] == epoch
