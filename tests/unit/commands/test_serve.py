"""Bounds on requests, before a server of real sockets."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from construction_panoptic.commands import serve
from construction_panoptic.commands.serve import BoundedRequests

pytestmark = pytest.mark.medium

JSON = "Content-Type: application/json"


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body, and fail where it is "late"."""
    body = await Request(scope, receive).body()
    if body == b"late":
        raise TimeoutError
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@contextmanager
def running(seconds: float = 30) -> Iterator[tuple[BoundedRequests, int]]:
    application = BoundedRequests(length, seconds=seconds)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield application, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def ask(port: int, *headers: str, body: bytes = b"", method: str = "POST") -> tuple[int, str]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        head = "\r\n".join([f"{method} / HTTP/1.1", "Host: here", "Connection: close", *headers, "", ""])
        connection.sendall(head.encode() + body)
        answered = b""
        while part := connection.recv(65536):
            answered += part
    head, _, content = answered.decode().partition("\r\n\r\n")
    return int(head.split()[1]), content


def test_requests_within_the_bounds_are_handed_on_whole() -> None:
    with running() as (application, port):
        body = b" " * 3_000_000
        assert ask(port, JSON, f"Content-Length: {len(body)}", body=body) == (200, "3000000")
        assert ask(port, f"{JSON}; charset=utf-8", "Content-Length: 2", body=b"{}") == (200, "2")
        assert ask(port, method="GET") == (200, "0")
        assert application._waiting == 0


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ((JSON, "Content-Length: 99999999999"), b"", 413, "larger than 33554432 bytes"),
        ((JSON, "Transfer-Encoding: chunked"), b"7d0\r\n" + b" " * 2000 + b"\r\n0\r\n\r\n", 413, "larger than"),
        (("Content-Type: application/vnd.apache.parquet", "Content-Length: 4"), b"PAR1", 415, "Send application/json"),
        (("Content-Type: text/csv", "Content-Length: 7"), b"image\na", 415, "Send application/json"),
        (("Content-Length: 2",), b"{}", 415, "Send application/json"),
        ((JSON, "Content-Length: 20002"), b"[]" * 10_001, 400, "more than 10000 values"),
        ((JSON, "Content-Length: 1000"), b"slow", 408, "more than 0.5 s"),
        ((JSON, "Content-Length: 900"), b" " * 900, 503, "try again"),
    ],
)
def test_what_is_beyond_a_bound_is_refused(
    headers: tuple[str, ...], body: bytes, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"7d0" in body:
        monkeypatch.setattr(serve, "MAX_BODY", 1000)
    if status == 503:
        monkeypatch.setattr(serve, "MAX_WAITING", 800)
    with running(0.5) as (application, port):
        found, content = ask(port, *headers, body=body)
        assert (found, set(json.loads(content))) == (status, {"error_code", "message"})
        assert words in json.loads(content)["message"]
        assert application._waiting == 0
        assert ask(port, JSON, "Content-Length: 2", body=b"{}") == (200, "2")


def test_the_own_delay_of_the_model_is_not_the_clients() -> None:
    with running() as (_, port):
        assert ask(port, JSON, "Content-Length: 4", body=b"late")[0] == 500


def test_a_folder_without_a_model_is_one_message(tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "is no model to serve"), (tmp_path / "nowhere", "does not exist")):
        result = CliRunner().invoke(serve.serve, [str(folder)])
        assert result.exit_code in (1, 2)
        assert words in result.output.replace("\n", " ")
