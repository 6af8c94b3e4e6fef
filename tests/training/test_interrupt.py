"""Signals: noted and survived, and only a second Ctrl-C leaves at once."""

import os
import signal

import pytest

from llmcodec_jax.training.interrupt import SIGNALS, Interrupted


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_noted_by_name(number, capfd):
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupted() as interrupted:
        assert not interrupted.name
        send(number)
        assert interrupted.name == signal.Signals(number).name
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_scheduler_may_ask_any_number_of_times():
    with Interrupted() as interrupted:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            send(number)
        assert interrupted.name == "SIGTERM"


def test_a_second_ctrl_c_leaves_at_once_but_not_out_of_the_last_save():
    with Interrupted() as interrupted:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        interrupted.saving = True
        send(signal.SIGINT)


def test_nohup_is_respected():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupted() as interrupted:
            send(signal.SIGHUP)
            assert not interrupted.name
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)
