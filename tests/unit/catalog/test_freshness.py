from pathlib import Path
from typing import Any

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from construction_panoptic.catalog import JSONDataset
from construction_panoptic.catalog.freshness import FreshnessHook


class Chain:
    """raw → a → b → c, where each node adds its name and can be told to fail."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.fail_in = ""
        self.catalog = DataCatalog(
            {name: JSONDataset(filepath=str(folder / f"{name}.json")) for name in ("raw", "a", "a2", "b", "c")}
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

    def run(self, only_missing_outputs: bool = False) -> list[str]:
        self.calls.clear()
        manager = _create_hook_manager()
        manager.register(FreshnessHook())
        manager.hook.before_pipeline_run(
            run_params={"only_missing_outputs": only_missing_outputs},
            pipeline=self.pipeline,
            catalog=self.catalog,
        )
        SequentialRunner().run(self.pipeline, self.catalog, manager, only_missing_outputs=only_missing_outputs)
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
    (tmp_path / "a2.json").unlink()
    assert chain.run(only_missing_outputs=True) == ["a", "b", "c"]
