"""Of many processes one speaks; of the others only their errors are heard."""

import contextlib
import os
import subprocess
import sys
import threading
import traceback
from typing import NoReturn, TextIO

from tinygpt_jax.errors import UserError
from tinygpt_jax.terminal import harmless

_GONE = (
    "another process of this run has ended, or cannot be reached any more: look at its last line. The same command "
    "goes on from the last checkpoint, if there is one"
)


class LostProcessError(UserError):
    """Another process of the run is gone."""

    def __init__(self) -> None:
        super().__init__(_GONE)


_LEAVING = 10  # seconds that a process which ends with an error waits for the others to end with one of their own

# Where this process's errors go and how it calls itself there, in a run of several.
_errors: TextIO | None = None
_name = ""


def speak_as(index: int, count: int, never_came: str) -> None:
    """From now on process 0 speaks as ever, and the others only through `complain`.

    Args:
        index: this process's number.
        count: how many there are.
        never_came: what to say where JAX's runtime ends this process because others were missing at the start.
    """
    global _errors, _name
    _name = f"process {index} of {count}"
    out, errors = (
        os.fdopen(os.dup(stream.fileno()), "w", 1, stream.encoding, stream.errors)
        for stream in (sys.stdout, sys.stderr)
    )
    relay = subprocess.Popen(
        [sys.executable, "-m", "tinygpt_jax.distributed.relay", _name, never_came, _GONE],
        stdin=subprocess.PIPE,
        stdout=errors,
        start_new_session=True,  # a terminal's Ctrl-C is not for it
    )
    assert relay.stdin is not None
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):  # what C++ prints
        os.dup2(relay.stdin.fileno(), descriptor)
    relay.stdin.close()
    _errors = errors
    if index == 0:
        sys.stdout, sys.stderr = out, errors
    else:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def complain(error: UserError | str) -> None:
    """Say in one line what was wrong; in a run of several processes, in which."""
    if _errors is None:
        print(harmless(f"error: {error}"), file=sys.stderr)
    else:
        os.write(2, harmless(f"error: {_name}: {error}\n").encode())  # to the relay, which then adds nothing


def last_words() -> NoReturn:
    """End this process, one of several, with the traceback of what is being handled, whoever's it is."""
    traceback.print_exc(file=_errors)
    leave(1)


def is_one_of_several() -> bool:
    """Whether `speak_as` was called."""
    return _errors is not None


def leave(code: int, wait: bool = True) -> NoReturn:
    """End this process, after an error. With `wait` the others may end together with it, with an error of their own."""
    if not is_one_of_several():
        sys.exit(code)
    if wait:
        import jax

        # Not Python's own way out, which would wait for them for minutes: if they do not end, they are to notice.
        goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        goodbye.start()
        goodbye.join(_LEAVING)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
