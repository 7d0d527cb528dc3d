"""One signal asks for an orderly end, a second for an immediate one."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from cluster.cli_errors import ImmediateStop, StopRequested
from cluster.stop_signals import SIGNALS, StopSignals


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    result = StopSignals()
    result.install()
    yield result
    result.close()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_a_request(signals: StopSignals, number: int) -> None:
    signals.check()
    assert not signals.wait(0.0)
    os.kill(os.getpid(), number)
    started = time.monotonic()
    assert signals.wait(30.0)
    assert time.monotonic() - started < 10.0
    with pytest.raises(StopRequested):
        signals.check()


def test_second_signal_cannot_be_overheard(signals: StopSignals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(ImmediateStop):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not issubclass(ImmediateStop, Exception)


def test_installing_again_takes_the_handlers_back(signals: StopSignals) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signals.install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.requested
