"""One signal asks, a second insists."""

import os
import signal
import threading

import pytest

from twofold.training.interrupts import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_asks_and_a_second_insists(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_nothing_is_caught():
    seen = []

    def body():
        with StopRequest() as stop:
            seen.append(stop.active)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
