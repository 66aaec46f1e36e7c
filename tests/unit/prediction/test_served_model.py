"""The model as MLflow keeps, registers and serves it."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from kedro.io import DatasetError

from construction_panoptic.catalog.served import REGISTRATION, ServedModelDataset
from construction_panoptic.errors import user_error
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.answering import ModelToServe, answer

START_LIMIT = 120  # seconds
ANSWER_LIMIT = 60


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A tracking store of its own."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=mlflow.create_experiment("test", (tmp_path / "artifacts").as_uri()))
    yield uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # that is how to unset it


@pytest.fixture
def entry(tmp_path: Path) -> ServedModelDataset:
    return ServedModelDataset(filepath=str(tmp_path / "models" / "served"))


def test_the_model_is_kept_and_registered(
    trained: PanopticModel, entry: ServedModelDataset, registry: str, site: Path, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        entry.save(ModelToServe(trained, "site_model"))
    assert entry.exists()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["served"]

    version = mlflow.MlflowClient().get_model_version("site_model", "1")
    assert version.run_id == run.info.run_id
    assert version.tags == {"run_id": run.info.run_id}
    registered = json.loads((tmp_path / "models" / "served" / REGISTRATION).read_text())
    assert registered["uri"] == "models:/site_model/1"

    expected = answer(trained, [str(site / "a.jpg"), str(site / "a.png")])
    assert expected[0]["segments"]
    model: Any
    for model in (entry.load(), mlflow.pyfunc.load_model("models:/site_model/1")):
        images = [str(site / "a.jpg"), (site / "a.png").read_bytes()]
        assert model.predict(pd.DataFrame({"image": images})) == expected
        assert model.predict({"image": images}) == expected
        (found,) = model.predict(model.input_example, params={"threshold": 0.99999})
        assert (found["width"], found["height"], found["segments"]) == (96, 64, [])
        with pytest.raises(mlflow.MlflowException, match=r"Image 1: .*not a readable image"):
            model.predict(pd.DataFrame({"image": [b"no picture"]}))


def test_without_a_registry_there_is_the_folder(
    trained: PanopticModel, entry: ServedModelDataset, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(DatasetError) as caught:
        entry.save(ModelToServe(trained, "site_model"))
    assert re.match(r"The model is in .*served, .* did not register it as 'site_model'", str(user_error(caught.value)))
    assert not entry.exists()
    assert entry.load().metadata.get_input_schema().input_names() == ["image"]
    entry.save(ModelToServe(trained, None))
    assert entry.exists()


@pytest.fixture
def server(trained: PanopticModel, entry: ServedModelDataset, tmp_path: Path) -> Iterator[str]:
    """Address of ``mlflow models serve`` on the loopback interface."""
    entry.save(ModelToServe(trained, None))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "server.log").open("w") as log, subprocess.Popen(
        [*mlflow_models("serve", tmp_path), "--port", str(port), "--host", "127.0.0.1"],
        cwd=tmp_path, env=environment(), stdout=log, stderr=log, start_new_session=True,
    ) as process:  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(f"{address}/ping", process, tmp_path / "server.log")
            yield address
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


def mlflow_models(command: str, folder: Path) -> list[str]:
    local = ["--env-manager", "local"]
    return [sys.executable, "-m", "mlflow", "models", command, "-m", str(folder / "models" / "served"), *local]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    # MLflow starts uvicorn by its name.
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no server after {START_LIMIT} s:\n{log.read_text()[-3000:]}")


def ask(address: str, content: dict[str, Any]) -> tuple[int, Any]:
    """Send JSON; give the status and the JSON that comes back."""
    data, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/invocations", data, headers), timeout=ANSWER_LIMIT
        ) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.slow
def test_it_answers_over_http(trained: PanopticModel, server: str, site: Path) -> None:
    expected = answer(trained, [str(site / "a.jpg")])
    text = base64.b64encode((site / "a.jpg").read_bytes()).decode()
    for image in (str(site / "a.jpg"), text):
        for content in ({"dataframe_records": [{"image": image}]}, {"inputs": {"image": [image]}}):
            assert ask(server, content) == (200, {"predictions": expected})
    assert ask(server, {"inputs": {"image": text}, "params": {"threshold": 0.99999}})[1]["predictions"] != expected

    for image, words in (("nowhere.jpg", "neither a file"), ("bm8gcGljdHVyZQ==", "not a readable image")):
        status, found = ask(server, {"dataframe_records": [{"image": image}]})
        assert status == 400
        assert "Image 1: " in found["message"]
        assert words in found["message"]
    assert ask(server, {"dataframe_records": [{"picture": text}]})[0] == 400
    assert ask(server, {"dataframe_records": [{"image": text}]})[0] == 200


@pytest.mark.slow
def test_mlflow_models_predict(trained: PanopticModel, entry: ServedModelDataset, site: Path, tmp_path: Path) -> None:
    entry.save(ModelToServe(trained, None))
    table, out = tmp_path / "images.csv", tmp_path / "out.json"
    pd.DataFrame({"image": [str(site / "a.jpg"), str(site / "north" / "b.JPG")]}).to_csv(table, index=False)
    command = [*mlflow_models("predict", tmp_path), "-i", str(table), "-t", "csv", "-o", str(out)]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, timeout=START_LIMIT, capture_output=True)
    expected = answer(trained, [str(site / "a.jpg"), str(site / "north" / "b.JPG")])
    assert json.loads(out.read_text()) == {"predictions": expected}
