"""The page of `app` in Chromium."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from construction_panoptic.commands.app import build
from tests.integration.browser.chromium import EXECUTABLE, PATIENCE, Page, chromium
from tests.unit.small_model import small_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")]


@pytest.fixture
def address() -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(build(small_model(merging="masks"), ["127.0.0.1"]), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.1)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(PATIENCE)


def drop(page: Page, name: str, content: bytes) -> None:
    data = base64.b64encode(content).decode()
    page.evaluate(
        f"""{{
        const bytes = Uint8Array.from(atob("{data}"), c => c.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "{name}", {{type: "image/png"}}));
        dispatchEvent(new DragEvent("drop", {{dataTransfer: files, bubbles: true, cancelable: true}}));
        }}"""
    )


@pytest.mark.parametrize("width", [390, 1280])
def test_a_photograph_is_dropped_and_its_segments_are_looked_at(address: str, width: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    with chromium(tmp_path / "profile") as page:
        page.resize(width, 800, phone=width < 500)
        page.open(address, "typeof model !== 'undefined' && model")
        drop(page, "site.png", stream.getvalue())
        page.wait_for("!document.getElementById('work').hidden")
        assert "90 × 60" in page.evaluate("get('message').textContent")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        before = shown(page)
        assert before["rows"] > 0
        # The threshold acts at once, without a request.
        requests = len(page.requests)
        page.evaluate("get('things').value = get('stuff').value = 1; get('things').oninput(); 0")
        assert shown(page)["rows"] == 0
        assert shown(page)["picture"] != before["picture"]
        page.evaluate("get('things').value = get('stuff').value = model.least; get('things').oninput(); 0")
        assert len(page.requests) == requests
        # So does a click on a class.
        page.evaluate("document.querySelector('#classes tr').click(); 0")
        assert page.evaluate("document.querySelector('#classes tr.off') !== null")
        drop(page, "text.png", b"no image")
        page.wait_for("get('message').classList.contains('error')")
        assert "not a readable image" in page.evaluate("get('message').textContent")
        assert page.evaluate("document.getElementById('work').hidden")
        assert [error for error in page.errors if "400" not in error] == []
        assert all(request.startswith((address, "data:", "blob:")) for request in page.requests)


def shown(page: Page) -> dict[str, Any]:
    script = "({rows: document.querySelectorAll('#classes tr').length, picture: get('canvas').toDataURL()})"
    found: dict[str, Any] = page.evaluate(script)
    return found
