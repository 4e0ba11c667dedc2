"""What JAX's runtime prints in C++, in the words of this program. A small process of its own: python -m ... INDEX COUNT

The runtime ends a process from within, with twenty lines and a stack trace, when another process of the run is gone
or never came. Nothing in that process can say it better; this one, which reads its output, outlives it.
"""

import signal
import sys
from collections.abc import Iterable, Iterator

_ENDS = "Terminating process because the JAX distributed service detected fatal errors"
_NEVER_CAME = "RegisterTask"
# Of the runtime's own business.
_NOISE = ("[Gloo] Rank", "coordination_service", "preemption_sync_manager", "distributed_runtime", "GRPC error info")


def said(lines: Iterable[str], who: str, never_came: str, gone: str) -> Iterator[str]:
    """What is to be shown of the runtime's lines."""
    ended = False
    for line in lines:
        if ended:
            if _NEVER_CAME in line:
                gone = never_came
        elif _ENDS in line:
            ended = True
        elif line.strip() and not any(word in line for word in _NOISE):
            yield line
    if ended:
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
