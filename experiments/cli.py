"""What the commands share: flags from dataclasses, and failures as one line with the right exit code."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import dropwhile, pairwise
from typing import Any, TypeVar

import tyro

from tinygpt_jax.devices import restart_with_huge_pages
from tinygpt_jax.errors import UsageError, UserError

Arguments = TypeVar("Arguments")

# Short names of configuration fields.
_ALIASES = {"--data": "--source"}


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
    argv = [_long_name(word) for word in (sys.argv[1:] if argv is None else argv)]
    if "--workdir=" in argv or ("--workdir", "") in pairwise(argv):  # an unset variable, and no wish to train here
        raise UsageError("--workdir is empty: give a folder")
    given = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            options = {"args": argv, "prog": _program(), "config": (tyro.conf.OmitArgPrefixes,), **given}
            if others:
                return tyro.cli(cls, return_unknown_args=True, add_help=False, **options)[0]
            return tyro.cli(cls, **options)
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise UsageError(_one_line(errors.getvalue())) from None


def run(main: Callable[[], None]) -> None:
    """Call `main` and end the process: 0, or 2 on a usage error and 1 on any other failure, said in one line."""
    if main.__module__ == "__main__":  # not where another program, a test for example, calls a command
        restart_with_huge_pages()
    # A terminal that cannot show a story's characters, or a folder's name, is no reason to stop.
    if sys.stdout is not None:  # closed by who started us
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except BrokenPipeError:  # the reader of our output, `head` for example, has seen enough
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        print(f"error: {error.filename or 'the system says'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        # At once: threads of a library that was saving would go on, and complain at length that Python has ended.
        with contextlib.suppress(OSError, AttributeError):  # closed, or never open
            sys.stdout.flush()  # pyright: ignore[reportOptionalMemberAccess]
        os._exit(130)


def _program() -> str | None:
    """What the user typed before the flags."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else None


def _long_name(word: str) -> str:
    name, equals, value = word.partition("=")
    return _ALIASES.get(name, name) + equals + value


def _one_line(box: str) -> str:
    """The sentences that tyro prints in a box, up to the rule before its advice, and the flag it suggests."""
    lines = [line.strip("│|╭╮╰╯+ ") for line in box.splitlines()[1:]]  # without the title
    lines = list(dropwhile(_is_rule, lines))  # in ASCII, a rule follows the title
    rule = next((i for i, line in enumerate(lines) if _is_rule(line)), len(lines))
    message = " ".join(lines[:rule])
    suggestions = [line.split(" ")[0] for line in lines[rule:] if re.match("--[a-z]", line)]
    if "Perhaps you meant:" in lines and suggestions:
        message += f"; perhaps {suggestions[0]}?"
    return f"{message} (--help lists the flags)"


def _is_rule(line: str) -> bool:
    return set(line) <= set("─-")
