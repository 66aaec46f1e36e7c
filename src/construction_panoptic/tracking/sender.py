"""The thread that sends, so that a training waits neither for a slow server nor for one that is away."""

import logging
import threading
import time

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from construction_panoptic.tracking.delivery import Delivery
from construction_panoptic.tracking.records import Records
from construction_panoptic.tracking.store import first_line

logger = logging.getLogger(__name__)

RETRY_AFTER = 30.0  # seconds between attempts to reach a store that did not answer


class Sender:
    """Brings all records up to date whenever it is woken; wakes while it is at work count once.

    Args:
        delivery: how a record is sent.
        records: the records.
        store: what the store is called in messages.
    """

    def __init__(self, delivery: Delivery, records: Records, store: str) -> None:
        self._delivery = delivery
        self._records = records
        self._store = store
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._away = self._stopping = self._tried_last = False
        self._retry_at = 0.0
        self._monitor: SystemMetricsMonitor | None = None
        self._monitored = ""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let what the records have be sent, soon."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def settle(self, patience: float) -> bool:
        """Wait until all that the records have is sent; False where that takes longer, or the store does not answer."""
        self.wake()
        with self._changed:
            asked = self._asked
            self._changed.wait_for(lambda: self._done >= asked or self._away, patience)
            return self._done >= asked

    def finish(self, patience: float) -> bool:
        """Try once more, even if the store did not answer a moment ago, and end the thread; see `settle`."""
        if self._monitor is not None and not self._away:
            last = threading.Thread(target=self._monitor.finish, daemon=True)
            last.start()
            last.join(patience)
        with self._changed:
            self._stopping, self._asked = True, self._asked + 1
            self._changed.notify_all()
        self._thread.join(patience)
        if self._done == self._asked:
            return True
        logger.warning(
            "%s %s: what it lacks is sent by the next kedro run.",
            self._store,
            "still does not answer" if self._away else "does not keep up",
        )
        return False

    def monitor(self, run_id: str, *, resumed: bool = False) -> None:
        """Log the load of CPU, memory and GPU from now on."""
        self._monitored = run_id
        self._monitor = SystemMetricsMonitor(run_id, resume_logging=resumed)
        self._monitor.start()

    def _work(self) -> None:
        while (asked := self._next()) is not None:
            error = self._pass()
            with self._changed:
                if error is None:
                    self._done = asked
                    back, self._away = self._away, False
                else:
                    back = False
                    self._failed(error)
                self._changed.notify_all()
            if back:
                logger.info("%s answers again.", self._store)
                if self._monitor is not None and not self._stopping:
                    self.monitor(self._monitored, resumed=True)

    def _next(self) -> int | None:
        """Wait until there is something to do, and it may be tried; None at the end."""
        with self._changed:
            while not self._stopping:
                wait = self._retry_at - time.monotonic() if self._away else None
                if self._asked > self._done and (wait is None or wait <= 0):
                    return self._asked
                self._changed.wait(wait)
            if self._tried_last or self._asked == self._done:
                return None
            self._tried_last = True
            return self._asked

    def _pass(self) -> Exception | None:
        error: Exception | None = None
        try:
            for record in list(self._records.own.values()):
                self._delivery.bring(record)
        except Exception as failure:  # whatever it is, the training goes on
            error = failure
        self._records.save()
        return error

    def _failed(self, error: Exception) -> None:
        if not self._away:
            reason = first_line(error)[:100]
            logger.warning("%s does not answer (%s). Work goes on; what it lacks is sent later.", self._store, reason)
            logger.debug("The failure", exc_info=error)
        self._away, self._retry_at = True, time.monotonic() + RETRY_AFTER
