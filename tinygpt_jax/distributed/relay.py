"""What JAX's runtime prints in C++, in the words of this program. A small process of its own: python -m ... INDEX COUNT

The runtime ends a process from within, with twenty lines and a stack trace, when another process of the run is gone
or never came. Nothing in that process can say it better; this one, which reads its output, outlives it.
"""

import re
import signal
import sys
from collections.abc import Iterable, Iterator

_ENDS = "Terminating process because the JAX distributed service detected fatal errors"
_NEVER_CAME = "RegisterTask"
# A message begins so, and goes on until the next.
_BEGINS = re.compile(r"[IWEF]\d{4} \d\d:|\[Gloo\]|error: |WARNING: ")
# Those of the runtime's own business.
_NOISE = ("[Gloo] Rank", "coordination_service", "preemption_", "absl::InitializeLog()")


def said(lines: Iterable[str], who: str, never_came: str, gone: str) -> Iterator[str]:
    """What is to be shown of the lines, the runtime's and our own errors: of those that end a process, the first."""
    ended = told = noise = False
    for line in lines:
        if _BEGINS.match(line):
            noise = any(word in line for word in _NOISE)
        if ended or _ENDS in line:
            ended = True
            gone = never_came if _NEVER_CAME in line else gone
        elif not noise and line.strip():
            told = told or line.startswith("error: ")
            yield line
    if ended and not told:
        yield f"error: {who}: {gone}\n"


def main() -> None:
    """Relay standard input to standard output until its writer ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the process that is relayed, which ends first
    sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for line in said(sys.stdin, *sys.argv[1:]):
            sys.stdout.write(line)
            sys.stdout.flush()
    except OSError:  # nobody reads
        pass


if __name__ == "__main__":
    main()
