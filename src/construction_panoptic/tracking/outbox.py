"""A tracking server that is slow, hangs or is away costs a training nothing.

`install` puts `KeptStore` between MLflow and the server, so this holds for all that is sent, kedro-mlflow's parameters
and MLflow's system metrics among it. Requests that only say something are appended to a file under ``.mlflow/outbox``,
see `waiting`, and sent from there by a thread, in order. Where the server does not answer, it is tried again after a
minute, then less and less often; what a run could not send, the next one does. Requests carry their own times and
steps; the server keeps one of two equal ones.
"""

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import service_pb2
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.utils import _tracking_store_registry
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import http_request

from construction_panoptic.errors import UserError
from construction_panoptic.tracking.delivery import Task, perform, too_large
from construction_panoptic.tracking.waiting import Entry, WaitingEntries

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 60.0, 600.0  # seconds between two attempts to reach a server
SIGN_OF_LIFE = 5  # seconds for an answer from one that was away
PATIENCE = 120.0  # seconds for what waits to be sent, at the end of a run or before a question that depends on it
# Requests that can be sent later: they say what is so, and ask nothing.
KEPT = {"UpdateRun", "LogBatch", "LogMetric", "LogParam", "SetTag", "LogInputs", "LogOutputs"}
# Requests whose answers do not depend on those.
INDEPENDENT = {"CreateRun", "CreateExperiment", "GetExperiment", "GetExperimentByName", "SearchExperiments"}
STAND_IN = re.compile("standin[0-9a-f]{32}")


class ServerUnreachableError(MlflowException, UserError):
    """The tracking server does not answer, or not soon enough."""


