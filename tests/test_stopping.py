"""Signals that stop a run, and those that do not."""

import contextlib
import os
import signal
import socket
import sys

from tinygpt_jax.training.stopping import stop_signals


def test_a_signal_is_remembered_and_named():
    with stop_signals() as stop:
        assert not stop.after(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.after(2) and str(stop) == "SIGTERM"


def test_a_lost_reader_stops_a_run_and_a_librarys_broken_socket_does_not(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stderr", os.fdopen(writer, "w"))
    with stop_signals() as stop:
        ours, theirs = socket.socketpair()
        theirs.close()
        try:
            ours.send(b"\0")
        except BrokenPipeError:
            ours.close()
        assert not stop.after(1)
        os.close(reader)
        with contextlib.suppress(BrokenPipeError):
            os.write(writer, b"a line")
        assert stop.after(2) and str(stop) == "SIGPIPE"
