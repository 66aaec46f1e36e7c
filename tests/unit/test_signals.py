import contextlib
import os
import signal
import threading

import pytest

from construction_panoptic.signals import Interrupted, deferred_interruption, interruptible


def send(number: signal.Signals) -> None:
    """To this thread: the handler has run when this returns."""
    signal.raise_signal(number)


def send_to_code_that_puts_up_with_errors(number: signal.Signals) -> None:
    with contextlib.suppress(Exception):
        send(number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_block_and_handlers_come_back(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"Stopped by {number.name}") as caught, interruptible():
        send_to_code_that_puts_up_with_errors(number)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before


def test_a_deferred_signal_waits_until_it_is_looked_for() -> None:
    done = []
    with interruptible():
        with deferred_interruption() as request:
            request.check("nothing has happened")
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            done.append("batch")
            with pytest.raises(Interrupted, match="Stopped by SIGTERM: epoch 3 is saved") as caught:
                request.check("epoch 3 is saved")
        assert done == ["batch"]
        assert caught.value.exit_code == 143
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


def test_a_second_ctrl_c_does_not_wait() -> None:
    with deferred_interruption() as request:
        send(signal.SIGINT)
        assert request.number == signal.SIGINT
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_other_threads_leave_signals_alone() -> None:
    found = []

    def work() -> None:
        with interruptible(), deferred_interruption() as request:
            found.append((request.number, os.getpid()))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert found == [(None, os.getpid())]
    assert signal.getsignal(signal.SIGTERM) is before
