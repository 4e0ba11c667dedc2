"""What the commands share: flags from dataclasses, and failures as one line with the right exit code."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import tyro

from tinygpt_jax.distributed.voice import LostProcessError, complain, is_one_of_several, last_words, leave
from tinygpt_jax.errors import UsageError, UserError

Arguments = TypeVar("Arguments")


def parse(
    cls: type[Arguments], argv: Sequence[str] | None = None, default: Any = None, others: bool = False
) -> Arguments:
    """An instance of the dataclass `cls` from flags; fields of nested dataclasses are flags of their own.

    Args:
        cls: the dataclass; its docstring and its fields' comments become the help.
        argv: the flags (default: the command line's).
        default: where to start from, in place of the fields' own defaults.
        others: leave flags that are none of this class's, `--help` among them, to another call.

    Raises:
        UsageError: a flag is unknown or its value cannot be read.
    """
    # The short name of a field of the configuration.
    argv = [re.sub(r"^--data(?==|$)", "--source", word) for word in (sys.argv[1:] if argv is None else argv)]
    # An unset variable of a shell, and not the wish for this folder.
    for name in ("--workdir", "--model", "--to", "--init-from"):
        if f"{name}=" in argv or (name, "") in pairwise(argv):
            raise UsageError(f"{name} is empty: give a folder")
    spec = sys.modules["__main__"].__spec__
    typed = spec and f"python -m {spec.name}"  # before the flags
    options: dict[str, Any] = {"args": argv, "prog": typed, "config": (tyro.conf.OmitArgPrefixes,)}
    if default is not None:
        options["default"] = default
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            if others:
                return tyro.cli(cls, return_unknown_args=True, add_help=False, **options)[0]
            return tyro.cli(cls, **options)
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise UsageError(_one_line(errors.getvalue())) from None


def run(main: Callable[[], None]) -> None:
    """Call `main` and end the process: 0, or 2 on a usage error and 1 on any other failure, said in one line."""
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # closed by who started us: no file of a run may get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    # A terminal that cannot show a story's characters, or a folder's name, is no reason to stop.
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        main()
        sys.stdout.flush()  # so that a full disk behind it is seen
    except UserError as error:
        complain(error)
        leave(2 if isinstance(error, UsageError) else 1, wait=not isinstance(error, LostProcessError))
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader of our output, `head` for example, has seen enough
            printing = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # of our files, UserError tells the name
            where = error.filename or ("standard output" if printing else "the system says")
            complain(f"{where}: {error.strerror or error}")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, or Python would try to write the rest again, and complain
        leave(1)
    except KeyboardInterrupt:
        # At once: threads of a library that was saving would go on, and complain at length that Python has ended.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(130)
    except Exception:
        if not is_one_of_several():
            raise
        last_words()


def _one_line(box: str) -> str:
    """What the box that tyro prints says up to its first rule, and the flag that it suggests below."""
    text = "\n".join(line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:])  # without the title
    message, *advice = re.split(r"\n[─-]+(?:\n|$)", text.lstrip("-\n"))  # in ASCII, a rule follows the title
    suggested = re.match(r"Perhaps you meant:\n(--\S+)", "\n".join(advice))
    # Python's words for a number, and where None would do too, tyro's about each type that was tried.
    message = " ".join(message.split()).replace("could not convert string to float", "not a number")
    message = re.sub(r"(no type .*: )?invalid literal for int\(\) .*?: ", "not a whole number: ", message)
    return message + (f"; perhaps {suggested[1]}?" if suggested else "") + " (--help lists the flags)"
