"""Tracking servers on a free port: one that can be stopped and started again, and one that is slow."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class TrackingServer:
    """``mlflow server`` with its own database and artifacts.

    Args:
        folder: where it keeps them.
        database: an empty database to begin with.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        (folder / "mlflow.db").write_bytes(database.read_bytes())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        stores += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options, *stores],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        self.stop()
        raise TimeoutError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
            self._process = None


class HeldServer:
    """Speaks as much of MLflow's REST interface as a training needs, and can hold its answers back.

    Attributes:
        received: name and content of each request that said something, in order.
        held: while it is set, such requests are not answered.
    """

    def __init__(self, folder: Path) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.held = threading.Event()
        self._released = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(folder))
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def hold(self) -> None:
        self.held.set()

    def release(self) -> None:
        with self._released:
            self.held.clear()
            self._released.notify_all()

    def stop(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def metrics(self, name: str) -> list[tuple[int, int]]:
        """Step and time of a metric's values, in the order in which they came."""
        batches = [content for api, content in self.received if api == "runs/log-batch"]
        found = [metric for batch in batches for metric in batch.get("metrics", []) if metric["key"] == name]
        return [(int(metric["step"]), int(metric["timestamp"])) for metric in found]

    def run_id(self, number: int) -> str:
        """Id of a run, from 0; MLflow remembers where the artifacts of each are, so that no other server has it."""
        return f"{self._server.server_port}run{number}"

    def _handler(server, folder: Path) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # self is the request's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/health":
                    self.answer({})
                elif self.api == "runs/get":
                    self.answer({"run": server._run(folder, self.path.rpartition("=")[2])})
                else:
                    self.answer({"error_code": "RESOURCE_DOES_NOT_EXIST"}, 404)

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.api == "runs/create":
                    number = sum(api == "runs/create" for api, _ in server.received)
                    server.received.append((self.api, content))
                    self.answer({"run": server._run(folder, server.run_id(number))})
                    return
                with server._released:
                    server._released.wait_for(lambda: not server.held.is_set(), timeout=60)
                    server.received.append((self.api, content))
                self.answer({})

            @property
            def api(self) -> str:
                return self.path.partition("/mlflow/")[2].partition("?")[0]

            def answer(self, content: dict[str, Any], status: int = 200) -> None:
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    @staticmethod
    def _run(folder: Path, run_id: str) -> dict[str, Any]:
        info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "0", "status": "RUNNING", "start_time": 1}
        return {"info": {**info, "lifecycle_stage": "active", "artifact_uri": (folder / run_id).as_uri()}, "data": {}}
