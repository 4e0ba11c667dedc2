"""The kinds of failure a user can cause and mend. Commands print them as one line, without a traceback."""


class UserError(Exception):
    """Something outside the program is wrong (a file, a device, a run folder). Commands exit with 1.

    The message names what was wrong, the value, and what to do about it. It is one line, whatever file names and
    other libraries' messages bring into it.
    """

    def __init__(self, message: str) -> None:
        """Keep the message, its white space folded."""
        super().__init__(" ".join(message.split()))


class UnfinishedError(UserError):
    """Work was interrupted, and what is finished of it serves the next try."""


class UsageError(UserError):
    """What was asked for can never work (an unknown preset, heads that do not divide d_model). Exit code 2."""


def require(condition: bool, name: str, value: object, what: str) -> None:
    """Raise UsageError, which says what a setting must be, unless `condition` holds."""
    if not condition:
        raise UsageError(f"{name} {value}: {what}")


def first_line(error: BaseException) -> str:
    """What another library's exception says first; the rest is seldom for users."""
    return str(error).splitlines()[0] if str(error).strip() else type(error).__name__
