"""One signal asks, a second insists."""

import os
import signal
import threading

import pytest

from twofold.interrupts import Interrupted, StopRequest, interruptible


@pytest.fixture
def heard(number):
    """The signal is not ignored, whatever started the tests."""
    before = signal.signal(number, signal.default_int_handler)
    yield
    signal.signal(number, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_one_signal_asks_and_a_second_insists(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.number()
        os.kill(os.getpid(), number)
        assert stop.number() == number
        assert stop.signal == number
        with pytest.raises(Interrupted, match=number.name):
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


def test_other_work_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as told, interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    assert told.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible(), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.number() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_stops_when_its_launcher_is_gone(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest() as stop:
        assert stop.number() == 0
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.number() == signal.SIGTERM
