"""A tracking server that does not answer costs a training nothing: what it should get is kept and sent later.

`install` puts `KeptStore` between MLflow and the server, so this holds for all that is sent, kedro-mlflow's parameters
and MLflow's system metrics among it. What cannot be sent is appended to a file under ``.mlflow/outbox``; files that
belong to it are hard-linked beside it, so that they stay as they were. It is tried again after a minute, then less and
less often, and by the next run. Requests carry their own times and steps; the server keeps one of two equal ones.
"""

import fcntl
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import service_pb2
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.utils import _tracking_store_registry
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import http_request

from construction_panoptic.errors import UserError
from construction_panoptic.tracking.delivery import Task, perform

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 60.0, 600.0  # seconds between two attempts to reach a server
SIGN_OF_LIFE = 5  # seconds for an answer from one that was away
# Requests that can be sent later: they say what is so, and ask nothing.
KEPT = {
    *("CreateRun", "UpdateRun", "LogBatch", "LogMetric", "LogParam", "SetTag", "LogInputs", "LogOutputs"),
    *("SetLoggedModelTags", "FinalizeLoggedModel"),
}


class ServerUnreachableError(MlflowException, UserError):
    """The tracking server does not answer."""


class Outbox:
    """What waits for a server.

    Args:
        folder: where it is kept.
        uri: address of the server.
        renamed: told the id that a run had while the server was away, and the one that it got.
    """

    def __init__(self, folder: Path, uri: str, renamed: Callable[[str, str], None]) -> None:
        self.uri = uri
        self.renamed = renamed
        self.lock = threading.RLock()
        self.waiting: deque[dict[str, Any]] = deque()
        self._ids: dict[str, str] = {}
        self._path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file: TextIO | None = None
        self._wait = FIRST_WAIT
        self._retry_at = 0.0
        self._delivering = False

    @classmethod
    def of_former_run(cls, path: Path, renamed: Callable[[str, str], None]) -> "Outbox | None":
        """Open what an earlier run has left; None if its process still lives."""
        file = path.open("r+")
        if not _locked(file):
            file.close()
            return None
        lines = [json.loads(line) for line in file if line.endswith("\n")]  # a killed process may leave half a line
        outbox = cls(path.parent, lines[0]["uri"] if lines else "", renamed)
        outbox._path, outbox._file = path, file
        for entry in lines[1:]:
            if "real" in entry:
                outbox._ids[entry["stand_in"]] = entry["real"]
            else:
                outbox.waiting.append(entry)
        return outbox

    def close(self) -> None:
        """Leave what waits to a later run; an outbox with nothing in it is removed."""
        if not self.waiting:
            shutil.rmtree(self._path.with_suffix(""), ignore_errors=True)
            self._path.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def is_due(self) -> bool:
        """Whether the server may be tried."""
        return time.monotonic() >= self._retry_at

    def failed(self, error: BaseException) -> None:
        """Note that the server did not answer."""
        if not self.waiting:
            logger.warning(
                "The tracking server %s does not answer. Work goes on; metrics and files are kept and sent later.",
                self.uri,
            )
            logger.debug("The server's failure", exc_info=error)
        self._retry_at = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def keep(self, entry: dict[str, Any]) -> None:
        """Append an entry; a file that belongs to it is kept as it is now."""
        if "path" in entry:
            entry = {**entry, "path": str(self._kept_file(Path(entry["path"])))}
        self._append(entry)
        self.waiting.append(entry)

    def translated(self, text: str) -> str:
        """Put the server's ids in the place of those that runs had while it was away."""
        for stand_in, real in self._ids.items():
            text = text.replace(stand_in, real)
        return text

    def deliver(self, store: "KeptStore", *, now: bool = False) -> bool:
        """Send what waits, if there is anything and the server may be tried; give whether nothing waits any more."""
        if self._delivering:
            return True
        if self.waiting and (now or self.is_due):
            self._delivering = True
            try:
                self._deliver_all(store)
            except (MlflowException, OSError) as error:
                self.failed(error)
            finally:
                self._delivering = False
        return not self.waiting

    def _deliver_all(self, store: "KeptStore") -> None:
        store.ask_whether_it_answers()
        count = len(self.waiting)
        while self.waiting:
            entry = json.loads(self.translated(json.dumps(self.waiting[0])))
            try:
                if "api" not in entry:
                    perform(entry)
                elif entry.get("stand_in") not in self._ids:
                    self._note_id(entry, store.request(getattr(service_pb2, entry["api"]), entry["body"]))
            except (MlflowException, OSError) as error:
                if is_unreachable(error):
                    raise
                logger.warning("The tracking server refuses what was kept for it: %s", first_line(error))
            self.waiting.popleft()
        self._wait = FIRST_WAIT
        logger.info("The tracking server answers again: %d things that were kept are sent.", count)
        self.close()

    def _note_id(self, entry: dict[str, Any], response: Any) -> None:
        if "stand_in" in entry:
            real = response.run.info.run_id
            self._append({"stand_in": entry["stand_in"], "real": real})
            self._ids[entry["stand_in"]] = real
            self.renamed(entry["stand_in"], real)

    def _append(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
            _locked(self._file)
            self._file.write(json.dumps({"uri": self.uri}) + "\n")
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def _kept_file(self, path: Path) -> Path:
        kept = self._path.with_suffix("") / uuid.uuid4().hex[:8] / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=_link)
        else:
            _link(str(path), str(kept))
        return kept


