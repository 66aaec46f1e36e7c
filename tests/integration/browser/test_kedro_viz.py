"""The pipelines in kedro-viz and the HTML reports, looked at in Chromium after a run."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.integration.browser.chromium import EXECUTABLE, PATIENCE, Page, chromium
from tests.integration.pipelines.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")]

# Where kedro-viz asks for its typeface; without a network it takes another.
WEB_FONT = "fonts.googleapis.com"
REPORTS = ("dataset/data_report.html", "evaluation_report.html")


@pytest.fixture(scope="module")
def finished(project: Project) -> Project:
    """A project in which the main job has run."""
    project.run("--pipelines", "sample_data")
    project.run()
    return project


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


@pytest.fixture(scope="module")
def viz(finished: Project) -> Iterator[str]:
    """The address of a running kedro-viz."""
    port = str(_free_port())
    command = finished.command("viz", "run", "--env", "sample", "--no-browser", "--port", port)
    with (finished.folder / "viz.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=finished.folder,
            env=finished.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE
        while not _answers(address):
            assert server.poll() is None, (finished.folder / "viz.log").read_text()
            assert time.monotonic() < end, "kedro-viz does not answer"
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # kedro-viz serves from a process of its own
        server.wait(timeout=PATIENCE)


def _free_port() -> int:
    """Find a free port below 49152, the highest that kedro-viz takes; processes begin at different places."""
    for port in range(20_000 + os.getpid() % 20_000, 49_000):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def _answers(address: str) -> bool:
    try:
        with urlopen(f"{address}/api/main", timeout=PATIENCE) as answer:
            return answer.status == 200
    except URLError:
        return False


def asked(address: str) -> Any:
    with urlopen(address, timeout=PATIENCE) as answer:
        return json.load(answer)


def errors_of(page: Page) -> list[str]:
    return [error for error in page.errors if WEB_FONT not in error]


def test_every_entry_has_a_layer_and_shows_something(viz: str) -> None:
    entries = [node for node in asked(f"{viz}/api/main")["nodes"] if node["type"] == "data"]
    assert len(entries) > 50
    nothing = [
        node["name"]
        for node in entries
        if not node["layer"] or not asked(f"{viz}/api/nodes/{node['id']}").get("preview")
    ]
    assert nothing == []


def test_pipelines_are_boxes_that_fold(viz: str, page: Page) -> None:
    page.errors.clear()
    page.resize(1400, 900)
    page.open(viz, "document.querySelectorAll('.pipeline-node').length > 10")
    names = page.evaluate("[...document.querySelectorAll('.pipeline-node__text')].map(text => text.textContent)")
    assert {"annotation_conversion", "detr"} <= set(names)
    assert {"detection", "error_analysis", "mask_head.best", "split_audit"}.isdisjoint(names)  # in folded boxes
    main = asked(f"{viz}/api/main")
    outside = main["modular_pipelines"]["__root__"]["children"]
    assert sum(child["type"] == "data" for child in outside) <= 15
    layers = page.evaluate("[...document.querySelectorAll('.pipeline-layer-name')].map(name => name.textContent)")
    assert layers == sorted(layers)
    assert {"01 raw", "03 primary", "05 model input", "06 models", "08 reporting"} <= set(layers)
    assert "07 model output" in main["layers"]  # of what lies within the recipe
    assert errors_of(page) == []


@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("pq_loss_budget", "document.querySelectorAll('.pipeline-metadata .plot-container .bars .point').length > 5"),
        ("example_sheet", "document.querySelector('.pipeline-metadata__plot-image')?.naturalWidth > 400"),
        ("average_precision_table", "document.querySelectorAll('.preview-table tr').length > 5"),
        ("evaluation_report", "document.querySelector('.pipeline-metadata').innerText.includes('Evaluation report')"),
        ("panoptic_quality", "document.querySelector('.pipeline-metadata').innerText.includes('per_class')"),
    ],
)
def test_a_click_on_an_entry_shows_it(viz: str, page: Page, name: str, shows: str) -> None:
    identity = next(node["id"] for node in asked(f"{viz}/api/main")["nodes"] if node["name"] == name)
    page.errors.clear()
    page.open(f"{viz}/?pid=__default__&sid={identity}", "document.querySelector('.pipeline-metadata--visible')")
    page.wait_for(shows)
    assert errors_of(page) == []


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [380, 1200])
def test_reports_are_readable_on_a_phone_and_need_no_network(
    finished: Project, page: Page, name: str, width: int, tmp_path: Path
) -> None:
    page.errors.clear()
    page.requests.clear()
    page.resize(width, 800, phone=width < 500)
    report = finished.folder / "data" / "08_reporting" / name
    page.open(report.as_uri(), "document.readyState === 'complete' && document.images.length")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Text of at least 11 px, and nothing cut off but what scrolls by itself.
    assert (
        page.evaluate(
            "Math.min(...[...document.querySelectorAll('p,td,th')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        >= 11
    )
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.screenshot(tmp_path / "report.png", captureBeyondViewport=True)
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert [address for address in page.requests if not address.startswith(("file:", "data:"))] == []
    assert page.errors == []
