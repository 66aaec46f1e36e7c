"""The model as MLflow keeps, registers and serves it."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
from kedro.io import DatasetError

from construction_panoptic.catalog.served import REGISTRATION, ServedModelDataset
from construction_panoptic.commands.serve import MAX_BODY
from construction_panoptic.errors import user_error
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.answering import IMAGE_FOLDER, ModelToServe, answer
from tests.unit.prediction.conftest import huge_png
from tests.unit.small_model import small_model

pytestmark = pytest.mark.medium

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
    trained: PanopticModel,
    entry: ServedModelDataset,
    registry: str,
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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

    monkeypatch.setenv(IMAGE_FOLDER, str(site))
    expected = answer(trained, ["a.jpg", "a.png"], folder=site)
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


def test_a_threshold_that_is_asked_for_is_that_of_stuff_too(entry: ServedModelDataset, site: Path) -> None:
    model = small_model(merging="pixels", threshold=0.7, threshold_stuff=0.2)
    entry.save(ModelToServe(model, None))
    image = (site / "a.png").read_bytes()
    table, served = pd.DataFrame({"image": [image]}), entry.load()
    assert answer(model, [image]) != answer(model, [image], 0.7)
    assert served.predict(table) == answer(model, [image])
    assert served.predict(table, params={"threshold": 0.7}) == answer(model, [image], 0.7)


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
    with serving([*mlflow_models("serve", tmp_path), "--host", "127.0.0.1"], tmp_path) as (address, _):
        yield address


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server that takes paths below ``folder/site``; give its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "server.log").open("w") as log, subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder, env=environment(folder), stdout=log, stderr=log, start_new_session=True,
    ) as process:  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        try:
            wait_for(f"{address}/ping", process, folder / "server.log")
            yield address, psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=30)


def mlflow_models(command: str, folder: Path) -> list[str]:
    local = ["--env-manager", "local"]
    return [sys.executable, "-m", "mlflow", "models", command, "-m", str(folder / "models" / "served"), *local]


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    # MLflow starts uvicorn by its name.
    return {**kept, IMAGE_FOLDER: str(folder / "site"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


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
    return send(address, json.dumps(content).encode())


def send(address: str, data: bytes) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/invocations", data, headers), timeout=ANSWER_LIMIT
        ) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        answered = error.read()
        return error.code, json.loads(answered) if answered.startswith(b"{") else answered


@pytest.mark.slow
def test_it_answers_over_http(trained: PanopticModel, server: str, site: Path) -> None:
    expected = answer(trained, ["a.jpg"], folder=site)
    text = base64.b64encode((site / "a.jpg").read_bytes()).decode()
    for image in (str(site / "a.jpg"), text):
        for content in ({"dataframe_records": [{"image": image}]}, {"inputs": {"image": [image]}}):
            assert ask(server, content) == (200, {"predictions": expected})
    assert ask(server, {"inputs": {"image": text}, "params": {"threshold": 0.99999}})[1]["predictions"] != expected

    for image, words in (
        ("nowhere.jpg", "neither base64 of"),
        ("/etc/passwd", "neither base64 of"),
        ("bm8gcGljdHVyZQ==", "not a readable image"),
    ):
        status, found = ask(server, {"dataframe_records": [{"image": image}]})
        assert status == 400
        assert "Image 1: " in found["message"]
        assert words in found["message"]
    assert ask(server, {"dataframe_records": [{"picture": text}]})[0] == 400
    assert ask(server, {"dataframe_records": [{"image": text}]})[0] == 200


def hostile_requests(text: str) -> list[bytes]:
    """What a client that means harm sends, as JSON; ``text`` is a picture's base64."""
    bomb = base64.b64encode(huge_png(100_000, 100_000)).decode()
    deep = b'{"inputs": ' + b"[" * 9_000 + b"]" * 9_000 + b"}"
    images: list[Any] = [bomb, "/etc/passwd", [text] * 1000, "A" * 5_000_000, text[:200], None, {"a": 1}]
    return [deep, b"{", b"[]" * 1_000_000, *(json.dumps({"inputs": {"image": image}}).encode() for image in images)]


def dribble(address: str, stop: threading.Event) -> None:
    """Announce a large body and send next to nothing of it."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /invocations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 30000000\r\n\r\n".encode())
        while not stop.wait(0.1):
            connection.sendall(b" ")


def flood(address: str) -> None:
    """Send a body without end, in chunks, until the server has enough."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection, suppress(OSError):
        head = f"POST /invocations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(MAX_BODY // 2**20 + 8):
            connection.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")


@pytest.mark.slow
def test_hostile_clients_cost_the_others_no_answer(
    trained: PanopticModel, entry: ServedModelDataset, site: Path, tmp_path: Path
) -> None:
    """Of 50 clients at once 15 mean harm; run with -s for the times of the others."""
    entry.save(ModelToServe(trained, None))
    text = base64.b64encode((site / "a.jpg").read_bytes()).decode()
    expected = answer(trained, [text])
    stop = threading.Event()

    def honest(address: str) -> list[float]:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            assert ask(address, {"inputs": {"image": text}}) == (200, {"predictions": expected})
            times.append(time.perf_counter() - begin)
        return times

    command = [sys.executable, "-m", "construction_panoptic", "serve", str(tmp_path / "models" / "served")]
    with serving(command, tmp_path) as (address, process), ThreadPoolExecutor(50) as clients:
        honest(address)
        before = process.memory_info().rss
        undisturbed = [time for done in clients.map(honest, [address] * 35) for time in done]
        harm = [clients.submit(send, address, content) for content in hostile_requests(text)]
        harm_without_end = [clients.submit(dribble, address, stop) for _ in range(3)]
        harm_without_end += [clients.submit(flood, address) for _ in range(2)]
        times = sorted(time for done in clients.map(honest, [address] * 35) for time in done)
        statuses = [sent.result()[0] for sent in harm]
        stop.set()
        for sent in harm_without_end:
            sent.result()
        assert all(400 <= status <= 500 for status in statuses), statuses
        assert honest(address)
        grown = process.memory_info().rss - before
    for name, values in {"35 clients": sorted(undisturbed), "and 15 hostile ones": times}.items():
        p50, p95 = values[len(values) // 2], values[int(len(values) * 0.95)]
        print(f"{name}: p50 {p50:.2f} s, p95 {p95:.2f} s, longest {values[-1]:.2f} s")  # noqa: T201
    print(f"{os.cpu_count()} cores; memory grew by {grown >> 20} MiB")  # noqa: T201
    assert grown < 500 << 20


@pytest.mark.slow
def test_mlflow_models_predict(trained: PanopticModel, entry: ServedModelDataset, site: Path, tmp_path: Path) -> None:
    entry.save(ModelToServe(trained, None))
    table, out = tmp_path / "images.csv", tmp_path / "out.json"
    pd.DataFrame({"image": [str(site / "a.jpg"), str(site / "north" / "b.JPG")]}).to_csv(table, index=False)
    command = [*mlflow_models("predict", tmp_path), "-i", str(table), "-t", "csv", "-o", str(out)]
    subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), check=True, timeout=START_LIMIT, capture_output=True
    )
    expected = answer(trained, ["a.jpg", "north/b.JPG"], folder=site)
    assert json.loads(out.read_text()) == {"predictions": expected}
