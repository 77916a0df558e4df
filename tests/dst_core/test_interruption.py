import signal

import pytest

from dst_core.interruption import Interruption


def test_signal_repeated_after_a_second_ends_the_run_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("dst_core.interruption.time.monotonic", lambda: now)
    interruption = Interruption()
    assert not interruption
    interruption.ask(signal.SIGINT)
    assert interruption
    now = 10.9
    interruption.ask(signal.SIGINT)
    now = 12.0
    interruption.ask(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        interruption.ask(signal.SIGINT)
    assert ended.value.code == 130
