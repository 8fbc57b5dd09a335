"""Nothing runs ten seconds without a line or a moving bar."""

import io
import sys
import time

import pytest

from mf import progress
from mf.progress import Progress, Silence

NEVER = 1e9  # seconds between two looks of the thread: the test looks itself


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_silent_command_says_every_ten_seconds_that_it_is_running(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    before = sys.stdout
    with Silence.watched(lambda: now[0], every_s=NEVER) as silence:
        for second in range(1, 35):
            now[0] = second
            if second == 15:
                print("epoch 1/3")
            silence.tick()
    assert sys.stdout is before
    out, err = capsys.readouterr()
    assert (out, err) == ("epoch 1/3\n", "still running, 10 s\nstill running, 25 s\n")


def test_a_moving_bar_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr("sys.stderr", terminal)
    with Silence.watched(lambda: now[0], every_s=NEVER) as silence, Progress("read", total=40) as bar:
        for second in range(1, 35):
            now[0] = second
            bar.advance(1)
            silence.tick()
        assert "still running" not in terminal.getvalue()
        now[0] = 50
        silence.tick()
    assert terminal.getvalue().count("still running, 50 s") == 1


def test_a_command_that_is_silent_is_looked_at_by_a_thread(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with Silence.watched(every_s=0.001):
        for _ in range(10_000):
            if capsys.readouterr().err:
                return
            time.sleep(0.001)
    pytest.fail("nothing was printed")


def test_stdout_is_as_before_after_an_error() -> None:
    before = sys.stdout
    with pytest.raises(ValueError, match="wrong"), Silence.watched():
        raise ValueError("wrong")
    assert sys.stdout is before