class Outbox:
    """Sends what waits for a server, from a thread of its own.

    Args:
        folder: where it is kept, see `WaitingEntries`.
        uri: address of the server.
        deliver: sends an entry; the second argument says whether that may have been done in part.
        renamed: told, in that thread, the id that a run had while the server was away, and the one that it got.
    """

    def __init__(
        self, folder: Path, uri: str, deliver: Callable[[Entry, bool], None], renamed: Callable[[str, str], None]
    ) -> None:
        self.uri = uri
        self._deliver = deliver
        self._renamed = renamed
        self._changed = threading.Condition()
        self._entries = WaitingEntries(folder, uri)
        self._sender: threading.Thread | None = None
        self._sending = False
        self._stopped = False
        self._away = False
        self._wait = FIRST_WAIT
        self._retry_at = 0.0

    def start(self) -> None:
        """Go on with what an earlier run has left."""
        for item in self._entries.ids.items():
            self._renamed(*item)
        with self._changed:
            if self.has_waiting:
                self._start()

    @property
    def is_away(self) -> bool:
        """Whether the server did not answer the last time."""
        return self._away

    @property
    def rests(self) -> bool:
        """Whether the server did not answer, and is not to be tried again yet."""
        return self._away and time.monotonic() < self._retry_at

    @property
    def has_waiting(self) -> bool:
        """Whether anything waits."""
        return self._entries.count > 0

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the thread that sends."""
        return threading.current_thread() is self._sender

    def keep(self, entry: Entry) -> None:
        """Let an entry be sent when all before it are.

        Raises:
            OSError: it cannot be kept, since its file, or the folder, cannot be read or written.
        """
        with self._changed:
            self._entries.append(entry)
            self._start()
            self._changed.notify_all()

    def answered(self) -> None:
        """Note that the server answers."""
        with self._changed:
            if self._away:
                logger.info("The tracking server %s answers again; what was kept is sent.", self.uri)
            self._away, self._wait = False, FIRST_WAIT

    def failed(self, error: BaseException) -> None:
        """Note that the server did not answer."""
        with self._changed:
            if not self._away:
                logger.warning(
                    "The tracking server %s does not answer. Work goes on; metrics and files are kept and sent later.",
                    self.uri,
                )
                logger.debug("The server's failure", exc_info=error)
            self._away = True
            self._retry_at = time.monotonic() + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT)
            self._changed.notify_all()

    def translated(self, text: str) -> str:
        """Put the server's ids in the place of those that runs had while it was away."""
        for stand_in, real in list(self._entries.ids.items()):
            text = text.replace(stand_in, real)
        return text

    def settled(self, patience: float) -> bool:
        """Wait until nothing waits any more; False where that takes too long, or the server does not answer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.has_waiting or self.rests, patience) and (
                not self.has_waiting
            )

    def flush(self, patience: float, *, abrupt: bool) -> bool:
        """Send what waits now, and stop sending.

        Args:
            patience: seconds for it; what takes longer is left to the next run.
            abrupt: also leave the entry under way when the time is over.

        Returns:
            Whether nothing waits any more.
        """
        with self._changed:
            self._retry_at = 0.0
            self._changed.notify_all()
        self.settled(patience)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            idle = self._changed.wait_for(lambda: not self._sending, 0 if abrupt else None)
            done = not self.has_waiting
            if not done:
                logger.warning(
                    "The tracking server %s %s: %d requests and files wait in %s for the next run.",
                    self.uri,
                    "still does not answer" if self._away else "does not keep up",
                    self._entries.count,
                    self._entries.path,
                )
            if idle:
                self._entries.close()
        return done

    def note_id(self, stand_in: str, real: str) -> None:
        """Note what the server calls a run."""
        with self._changed:
            self._entries.note_id(stand_in, real)
        self._renamed(stand_in, real)

    def _start(self) -> None:
        self._stopped = False
        if self._sender is None:
            self._sender = threading.Thread(target=self._send_all, name="tracking", daemon=True)
            self._sender.start()

    def _send_all(self) -> None:
        while (entry := self._next()) is not None:
            error: Exception | None = None
            try:
                self._deliver(entry, self._entries.doubtful)
            except Exception as failure:  # whatever it is, the entries behind it are sent
                error = failure
            if error is not None and is_unreachable(error):
                self.failed(error)
            elif error is not None:
                logger.warning("The tracking server refuses what was kept for it: %s", first_line(error))
            else:
                self.answered()
            with self._changed:
                self._sending = False
                if error is not None and is_unreachable(error):
                    self._entries.doubtful = True
                else:
                    self._entries.done()
                self._changed.notify_all()

    def _next(self) -> Entry | None:
        """Wait for an entry that may be sent; None when sending is to stop."""
        with self._changed:
            while not self._stopped:
                if not self.rests and (entry := self._entries.first()) is not None:
                    self._sending = True
                    return entry
                self._changed.wait(max(0.0, self._retry_at - time.monotonic()) if self.rests else None)
            self._sender = None
            return None


class KeptStore(RestStore):
    """MLflow's own connection to a tracking server, with an outbox for what the server need not answer at once."""

    def __init__(self, uri: str, folder: Path, renamed: Callable[[str, str], None]) -> None:
        super().__init__(partial(get_default_host_creds, uri))
        self._runs: dict[str, Any] = {}  # the last answers about runs
        self._uri = uri
        self.outbox = Outbox(folder, uri, self._deliver, renamed)
        self.outbox.start()

    def _call_endpoint(self, api: Any, json_body: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if self.outbox.is_own_thread:
            return super()._call_endpoint(api, json_body, *args, **kwargs)
        name = api.DESCRIPTOR.name
        if name in KEPT:
            try:
                self.outbox.keep({"api": name, "body": json_body})
            except OSError as error:
                logger.debug("A request could not be kept", exc_info=error)
            else:
                return api.Response()
        if name == "CreateRun" and (self.outbox.is_away or STAND_IN.search(self.outbox.translated(json_body or ""))):
            return self._stand_in(api, json_body)
        known = self._runs.get(json.loads(json_body or "{}").get("run_id", "")) if name == "GetRun" else None
        if known is not None and self.outbox.has_waiting:
            return api.Response(run=known)
        if name not in INDEPENDENT and not self.outbox.settled(PATIENCE) and not self.outbox.is_away:
            raise ServerUnreachableError(f"the tracking server {self._uri} has not yet taken what waits for it")
        try:
            return self._asked(api, json_body, *args, **kwargs)
        except MlflowException as error:
            if not is_unreachable(error):
                raise
            return self._without_server(api, json_body, known, error)

    def _without_server(self, api: Any, body: str | None, known: Any, error: MlflowException) -> Any:
        name = api.DESCRIPTOR.name
        if name == "CreateRun":
            return self._stand_in(api, body)
        if known is not None:
            return api.Response(run=known)
        raise ServerUnreachableError(
            f"The tracking server {self._uri} does not answer. Start it, or unset MLFLOW_TRACKING_URI to keep "
            "the runs in mlflow.db."
        ) from error

    def _asked(self, api: Any, body: str | None, *args: Any, **kwargs: Any) -> Any:
        """Ask the server at once, unless it did not answer a moment ago."""
        if self.outbox.rests:
            raise ServerUnreachableError(f"the tracking server {self._uri} did not answer a moment ago")
        try:
            body = body and self.outbox.translated(body)
            response = super()._call_endpoint(api, body, *args, **kwargs)
        except MlflowException as error:
            if is_unreachable(error):
                self.outbox.failed(error)
            raise
        self.outbox.answered()
        if api.DESCRIPTOR.name in ("GetRun", "CreateRun"):
            self._runs[response.run.info.run_id] = response.run
        return response

    def _deliver(self, entry: Entry, doubtful: bool) -> None:
        if self.outbox.is_away:
            # One that hangs then costs seconds, and not a minute each time.
            credentials = self.get_host_creds()
            http_request(credentials, "/health", "GET", max_retries=0, timeout=SIGN_OF_LIFE, raise_on_status=False)
        stand_in = entry.get("stand_in")
        if stand_in is not None and self.outbox.translated(stand_in) != stand_in:
            return  # made before, and not noted as done
        entry = json.loads(self.outbox.translated(json.dumps(entry)))
        if "api" not in entry:
            perform(entry, self._uri, doubtful=doubtful)
            return
        response = self._call_endpoint(getattr(service_pb2, entry["api"]), entry["body"])
        if stand_in is not None:
            self.outbox.note_id(stand_in, response.run.info.run_id)

    def _stand_in(self, api: Any, body: str | None) -> Any:
        """Keep a request for a new run, and give a run whose id stands in for the one that it will get."""
        asked = service_pb2.CreateRun()
        parse_dict(json.loads(body or "{}"), asked)
        run_id = f"standin{uuid.uuid4().hex}"
        response = api.Response()
        info = response.run.info
        info.run_id = info.run_uuid = run_id
        info.run_name, info.experiment_id = asked.run_name, asked.experiment_id
        info.status, info.lifecycle_stage = service_pb2.RUNNING, "active"
        info.start_time = asked.start_time
        response.run.data.tags.extend(asked.tags)
        self._runs[run_id] = response.run
        self.outbox.keep({"api": "CreateRun", "body": body, "stand_in": run_id})
        return response


_stores: dict[str, KeptStore] = {}


def install(folder: Path, renamed: Callable[[str, str], None]) -> None:
    """Keep what tracking servers need not answer, in this process; before MLflow's first request. See `Outbox`."""

    def build(store_uri: str, **_: Any) -> KeptStore:
        if store_uri not in _stores:
            _stores[store_uri] = KeptStore(store_uri, folder, renamed)
        return _stores[store_uri]

    for scheme in ("http", "https"):
        _tracking_store_registry.register(scheme, build)


def send(task: Task, uri: str) -> None:
    """Do a task; for a server, when all that was said before is sent.

    Raises:
        MlflowException: the store refuses it.
        OSError: the file is not there, or the local store or the outbox cannot be written.
    """
    if too_large(task):
        return
    store = _stores.get(uri)
    if store is None:
        perform(task, uri)
    else:
        store.outbox.keep(task)


def send_rest(uri: str, patience: float = PATIENCE, *, abrupt: bool = False) -> None:
    """Send what waits, see `Outbox.flush`; say so if it has to wait for the next run."""
    store = _stores.get(uri)
    if store is not None:
        store.outbox.flush(patience, abrupt=abrupt)


def known_by_server(text: str, uri: str) -> str:
    """See `Outbox.translated`."""
    store = _stores.get(uri)
    return text if store is None else store.outbox.translated(text)


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
