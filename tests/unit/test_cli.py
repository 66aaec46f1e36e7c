import sys
from pathlib import Path
from typing import Any

import click
import pytest
from torch.utils.data import DataLoader, Dataset

from construction_panoptic import cli
from construction_panoptic.annotations.panoptic_png import decode_id_map
from construction_panoptic.cli import message
from construction_panoptic.errors import InputDataError, user_error
from construction_panoptic.reporting import REPORT


class Pictures(Dataset[object]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        return decode_id_map(self.path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_for_people_has_no_traceback_whatever_process_raised_it(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "damaged.png"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(InputDataError) as caught:
        next(iter(DataLoader(Pictures(path), num_workers=workers, multiprocessing_context="fork" if workers else None)))
    told = user_error(caught.value)
    assert told is not None
    assert message(told).startswith(f"{path}: cannot be read as a PNG")
    assert "Traceback" not in message(told)


def test_the_command_that_was_typed_goes_on_once_a_node_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(**_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("construction_panoptic.preflight.check_run", lambda _: None)
    monkeypatch.setattr(cli.kedro_run, "callback", exhausted)
    monkeypatch.setattr(sys, "argv", ["/venv/bin/kedro", "run", "--env", "sample", "--params", "run_name=first try"])
    monkeypatch.setattr(REPORT, "has_begun", False)
    with pytest.raises(click.ClickException) as caught:
        cli._run()
    assert "Memory has run out" in caught.value.message
    assert "go on with" not in caught.value.message
    monkeypatch.setattr(REPORT, "has_begun", True)
    with pytest.raises(click.ClickException) as caught:
        cli._run()
    line = "Then go on with: kedro run --env sample --params 'run_name=first try' --only-missing-outputs"
    assert caught.value.message.splitlines()[-1] == line
    monkeypatch.setattr(sys, "argv", ["python -m kedro", *sys.argv[1:]])
    assert cli.how_to_go_on() == "\n" + line.replace("kedro", "python -m kedro")


@pytest.mark.parametrize(
    ("typed", "params"),
    [
        ("a.sides=[320, 384],b=3", {"a": {"sides": [320, 384]}, "b": 3}),
        ("classes=[crane,pump]", {"classes": ["crane", "pump"]}),
        ("a=1, b = x y ,", {"a": 1, "b": "x y"}),
        ("a=1,b=x]", {"a": 1, "b": "x]"}),
        ("", {}),
    ],
)
def test_a_parameter_can_be_a_list(typed: str, params: dict[str, Any]) -> None:
    assert cli.run.make_context("run", ["--params", typed]).params["params"] == params


@pytest.mark.parametrize(
    ("typed", "problem"),
    [("sides=512,576", "`576` must contain a key and a value"), ("=1,b=2", "cannot be an empty string")],
)
def test_what_is_no_pair_is_refused_as_by_kedro(typed: str, problem: str) -> None:
    with pytest.raises(click.UsageError, match=problem):
        cli.run.make_context("run", ["--params", typed])


def test_parameters_of_a_configuration_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    file.write_text("run:\n  params:\n    sides: [320, 384]\n")
    assert cli.run.make_context("run", ["--config", str(file)]).params["params"] == {"sides": [320, 384]}