class KeptStore(RestStore):
    """MLflow's own connection to a tracking server, which keeps in an outbox what the server does not take."""

    def __init__(self, uri: str, outbox: Outbox) -> None:
        super().__init__(partial(get_default_host_creds, uri))
        self.outbox = outbox
        self._runs: dict[str, Any] = {}  # the last answers about runs

    def request(self, api: Any, body: str | None, *args: Any, **kwargs: Any) -> Any:
        """Ask the server itself."""
        return super()._call_endpoint(api, body, *args, **kwargs)

    def ask_whether_it_answers(self) -> None:
        """Ask the server for a sign of life: one that hangs then costs seconds, and not a minute each time.

        Raises:
            MlflowException: there is no answer.
            OSError: as above.
        """
        http_request(
            self.get_host_creds(), "/health", "GET", max_retries=0, timeout=SIGN_OF_LIFE, raise_on_status=False
        )

    def _call_endpoint(self, api: Any, json_body: str | None = None, *args: Any, **kwargs: Any) -> Any:
        name = api.DESCRIPTOR.name
        with self.outbox.lock:
            if not self.outbox.deliver(self) and name in KEPT:
                return self._keep(api, json_body)
            try:
                if not self.outbox.is_due:
                    raise ServerUnreachableError(f"the tracking server {self.outbox.uri} did not answer a moment ago")
                body = json_body and self.outbox.translated(json_body)
                response = self.request(api, body, *args, **kwargs)
            except MlflowException as error:
                if not is_unreachable(error):
                    raise
                if not isinstance(error, ServerUnreachableError):
                    self.outbox.failed(error)
                return self._without_server(api, json_body, error)
            if name in ("GetRun", "CreateRun"):
                self._runs[response.run.info.run_id] = response.run
            return response

    def _without_server(self, api: Any, body: str | None, error: MlflowException) -> Any:
        name = api.DESCRIPTOR.name
        delivering = self.outbox._delivering
        if name in KEPT and not delivering:
            return self._keep(api, body)
        asked = json.loads(body or "{}")
        if name == "GetRun" and not delivering and (known := self._runs.get(asked.get("run_id", ""))) is not None:
            return api.Response(run=known)
        raise ServerUnreachableError(
            f"The tracking server {self.outbox.uri} does not answer. Start it, or unset MLFLOW_TRACKING_URI to keep "
            "the runs in mlflow.db."
        ) from error

    def _keep(self, api: Any, body: str | None) -> Any:
        """Keep a request, and give what the server would have answered as far as its callers read it."""
        entry = {"api": api.DESCRIPTOR.name, "body": body}
        response = api.Response()
        if entry["api"] == "CreateRun":
            asked = service_pb2.CreateRun()
            parse_dict(json.loads(body or "{}"), asked)
            run_id = f"standin{uuid.uuid4().hex}"
            entry["stand_in"] = run_id
            info = response.run.info
            info.run_id = info.run_uuid = run_id
            info.run_name, info.experiment_id = asked.run_name, asked.experiment_id
            info.status, info.lifecycle_stage = service_pb2.RUNNING, "active"
            info.start_time = asked.start_time
            response.run.data.tags.extend(asked.tags)
            self._runs[run_id] = response.run
        self.outbox.keep(entry)
        return response


_stores: dict[str, KeptStore] = {}


def install(folder: Path, renamed: Callable[[str, str], None]) -> None:
    """Keep what tracking servers do not take, in this process; before MLflow's first request. See `Outbox`."""

    def build(store_uri: str, **_: Any) -> KeptStore:
        if store_uri not in _stores:
            _stores[store_uri] = KeptStore(store_uri, Outbox(folder, store_uri, renamed))
        return _stores[store_uri]

    for scheme in ("http", "https"):
        _tracking_store_registry.register(scheme, build)


def send(task: Task, uri: str) -> None:
    """Do a task, or keep it for later where the runs are on a server that does not answer.

    Raises:
        MlflowException: the server refuses it.
        OSError: the file is not there, or the local store cannot be written.
    """
    store = _stores.get(uri)
    if store is None:
        perform(task)
        return
    with store.outbox.lock:
        try:
            if store.outbox.deliver(store) and store.outbox.is_due:
                perform(json.loads(store.outbox.translated(json.dumps(task))))
                return
        except (MlflowException, OSError) as error:
            if not is_unreachable(error):
                raise
            if not isinstance(error, ServerUnreachableError):
                store.outbox.failed(error)
        store.outbox.keep(task)


def send_rest(uri: str) -> None:
    """Try once more to send what waits; say so if it has to wait for the next run."""
    store = _stores.get(uri)
    if store is None:
        return
    with store.outbox.lock:
        if not store.outbox.deliver(store, now=True):
            logger.warning(
                "The tracking server %s still does not answer: %d requests and files wait in %s for the next run.",
                uri,
                len(store.outbox.waiting),
                store.outbox._path,
            )


def send_former(folder: Path, uri: str) -> None:
    """Send what earlier runs have left for this server."""
    store = _stores.get(uri)
    if store is None:
        return
    for path in sorted(folder.glob("*.jsonl")):
        former = Outbox.of_former_run(path, store.outbox.renamed)
        if former is not None and former.uri in ("", uri):
            with store.outbox.lock:
                former.deliver(store, now=True)
        if former is not None:
            former.close()


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that the server is away or out of order, not that it refuses."""
    if isinstance(error, ServerUnreachableError):
        return True
    if isinstance(error, RestException):
        return error.get_http_status_code() >= 500
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500
    if isinstance(error, requests.RequestException):
        return True
    return isinstance(error, MlflowException) and "API request to" in str(error)


def first_line(error: BaseException) -> str:
    """Give an error in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _link(source: str, target: str) -> None:
    """Hard-link a file; files are replaced, not written over, so the link keeps the content. Else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
