"""Signals: a run that is asked to stop saves first, and many processes stop at the same update."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax


class Stop:
    """Whether the run was asked to stop."""

    def __init__(self) -> None:
        self.received: list[int] = []  # signals, in this process

    def after(self, step: int) -> bool:
        """Whether to save and end after update `step`: the same in every process. Ask once for each update."""
        if jax.process_count() == 1:
            return bool(self.received)
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        return reached_preemption_sync_point(step)

    def __str__(self) -> str:
        return signal.Signals(self.received[0]).name if self.received else "asked to stop"


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collect signals in place of dying; a Ctrl-C after the first one is the usual KeyboardInterrupt.

    SIGPIPE is among them: it comes with the first line that nobody reads any more. (Not the one of some library's
    socket: asyncio, with which Orbax saves, closes its own pipe to itself while another thread may write to it.) In a
    run of several processes SIGTERM is the runtime's: it lets all processes agree on the update after which to stop.
    The others are turned into it.
    """
    stop, is_alone = Stop(), jax.process_count() == 1
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # of a stream without a file, as in a notebook
            poll.register(stream.fileno(), 0)  # with 0 it tells of errors alone, and POLLERR is a pipe without a reader

    def remember(number, frame):
        if number == signal.SIGPIPE and not poll.poll(0):
            return
        stop.received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not is_alone:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGPIPE, *([signal.SIGTERM] if is_alone else [])]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else nohup, under which a run is to outlive its terminal
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
