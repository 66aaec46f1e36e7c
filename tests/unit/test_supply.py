"""What the code may not do: run code out of files, or reach out to the network by itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import construction_panoptic

pytestmark = pytest.mark.medium

SOURCES = sorted(Path(construction_panoptic.__file__).parent.rglob("*.py"))


def calls(path: Path, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_checkpoints_are_read_as_data_alone() -> None:
    found = [(path.name, call) for path in SOURCES for call in calls(path, "torch.load")]
    assert found
    for name, call in found:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("weights_only") == "True", f"{name}, line {call.lineno}"


@pytest.mark.parametrize("name", ["pickle.load", "cloudpickle.load", "joblib.load", "dill.load", "pd.read_pickle"])
def test_no_file_is_unpickled(name: str) -> None:
    assert [path.name for path in SOURCES for _ in calls(path, name)] == []
    options = [keyword.arg for path in SOURCES for call in calls(path, "np.load") for keyword in call.keywords]
    assert "allow_pickle" not in options


def test_only_weights_and_tracking_use_the_network() -> None:
    clients = {"urllib.request", "requests", "httpx", "aiohttp", "http.client", "huggingface_hub"}
    others = [path for path in SOURCES if path.parent.name != "tracking"]
    assert [path.name for path in others if clients & imported(path)] == ["hub.py"]
    downloads = ("torch.hub.download_url_to_file", "torch.hub.load_state_dict_from_url", "torch.hub.load")
    found = [(path.name, name) for path in SOURCES for name in downloads for _ in calls(path, name)]
    assert found == [("checkpoint.py", "torch.hub.download_url_to_file")]
