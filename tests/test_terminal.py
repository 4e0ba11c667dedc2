"""Long work says how far it is, on a terminal and in a log file."""

import io
import itertools
import sys
import time

from tinygpt_jax.terminal import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert [item for item in progress(range(3), "counting") if not time.sleep(0.3)] == [0, 1, 2]
    assert "counting" in terminal.getvalue() and "/3" in terminal.getvalue()


def test_progress_in_a_log_file_is_a_line_a_minute(capsys):
    """None in the first minute; 3 of 10 took 60 s, so 7 take 140 s. A length that is not known is left out."""
    seconds = itertools.count(0, 20)
    list(progress(range(10), "evaluating", clock=lambda: next(seconds)))
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 2 of 10, 4m00s left",
        "evaluating: 5 of 10, 2m00s left",
        "evaluating: 8 of 10, 0m45s left",
    ]
    seconds = itertools.count(0, 61)
    list(progress(iter("ab"), "reading", clock=lambda: next(seconds)))
    assert capsys.readouterr().err == "reading: 0\nreading: 1\n"
