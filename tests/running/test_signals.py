"""What a first, a second and a third signal do."""

import os
import signal

import pytest

from src.running import signals

pytestmark = pytest.mark.usefixtures("listening")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_the_first_ends_the_process_with_its_status(number: int, status: int) -> None:
    with pytest.raises(SystemExit) as ended:
        send(number)
    assert ended.value.code == status


def test_the_first_does_something_else_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent again at once, as to a group, it is still the first; later, any is the second; a third kills."""
    called: list[int] = []
    signals.instead(called.append)
    assert signals.asked() == 0
    send(signal.SIGUSR1)
    send(signal.SIGUSR1)
    send(signal.SIGTERM)
    assert called == [signal.SIGUSR1]
    assert signals.asked() == signal.SIGUSR1
    monkeypatch.setattr(signals, "ONE", 0)
    with pytest.raises(SystemExit) as ended:
        send(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(SystemExit) as ended:
        signals.leave()
    assert ended.value.code == 138


def test_what_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.listen()
    send(signal.SIGINT)
    assert signals.asked() == 0
